"""Colours a grid of tokens by the pass in which each was accepted; knows nothing but numbers.

The colours go from dark violet through green to yellow in even steps of lightness, so that later
is brighter for every eye and on paper.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from visual_ar.app.enlarge import enlarged
from visual_ar.output import UNKNOWN

UNDECIDED = (128, 128, 128)
_ANCHORS = ((40, 20, 80), (52, 70, 140), (35, 125, 145), (60, 175, 110), (165, 215, 60))
_LAST = (255, 235, 70)


def colours(count: int) -> NDArray[np.uint8]:
    """So many colours from the first pass to the last: uint8 [count, 3]."""
    anchors = np.array([*_ANCHORS, _LAST], dtype=np.float64)
    at = np.linspace(0, len(anchors) - 1, max(count, 1))
    channels = [np.interp(at, np.arange(len(anchors)), anchors[:, c]) for c in range(3)]
    return np.stack(channels, axis=1).round().astype(np.uint8)


def acceptance_map(accepted: Tensor, passes: int) -> Image.Image:
    """The map of one picture or clip.

    Args:
        accepted: int64 [h, w], index of the pass that accepted the cell, -1 for none; of clips
            [T, h, w], whose frames are laid side by side; of codes without rows [N].
        passes: how many the colours span, above every index.

    Raises:
        ValueError: an index is outside the passes.
    """
    if int(accepted.max()) >= passes:
        raise ValueError(f"passes must be above every index, {accepted.max()}, got {passes}")
    indices = _laid_out(accepted).cpu().numpy()
    painted = np.where((indices == UNKNOWN)[..., None], UNDECIDED, colours(passes)[indices])
    return enlarged(Image.fromarray(painted.astype(np.uint8)))


def _laid_out(accepted: Tensor) -> Tensor:
    """Cells in rows and columns, with an undecided column between frames."""
    if accepted.dim() == 1:
        return accepted[None]
    if accepted.dim() == 2:
        return accepted
    gap = accepted.new_full((accepted.shape[1], 1), UNKNOWN)
    columns = [column for frame in accepted for column in (gap, frame)]
    return torch.cat(columns[1:], dim=1)


def legend(passes: int) -> str:
    """The meaning of the colours as HTML that follows the page's text colour."""
    stops = ", ".join(f"rgb({red},{green},{blue})" for red, green, blue in colours(6))
    bar = f"flex:1;height:.8em;border-radius:.4em;background:linear-gradient(to right,{stops})"
    return (
        '<div style="display:flex;gap:.6em;align-items:center"><span>pass 1</span>'
        f'<span style="{bar}"></span><span>pass {passes}</span></div>'
    )
