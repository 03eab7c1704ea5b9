"""The lossless test u q(x) < p(x) of speculative sampling (Leviathan et al. 2023, Algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from visual_ar.accel.rules.rule import Rule, TableRule
from visual_ar.tokens.codes import CategoricalLaw, ratio
from visual_ar.tokens.kind import TEST
from visual_ar.tokens.law import Law, Redrawn
from visual_ar.tokens.numbers import Numbers


@dataclass(frozen=True)
class Exact(TableRule):
    """Speculative sampling of whole tokens: accepts the most that a lossless rule can.

    Of any law that has an exact test. Of sub-codes the test goes along the sub-codes.
    """

    name: ClassVar[str] = "exact"
    lossless: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({TEST})
    structure: ClassVar[str | None] = "Exact"

    def chance(
        self, p: CategoricalLaw, q: CategoricalLaw, tokens: Tensor, depth: Tensor | None = None
    ) -> Tensor:
        """See `TableRule.chance`."""
        return ratio(p.probs(tokens), q.probs(tokens))

    def follows_coupling(self, p: Law) -> bool:
        """See `Rule.follows_coupling`."""
        return p.coupling_is_exact

    def passes(self, p: Any, q: Any, drafts: Tensor, u: Tensor) -> Tensor:
        """See `Rule.passes`."""
        return p.keep(q, drafts, u)

    def replacement(
        self, p: Any, q: Any, drafts: Tensor, position: Tensor, numbers: Numbers
    ) -> Redrawn:
        """See `Rule.replacement`."""
        return Rule.replacement(self, p, q, drafts, position, numbers)
