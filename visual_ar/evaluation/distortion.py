"""How far pictures are from their originals, pixel by pixel; knows not how they were made."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

PEAK = 255.0
WINDOW = 7
K1, K2 = 0.01, 0.03


def psnr(pictures: Tensor, originals: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of every picture in dB, infinite for an equal one.

    Args:
        pictures: uint8 [B, 3, H, W].
        originals: uint8 [B, 3, H, W].

    Returns:
        float64 [B].

    Raises:
        ValueError: shapes or types that do not fit.
    """
    _check(pictures, originals)
    error = (pictures.double() - originals.double()).square().mean(dim=(1, 2, 3))
    return 10 * (PEAK**2 / error).log10()


def ssim(pictures: Tensor, originals: Tensor) -> Tensor:
    """Structural similarity of every picture (Wang et al. 2004, eq. 13), mean of the channels.

    The conventions are scikit-image's: a uniform window of 7 x 7, the unbiased covariance, windows
    that lie within the picture, and a data range of 255.

    Args:
        pictures: uint8 [B, 3, H, W], at least 7 pixels each way.
        originals: uint8 [B, 3, H, W].

    Returns:
        float64 [B], at most 1.

    Raises:
        ValueError: shapes or types that do not fit, or pictures smaller than the window.
    """
    _check(pictures, originals)
    if min(pictures.shape[2:]) < WINDOW:
        raise ValueError(
            f"pictures must be at least {WINDOW} pixels each way, got {list(pictures.shape)}"
        )
    x, y = pictures.double(), originals.double()
    mean_x, mean_y = _local_mean(x), _local_mean(y)
    unbiased = WINDOW**2 / (WINDOW**2 - 1)
    variance_x = unbiased * (_local_mean(x * x) - mean_x * mean_x)
    variance_y = unbiased * (_local_mean(y * y) - mean_y * mean_y)
    covariance = unbiased * (_local_mean(x * y) - mean_x * mean_y)
    c1, c2 = (K1 * PEAK) ** 2, (K2 * PEAK) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def _local_mean(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, WINDOW, stride=1)


def _check(pictures: Tensor, originals: Tensor) -> None:
    for name, some in (("pictures", pictures), ("originals", originals)):
        if some.dtype != torch.uint8 or some.ndim != 4 or some.shape[1] != 3:
            raise ValueError(
                f"{name} must be uint8 [B, 3, H, W], got {some.dtype} {list(some.shape)}"
            )
    if pictures.shape != originals.shape:
        shapes = list(pictures.shape), list(originals.shape)
        raise ValueError(f"pictures and originals must have one shape, got {shapes}")
