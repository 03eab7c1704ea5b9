"""Block verification (Sun et al. 2024, Block Verification Accelerates Speculative Decoding)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from visual_ar.accel.rules.rule import Rule
from visual_ar.tokens.codes import CategoricalLaw
from visual_ar.tokens.kind import TABLE
from visual_ar.tokens.law import Redrawn
from visual_ar.tokens.numbers import Numbers

_TINY = 1e-30


@dataclass(frozen=True)
class Block(Rule):
    """Algorithm 2: drafts are judged together, so it looks ahead. Lossless where allowed."""

    name: ClassVar[str] = "block"
    lossless: ClassVar[bool] = True
    fresh_only: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({TABLE})

    def passes(self, p: Any, q: Any, drafts: Tensor, u: Tensor) -> Tensor:
        """See `Rule.passes`: the drafts of the run, which no draft passes by itself."""
        count = torch.arange(drafts.shape[1], device=drafts.device)
        return count < block_run(p, q, drafts, u)[:, None]

    def run(
        self, p: Any, q: Any, drafts: Tensor, u: Tensor, refused: Tensor | None = None
    ) -> Tensor:
        """See `Rule.run`."""
        return block_run(p, q, drafts, u)

    def replacement(
        self, p: Any, q: Any, drafts: Tensor, position: Tensor, numbers: Numbers
    ) -> Redrawn:
        """See `Rule.replacement`: a draw from the correction."""
        law = self.correction(p, q, drafts, position)
        return Redrawn(law.draw(numbers.instead.gather(1, position[:, None])))

    def correction(
        self, p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor, position: Tensor
    ) -> CategoricalLaw:
        """norm([r p - q]+), r the ratio of the drafts kept. Arguments as of `replacement`."""
        here = position[:, None]
        scale = block_ratios(p, q, drafts).gather(1, here)
        return p.rows(here).residual_law(q.rows(here), scale)


def block_ratios(p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor) -> Tensor:
    """r_0 .. r_K: r_i = min(1, r_{i-1} p_i(x_i) / q_i(x_i)), r_0 = 1.

    Args:
        p: [B, K] target laws.
        q: [B, K] draft laws.
        drafts: int64 [B, K].

    Returns:
        [B, K + 1].
    """
    step = p.prob(drafts) / q.prob(drafts).clamp(min=_TINY)
    ratios = [torch.ones_like(step[:, 0])]
    for column in step.unbind(1):
        ratios.append((ratios[-1] * column).clamp(max=1.0))
    return torch.stack(ratios, 1)


def block_run(p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor, u: Tensor) -> Tensor:
    """The last i with u_i <= h_i, the number of drafts that block verification keeps.

    h_i = S_i / (S_i + 1 - r_i) with S_i the mass of [r_i p_{i+1} - q_{i+1}]+, and h_K = r_K.

    Args:
        p: [B, K] target laws.
        q: [B, K] draft laws, of drafts that were all drawn after the last verification.
        drafts: int64 [B, K].
        u: [B, K] in (0, 1).

    Returns:
        int64 [B].
    """
    ratios = block_ratios(p, q, drafts)
    scaled = ratios[:, 1:-1, None] * p.probabilities[:, 1:]
    left = (scaled - q.probabilities[:, 1:]).clamp(min=0).sum(-1)  # S_1 .. S_{K-1}
    chance = left / (left + 1 - ratios[:, 1:-1]).clamp(min=_TINY)
    kept = u < torch.cat([chance, ratios[:, -1:]], 1)
    numbers = torch.arange(1, kept.shape[1] + 1, device=kept.device)
    return (kept * numbers).amax(1)
