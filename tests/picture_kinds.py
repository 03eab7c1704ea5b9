"""Pictures of every mode that Pillow knows, and the 8-bit RGB copy that each must be read as."""

import numpy as np
from PIL import Image, ImageCms

COLOURS = [
    (0, 0, 0),
    (255, 255, 255),
    (128, 128, 128),
    (180, 130, 90),
    (90, 110, 140),
    (120, 160, 110),
]
GREYS = [0, 1, 50, 127, 128, 200, 254, 255]
WIDE = ("I;16", "I;16L", "I;16B", "I;16N")
MODES = (
    *("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX"),
    *("CMYK", "YCbCr", "LAB", "HSV", *WIDE),
)
REFUSED = ("F", "I")
ROUNDED = {"YCbCr": 2, "HSV": 2}
"""How far what 8 bits of such a mode can hold is from the copy that it was made from; else 1."""


def blocks(values):
    """A picture 8 pixels high with a block of 4 columns for every value."""
    row = np.repeat(np.array(values, np.uint8), 4, axis=0)
    return np.broadcast_to(row, (8, *row.shape)).copy()


def of_mode(mode):
    """A picture of a mode, opaque, and its copy, uint8 [H, W, 3]."""
    grey = blocks(GREYS)
    if mode in WIDE:
        wide = Image.fromarray(grey.astype(np.uint16) * 257)
        picture = wide if mode == "I;16" else Image.frombytes(mode, wide.size, _bytes(grey, mode))
        return picture, np.stack([grey] * 3, -1)
    if mode in ("L", "LA", "La", "1"):
        grey = np.where(grey > 127, 255, 0).astype(np.uint8) if mode == "1" else grey
        picture = Image.fromarray(grey).convert("LA" if mode == "La" else mode)
        return picture.convert(mode), np.stack([grey] * 3, -1)
    colour = blocks(COLOURS)
    picture = Image.fromarray(colour)
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(picture, *profiles, outputMode="LAB"), colour
    if mode in ("P", "PA"):
        return picture.quantize(16).convert(mode), colour
    return picture.convert("RGBA").convert(mode) if mode == "RGBa" else picture.convert(
        mode
    ), colour


def _bytes(grey, mode):
    kind = ">u2" if mode == "I;16B" else "<u2"
    return (grey.astype(np.uint32) * 257).astype(kind).tobytes()
