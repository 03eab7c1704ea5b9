"""Reads a picture of any kind as 8-bit RGB, upright, or says in a sentence why not.

The one place that opens pictures and converts them, for evaluation, command line, Python, page and
data sets. Grey of 16 bits is scaled, where Pillow's own conversion cuts it off at 255. Colour
profiles are not applied.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from visual_ar.regular_file import check_regular

MOST_PIXELS = 40_000_000
"""Pictures with more are refused before they are decoded."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""None of them runs another program or reads another file, as EPS does."""
Ground = Literal["white", "black"]
"""What shows through a transparent picture."""

_EIGHT_BIT = (
    *("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX"),
    *("CMYK", "YCbCr", "LAB", "HSV"),
)
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_PREMULTIPLIED = ("La", "RGBa")
_WIDE_FORMATS = ("PNG", "PPM")  # their mode I holds 0..65535; elsewhere nobody knows what is white
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # tags of a TIFF
_ORIENTATION = 0x0112
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, struct.error)


def read_picture(
    source: str | os.PathLike[str] | bytes,
    name: str | None = None,
    ground: Ground | None = "white",
    formats: Sequence[str] = FORMATS,
) -> Image.Image:
    """A picture as 8-bit RGB, upright as its EXIF says.

    Args:
        source: path or content of the file.
        name: what messages call it; the path where none is given.
        ground: what shows through where it is transparent; None refuses transparency.
        formats: Pillow's names of the formats that are read.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the system does not let it be read.
        ValueError: it is no file, no picture, a damaged one or an animation, has more than
            `MOST_PIXELS` pixels, or see `to_rgb`.
    """
    called = name or ("the content" if isinstance(source, bytes) else os.fspath(source))
    with _opened(source, called, formats) as image:
        # What follows the first picture of an MPO, as telephones write it, is for programs.
        if getattr(image, "is_animated", False) and image.format != "MPO":
            raise _Refusal(f"{called} must be one picture, got an animation or several pages")
        image.load()
        return to_rgb(image, called, ground)


def check_header(path: str | os.PathLike[str], name: str, formats: Sequence[str] = FORMATS) -> None:
    """Raises as `read_picture`, as far as the header of the file tells."""
    with _opened(path, name, formats):
        pass


def is_whole_png(path: Path) -> bool:
    """Whether a file is a PNG from its first to its last chunk, without decoding it."""
    try:
        with _opened(path, str(path), ["PNG"]) as image:
            image.verify()
    except (ValueError, OSError):
        return False
    return True


def to_rgb(image: Image.Image, name: str = "image", ground: Ground | None = "white") -> Image.Image:
    """A picture of any mode as 8-bit RGB, upright as its EXIF says.

    Args:
        image: is left as it is.
        name: what messages call it.
        ground: what shows through where it is transparent; None refuses transparency.

    Raises:
        ValueError: it is transparent without a ground, or of a mode that does not say what is
            white: F, and I but for 16-bit PNG and PPM.
    """
    colour, alpha = _layers(image, name)
    if alpha is None or alpha.getextrema() == (255, 255):
        return _upright(colour, image)
    if ground is None:
        raise _Refusal(f"{name} must be a picture without transparency, got mode {image.mode}")
    below = Image.new("RGB", colour.size, ground)
    if image.mode in _PREMULTIPLIED:
        behind = Image.merge("RGB", [ImageChops.invert(alpha)] * 3)
        return _upright(ImageChops.add(colour, ImageChops.multiply(below, behind)), image)
    below.paste(colour, mask=alpha)
    return _upright(below, image)


class _Refusal(ValueError):
    """A sentence of this file, in which no damage is suspected."""


@contextmanager
def _opened(
    source: str | os.PathLike[str] | bytes, name: str, formats: Sequence[str]
) -> Iterator[Image.Image]:
    """A picture whose header has been read, and whose pixels are not too many."""
    if not isinstance(source, bytes):
        check_regular(source, name)
    # An error of the file system names the file by itself.
    with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
        Image.init()
        readable = [one for one in formats if one in Image.OPEN]  # older Pillows know no AVIF
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # ours is lower
                with Image.open(file, formats=readable) as image:
                    _check_size(image.size, name)
                    yield image
        except _Refusal:
            raise
        except UnidentifiedImageError:
            known = ", ".join(readable)
            raise ValueError(f"{name} must be a picture ({known}), got something else") from None
        except Image.DecompressionBombError:
            raise ValueError(f"{name} must have at most {MOST_PIXELS:,} pixels, got more") from None
        except _DAMAGE as error:
            raise ValueError(f"{name} must be a whole picture, got: {error}") from None


def _check_size(size: tuple[int, int], name: str) -> None:
    if size[0] * size[1] > MOST_PIXELS:
        raise _Refusal(
            f"{name} must have at most {MOST_PIXELS:,} pixels, got {size[0]} x {size[1]}"
        )


def _layers(image: Image.Image, name: str) -> tuple[Image.Image, Image.Image | None]:
    """Colour as RGB, premultiplied where the mode is, and opacity as L if there is any."""
    if image.mode in _PREMULTIPLIED:
        *bands, alpha = image.split()
        return Image.merge("RGB", bands if len(bands) == 3 else bands * 3), alpha
    if image.mode in _SIXTEEN_BIT or (image.mode == "I" and image.format in _WIDE_FORMATS):
        return _of_sixteen_bits(image)
    if image.mode not in _EIGHT_BIT:
        known = ", ".join((*_EIGHT_BIT, *_PREMULTIPLIED, *_SIXTEEN_BIT))
        raise _Refusal(f"{name} must be a picture of mode {known}, got mode {image.mode}")
    if not image.has_transparency_data:
        return image.convert("RGB"), None
    clear = image.info.get("transparency")
    if isinstance(clear, tuple) and max(clear) > 255:  # of 16 bits, whose pixels Pillow halved
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    both = image.convert("RGBA")
    return both.convert("RGB"), both.getchannel("A")


def _of_sixteen_bits(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Grey of up to 16 bits, scaled to 8."""
    values = np.asarray(image).astype(np.uint32)
    tags = getattr(image, "tag_v2", {})
    white = (1 << tags.get(_BITS, (16,))[0]) - 1
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = white - values
    scaled = ((values * 255 + white // 2) // white).astype(np.uint8)
    grey = Image.fromarray(scaled).convert("RGB")
    clear = image.info.get("transparency")
    return grey, None if clear is None else Image.fromarray(values != clear).convert("L")


def _upright(colour: Image.Image, image: Image.Image) -> Image.Image:
    """What was made of a picture, turned as its EXIF says, and without it."""
    turn = image.getexif().get(_ORIENTATION, 1)
    colour.info.clear()
    if turn == 1:
        return colour
    exif = Image.Exif()
    exif[_ORIENTATION] = turn
    colour.info["exif"] = exif.tobytes()
    return ImageOps.exif_transpose(colour)
