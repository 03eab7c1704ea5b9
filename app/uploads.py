"""Reads pictures that anyone may have uploaded, or says in a sentence why not; knows no page."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

MOST_PIXELS = 40_000_000
"""Uploads with more pixels are refused before they are decoded."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


def open_picture(path: str | Path) -> Image.Image:
    """Reads an upload as RGB on white, upright.

    Raises:
        ValueError: it is no picture of a known format, is damaged, or has too many pixels.
    """
    with _opened(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")


def check_picture(path: str | Path) -> None:
    """Raises ValueError as `open_picture`, as far as the header of the file tells."""
    with _opened(path):
        pass


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """A picture whose header has been read, and whose pixels are not too many."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our limit is lower
            with Image.open(path, formats=FORMATS) as image:
                _check_size(image.size)
                yield image
    except UnidentifiedImageError:
        raise ValueError(
            f"the upload must be a picture ({', '.join(FORMATS)}), got something else"
        ) from None
    except Image.DecompressionBombError:
        raise ValueError(f"the upload must have at most {MOST_PIXELS:,} pixels, got more") from None
    except (OSError, SyntaxError) as error:
        raise ValueError(f"the upload must be a whole picture, got: {error}") from None


def _check_size(size: tuple[int, int]) -> None:
    if size[0] * size[1] > MOST_PIXELS:
        raise ValueError(
            f"the upload must have at most {MOST_PIXELS:,} pixels, got {size[0]} x {size[1]}"
        )
