"""Guidance scales by rank, from a scale and the name of a schedule; knows no model and no logits.

A scale of 1 is unguided. "linear" grows with the rank as in Muse (Chang et al. 2023, arXiv
2301.00704); "interval:START:END" guides part of the ranks (Kynkäänniemi et al. 2024, arXiv
2404.07724, there by noise level).
"""

from __future__ import annotations

import torch
from torch import Tensor


def guidance_by_rank(scale: float, schedule: str, length: int) -> Tensor:
    """The scale of every rank.

    Args:
        scale: guidance scale s, at least 0; 1 is unguided.
        schedule: "constant"; "linear", from 1 before the first rank to s at the last; or
            "interval:START:END", s at ranks from START N up to END N and 1 elsewhere, where
            0 <= START < END <= 1.
        length: number of ranks N, at least 1.

    Returns:
        fp32 [N].

    Raises:
        ValueError: an unknown schedule or a bad interval.
    """
    if schedule == "constant":
        return torch.full((length,), float(scale))
    done = torch.arange(length, dtype=torch.float32) / length
    if schedule == "linear":
        return 1 + (scale - 1) * (done + 1 / length)
    start, end = _interval(schedule)
    return torch.where((done >= start) & (done < end), float(scale), 1.0)


def _interval(schedule: str) -> tuple[float, float]:
    try:
        name, start, end = schedule.split(":")
        bounds = float(start), float(end)
    except (ValueError, AttributeError):
        name, bounds = "", (0.0, 0.0)
    if name != "interval" or not 0 <= bounds[0] < bounds[1] <= 1:
        raise ValueError(
            f"guidance_schedule must be constant, linear or interval:START:END with "
            f"0 <= START < END <= 1, got {schedule!r}"
        )
    return bounds
