"""LANTERN (Jang et al. 2025, eq. 4) of bits: the nearest codes are the tokens one bit away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from visual_ar.accel.rules.hamming_gsd import FlipRule
from visual_ar.accel.rules.rule import require


@dataclass(frozen=True)
class HammingLantern(FlipRule):
    """The tokens with one bit flipped are equally near, so the likeliest come first. Lossy.

    No neighbour is removed from what replaces a refused draft.

    Attributes:
        flips: tokens looked at, at least 1; at most d count.
        delta: largest mass added, in (0, 1].
    """

    name: ClassVar[str] = "hamming-lantern"
    flips: int = 8
    delta: float = 0.1

    def __post_init__(self) -> None:
        require(self, "flips", self.flips >= 1, "at least 1")
        require(self, "delta", 0 < self.delta <= 1, "in (0, 1]")

    def gain(self, p: Any, q: Any, drafts: Tensor) -> Tensor:
        """See `FlipRule.gain`."""
        there = p.flip_odds(drafts)
        odds = there.topk(min(self.flips, there.shape[-1]), dim=-1).values.cumsum(-1)
        inside = p.prob(drafts)[..., None] * odds <= self.delta
        return 1 + torch.where(inside, odds, 0.0).amax(-1)
