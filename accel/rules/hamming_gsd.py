"""Grouped acceptance (So et al. 2025, eq. 6) of bits: a token counts with those one bit away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from visual_ar.accel.rules.rule import Rule, require
from visual_ar.tokens.kind import FLIPS, RATIO, TEST


@dataclass(frozen=True)
class FlipRule(Rule):
    """A rule that reads the odds of a draft and of the tokens with one bit flipped.

    Nothing sums over the 2^d tokens. A refused draft is replaced by the exact residual.
    """

    needs: ClassVar[frozenset[str]] = frozenset({TEST, RATIO, FLIPS})

    def gain(self, p: Any, q: Any, drafts: Tensor) -> Tensor:
        """Factor on the odds of each draft: fp32 [B, K]."""
        raise ValueError(f"rule {self.name} must say its gain")

    def chance(self, p: Any, q: Any, drafts: Tensor) -> Tensor:
        """Chance of keeping whole drafts: fp32 [B, K]; 0 for a token that p rules out.

        Args:
            p: [B, K] target laws.
            q: [B, K] laws that the drafts were drawn from.
            drafts: bool [B, K, d].
        """
        odds = p.log_ratio(q, drafts).exp() * self.gain(p, q, drafts)
        return torch.nan_to_num(odds, nan=0.0).clamp(max=1)  # 0 times infinite odds is no number

    def passes(self, p: Any, q: Any, drafts: Tensor, u: Tensor) -> Tensor:
        """See `Rule.passes`."""
        return u[..., 0] < self.chance(p, q, drafts)

    def spent(self, p: Any, q: Any, drafts: Tensor, exactly: bool) -> Tensor:
        """See `Rule.spent`."""
        return (self.chance(p, q, drafts) - p.ratio(q, drafts)).abs()


@dataclass(frozen=True)
class HammingGrouped(FlipRule):
    """The cluster of a token is it and the tokens with one bit flipped, likeliest first. Lossy.

    Attributes:
        size: tokens of a cluster besides the draft, at least 1; at most d count.
    """

    name: ClassVar[str] = "hamming-grouped"
    size: int = 4

    def __post_init__(self) -> None:
        require(self, "size", self.size >= 1, "at least 1")

    def gain(self, p: Any, q: Any, drafts: Tensor) -> Tensor:
        """See `FlipRule.gain`."""
        there = p.flip_odds(drafts)
        odds, flipped = there.topk(min(self.size, there.shape[-1]), dim=-1)
        drafted = q.flip_odds(drafts).gather(-1, flipped)
        return (1 + odds.sum(-1)) / (1 + drafted.sum(-1))
