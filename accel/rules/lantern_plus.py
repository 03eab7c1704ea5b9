"""LANTERN++ (Park et al. 2025, arXiv 2502.06352): the mass added is relative to the draft's own."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from visual_ar.accel.rules.lantern import Lantern
from visual_ar.accel.rules.rule import KernelForm, require
from visual_ar.tokens.codes import CategoricalLaw


@dataclass(frozen=True)
class LanternPlus(Lantern):
    """LANTERN whose added mass is at most (lambda - 1) times that of the draft itself. Lossy.

    Attributes:
        factor: lambda, above 1.
    """

    name: ClassVar[str] = "lantern++"
    delta: float = dataclasses.field(default=1.0, init=False, repr=False)
    factor: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "factor", self.factor > 1, "above 1")

    def kernel_form(self) -> KernelForm:
        """See `Rule.kernel_form`."""
        return KernelForm("Lantern", (0.0, self.factor - 1), codes=self.codes)

    def _bound(self, p: CategoricalLaw, tokens: Tensor) -> Tensor | float:
        return (self.factor - 1) * p.probs(tokens)
