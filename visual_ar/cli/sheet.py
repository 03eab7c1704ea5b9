"""Pastes pictures, or clips frame by frame, onto one sheet; knows nothing of drawing."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

    from visual_ar.png import Drawn

GAP = 2  # pixels


def paste_drawn(drawn: "Sequence[Drawn]", columns: int) -> "Drawn":
    """Returns the sheet of pictures, or of clips that all have as many frames."""
    from PIL import Image

    pictures = [one for one in drawn if isinstance(one, Image.Image)]
    if pictures:
        return paste(pictures, columns)
    clips = [one for one in drawn if not isinstance(one, Image.Image)]
    return [paste(frames, columns) for frames in zip(*clips, strict=True)]


def paste(images: "Sequence[Image.Image]", columns: int) -> "Image.Image":
    """Returns a white sheet with the pictures in reading order.

    Args:
        images: At least one RGB picture; all of one size.
        columns: Pictures a row, at least 1; fewer pictures make a narrower sheet.
    """
    from PIL import Image

    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    width, height = images[0].width + GAP, images[0].height + GAP
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), "white")
    for index, image in enumerate(images):
        sheet.paste(image, (GAP + index % columns * width, GAP + index // columns * height))
    return sheet
