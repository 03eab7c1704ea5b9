"""Typical acceptance (Cai et al. 2024, Medusa): keep what is not improbable under p."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from visual_ar.accel.rules.rule import KernelForm, TableRule, require
from visual_ar.tokens.codes import CategoricalLaw


@dataclass(frozen=True)
class Typical(TableRule):
    """Keeps x where p(x) > min(epsilon, alpha exp(-H(p))), H in nats; corrects from p.

    Attributes:
        epsilon: hard threshold, in (0, 1).
        alpha: threshold relative to exp(-entropy), in (0, 1].
    """

    name: ClassVar[str] = "typical"
    structure: ClassVar[str | None] = "Typical"
    epsilon: float = 0.09
    alpha: float = 0.3

    def __post_init__(self) -> None:
        require(self, "epsilon", 0 < self.epsilon < 1, "in (0, 1)")
        require(self, "alpha", 0 < self.alpha <= 1, "in (0, 1]")

    def kernel_form(self) -> KernelForm:
        """See `Rule.kernel_form`."""
        return KernelForm("Typical", (self.epsilon, self.alpha))

    def chance(
        self, p: CategoricalLaw, q: CategoricalLaw, tokens: Tensor, depth: Tensor | None = None
    ) -> Tensor:
        """See `TableRule.chance`: 0 or 1."""
        entropy = torch.special.entr(p.probabilities).sum(-1, keepdim=True)
        threshold = (self.alpha * torch.exp(-entropy)).clamp(max=self.epsilon)
        return (p.probs(tokens) > threshold).to(p.probabilities.dtype)

    def correction(
        self, p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor, position: Tensor
    ) -> CategoricalLaw:
        """See `TableRule.correction`."""
        return p.rows(position[:, None])

    def _after_rejection(self, p: CategoricalLaw, q: CategoricalLaw, rejected: Tensor) -> Tensor:
        return p.probabilities

    def _correction_error(self, p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor) -> Tensor:
        return p.distance(p.residual_law(q))
