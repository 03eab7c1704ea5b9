"""Writes and reads pictures and clips that carry how they were made; knows no model, no command.

A clip is an animated PNG, which programs that know none show as its first frame.
"""

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from PIL import Image, PngImagePlugin

from visual_ar.regular_file import check_regular
from visual_ar.write_beside import written_beside

Drawn = Image.Image | Sequence[Image.Image]
"""A picture, or the frames of a clip, at least one and all of one size."""
FRAMES_A_SECOND = 8

KEY = "visual_ar"  # keyword of the PNG text chunk
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for a file that is no picture, is damaged, or claims far too many pixels."""


def write_png(drawn: Drawn, path: str | os.PathLike[str], recipe: Mapping[str, Any]) -> None:
    """Writes a picture or a clip with its recipe in a JSON text chunk, whole or not at all.

    Args:
        drawn: What is written.
        path: The PNG file, replaced when it exists.
        recipe: What a person needs to make the picture again; anything JSON can hold.

    Raises:
        OSError: The file cannot be written; names it and the reason.
        TypeError: The recipe holds something that JSON cannot.
    """
    path = Path(path)
    chunks = PngImagePlugin.PngInfo()
    # What UTF-8 has no bytes for, such as a file name in Latin-1, is escaped as JSON does it.
    text = json.dumps(recipe, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
    chunks.add_itxt(KEY, text)
    with written_beside(path) as part:
        _save(drawn, part, chunks)


def png_bytes(drawn: Drawn) -> bytes:
    """A picture or a clip as the content of a PNG file, without a recipe."""
    buffer = io.BytesIO()
    _save(drawn, buffer, None)
    return buffer.getvalue()


def _save(drawn: Drawn, file: Path | IO[bytes], chunks: PngImagePlugin.PngInfo | None) -> None:
    if isinstance(drawn, Image.Image):
        drawn.save(file, format="PNG", pnginfo=chunks)
        return
    first, *others = drawn
    duration = 1000 // FRAMES_A_SECOND
    animated = {"save_all": True, "append_images": others, "duration": duration, "loop": 0}
    first.save(file, format="PNG", pnginfo=chunks, **animated)


def read_recipe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the recipe that `write_png` stored.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no readable PNG, or carries no recipe.
    """
    try:
        check_regular(path, "it")
        with Image.open(path, formats=["PNG"]) as image:
            image.load()  # text chunks may follow the pixels
            text = image.info.get(KEY)
    except FileNotFoundError:
        raise FileNotFoundError(f"picture must be an existing file, got {str(path)!r}") from None
    except UNREADABLE as error:
        raise ValueError(f"picture must be a readable PNG, got {str(path)!r}: {error}") from None
    recipe = _parse(text)
    if recipe is None:
        raise ValueError(f"picture must carry a visual_ar recipe, got {str(path)!r} without one")
    return recipe


def _parse(text: str | None) -> dict[str, Any] | None:
    try:
        recipe = json.loads(text or "null")
    except (ValueError, RecursionError):  # no JSON, or some that only a malicious file has
        return None
    return recipe if isinstance(recipe, dict) else None
