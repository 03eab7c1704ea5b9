"""Turns pictures that a user gives to be completed into pixels; knows kinds of arrays, no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from visual_ar.picture_file import to_rgb
from visual_ar.size import Size

_NUMBERS = ("float16", "float32", "float64", "uint8")
Given = Image.Image | Tensor | np.ndarray | Sequence[Any]
"""A picture or a clip, several of them, or the frames of one; see `given_pixels`."""


def given_pixels(image: Given, size: Size, pictures: int) -> Tensor:
    """Pixels in [-1, 1], float [1 or B, 3, *size].

    Args:
        image: for one or each of B pictures, as diffusers takes them: PIL, put on white where it is
            transparent; tensors, float [3, *size] or [B, 3, *size] in [0, 1]; arrays with channels
            last, [*size, 3] or [B, *size, 3], float in [0, 1] or uint8; or a list of one kind. A
            clip is a list of its frames, where it is not one tensor or array.
        size: of the pictures.
        pictures: how many B.

    Raises:
        ValueError: another kind, another size or values outside the range.
    """
    pixels = _tensor(image, size)
    if tuple(pixels.shape) not in ((3, *size.pixels), (pictures, 3, *size.pixels)):
        sides = f"{size.height} pixels high and {size.width} wide"
        if size.frames is not None:
            sides = f"{size.frames} frames, {sides}"
        raise ValueError(
            f"image must be {sides} with 3 channels, for one or "
            f"for each of {pictures} pictures, got shape {list(pixels.shape)}, channels first"
        )
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"image must have values in [0, 1], got [{low:g}, {high:g}]")
    return pixels.reshape(-1, 3, *size.pixels) * 2 - 1


def _tensor(image: Given, size: Size) -> Tensor:
    """Float with channels first, in [0, 1] where the values are as they should be."""
    if isinstance(image, list | tuple) and image:
        return _joined([_tensor(one, size) for one in image], size)
    if isinstance(image, Image.Image):
        image = np.asarray(to_rgb(image))
    kind = getattr(image, "dtype", type(image).__name__)
    if isinstance(image, np.ndarray) and image.ndim and str(kind) in _NUMBERS:
        several = image.ndim > 1 + len(size.pixels)
        image = torch.from_numpy(np.array(image)).movedim(-1, int(several))
    if isinstance(image, Tensor) and image.dtype == torch.uint8:
        return image / 255
    if not isinstance(image, Tensor) or not image.is_floating_point():
        raise ValueError(
            f"image must be a PIL picture, a float or uint8 tensor or array, or a list, got {kind}"
        )
    return image


def _joined(parts: list[Tensor], size: Size) -> Tensor:
    """Pictures or clips of a list as a batch, or the frames of one clip."""
    shapes = {tuple(part.shape) for part in parts}
    if len(shapes) > 1:
        raise ValueError(f"image must be a list of one size, got {sorted(map(list, shapes))}")
    if len(parts) == 1 and parts[0].ndim == 1 + len(size.pixels):
        return parts[0]
    of_frames = size.frames is not None and parts[0].ndim == 3
    return torch.stack(parts, dim=1 if of_frames else 0)
