"""Cool-SD (AAAI 2026): the exact test loosened by a factor, min(1, omega_k p / q)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from visual_ar.accel.rules.rule import KernelForm, Rule, TableRule, require
from visual_ar.tokens.codes import CategoricalLaw, ratio
from visual_ar.tokens.kind import RATIO, TEST
from visual_ar.tokens.law import Redrawn
from visual_ar.tokens.numbers import Numbers


@dataclass(frozen=True)
class Omega(TableRule):
    """A factor on the odds of every draft, falling towards 1 along the window.

    Of any law that tells the odds of a draft.

    Attributes:
        omega: factor at the first draft, at least 1.
        decay: nu of omega exp(-nu i) at draft i, at least 0.
    """

    name: ClassVar[str] = "omega"
    needs: ClassVar[frozenset[str]] = frozenset({TEST, RATIO})
    structure: ClassVar[str | None] = "Omega"
    omega: float = 1.1
    decay: float = 0.0

    def __post_init__(self) -> None:
        require(self, "omega", self.omega >= 1, "at least 1")
        require(self, "decay", self.decay >= 0, "at least 0")

    def kernel_form(self) -> KernelForm:
        """See `Rule.kernel_form`."""
        return KernelForm("Omega", (self.omega, self.decay))

    def scale(self, drafts: Tensor, depth: Tensor | None = None) -> Tensor:
        """The factor by position, [K] or [B, K]. drafts: [B, K, *]; depth: see `chance`."""
        if depth is None:
            depth = torch.arange(drafts.shape[1], device=drafts.device)
        return (self.omega * torch.exp(-self.decay * depth)).clamp(min=1.0)

    def chance(
        self, p: CategoricalLaw, q: CategoricalLaw, tokens: Tensor, depth: Tensor | None = None
    ) -> Tensor:
        """See `TableRule.chance`."""
        scale = self.scale(tokens, depth)
        return ratio(p.probs(tokens) * scale[..., None], q.probs(tokens))

    def passes(self, p: Any, q: Any, drafts: Tensor, u: Tensor) -> Tensor:
        """See `Rule.passes`."""
        first = u if u.dim() == 2 else u[..., 0]
        return first < p.ratio(q, drafts, self.scale(drafts))

    def replacement(
        self, p: Any, q: Any, drafts: Tensor, position: Tensor, numbers: Numbers
    ) -> Redrawn:
        """See `Rule.replacement`."""
        return Rule.replacement(self, p, q, drafts, position, numbers)

    def spent(self, p: Any, q: Any, drafts: Tensor, exactly: bool) -> Tensor:
        """See `Rule.spent`."""
        if exactly:
            return super().spent(p, q, drafts, exactly)
        return (p.ratio(q, drafts, self.scale(drafts)) - p.ratio(q, drafts)).abs()
