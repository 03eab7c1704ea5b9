"""Structural similarity of pictures; knows nothing about where they come from.

Wang et al. (2004), "Image quality assessment: from error visibility to structural similarity",
equation 13: Gaussian window of 11 pixels with deviation 1.5, K1 = 0.01, K2 = 0.03; averaged over
the channels and over the places where the window lies within the picture.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d

WINDOW = 11
_DEVIATION, _K1, _K2, _RANGE = 1.5, 0.01, 0.03, 255.0


def ssim(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean structural similarity of each picture. uint8 [B, C, H, W] both; returns fp64 [B].

    Raises:
        ValueError: the shapes differ, or a side is shorter than the window.
    """
    if ours.shape != theirs.shape or ours.ndim != 4:
        raise ValueError(
            f"pictures must be two of one shape [B, C, H, W], got {list(ours.shape)} and "
            f"{list(theirs.shape)}"
        )
    if min(ours.shape[2:]) < WINDOW:
        raise ValueError(f"pictures must be at least {WINDOW} pixels a side, got {ours.shape[2:]}")
    x, y = ours.double(), theirs.double()
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x = _blur(x * x) - mean_x**2
    variance_y = _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (_K1 * _RANGE) ** 2, (_K2 * _RANGE) ** 2
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    denominator = (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    return (numerator / denominator).mean(dim=(1, 2, 3))


def _blur(pictures: Tensor) -> Tensor:
    """The window's weighted mean at every place: fp64 [B, C, H - 10, W - 10]."""
    channels = pictures.shape[1]
    offsets = torch.arange(WINDOW, dtype=pictures.dtype, device=pictures.device) - WINDOW // 2
    line = torch.softmax(-offsets.square() / (2 * _DEVIATION**2), dim=0)
    across = line.expand(channels, 1, 1, -1)
    return conv2d(conv2d(pictures, across, groups=channels), across.mT, groups=channels)
