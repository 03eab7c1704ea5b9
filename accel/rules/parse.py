"""Acceptance rules as named, configured objects, and how their names are read.

A rule is written as one string, such as "exact" or "omega/omega=1.2/decay=0.1", so that it fits a
configuration, a command line and the recipe inside a picture. The formulas are in `acceptance`.
Knows nothing about models or about who drafted.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from visual_ar.accel.rules import acceptance
from visual_ar.accel.rules.bit_rules import BIT_RULES, BitRule, OmegaBits, WholeToken
from visual_ar.accel.rules.code_rules import Grouped, Lantern, LanternPlus
from visual_ar.accel.rules.rule import Rule, TokenRule, require
from visual_ar.sampling import CategoricalLaw


@dataclass(frozen=True)
class Exact(TokenRule):
    """Speculative sampling, u q(x) < p(x) (Leviathan et al. 2023). Lossless."""

    name: ClassVar[str] = "exact"
    lossless: ClassVar[bool] = True

    def chance(
        self, p: CategoricalLaw, q: CategoricalLaw, tokens: Tensor, depth: Tensor | None = None
    ) -> Tensor:
        return acceptance.ratio(acceptance.of_tokens(p, tokens), acceptance.of_tokens(q, tokens))

    def run(self, p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor, u: Tensor) -> Tensor:
        return acceptance.leading_run(acceptance.exact(p, q, drafts, u))

    def on_bits(self) -> BitRule:
        return WholeToken()


@dataclass(frozen=True)
class Block(Rule):
    """Block verification (Sun et al. 2024): drafts are judged together. Lossless where allowed."""

    name: ClassVar[str] = "block"
    lossless: ClassVar[bool] = True
    fresh_only: ClassVar[bool] = True

    def run(self, p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor, u: Tensor) -> Tensor:
        return acceptance.block_run(p, q, drafts, u)

    def correction(
        self, p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor, position: Tensor
    ) -> CategoricalLaw:
        scale = acceptance.at(acceptance.block_ratios(p, q, drafts), position)
        here = position[:, None]
        return acceptance.residual(p.rows(here), q.rows(here), scale)

    def spent(self, p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor, exactly: bool) -> Tensor:
        return torch.zeros_like(p.prob(drafts))


@dataclass(frozen=True)
class Omega(TokenRule):
    """Cool-SD: min(1, omega p / q), omega falling towards 1 along the window.

    Attributes:
        omega: factor at the first draft, at least 1.
        decay: nu of omega exp(-nu i) at draft i, at least 0.
    """

    name: ClassVar[str] = "omega"
    omega: float = 1.1
    decay: float = 0.0

    def __post_init__(self) -> None:
        require(self, "omega", self.omega >= 1, "at least 1")
        require(self, "decay", self.decay >= 0, "at least 0")

    def chance(
        self, p: CategoricalLaw, q: CategoricalLaw, tokens: Tensor, depth: Tensor | None = None
    ) -> Tensor:
        if depth is None:
            depth = torch.arange(tokens.shape[1], device=tokens.device)
        scale = (self.omega * torch.exp(-self.decay * depth)).clamp(min=1.0)
        return acceptance.omega(p, q, tokens, scale)

    def on_bits(self) -> BitRule:
        return OmegaBits(self.omega, self.decay)


@dataclass(frozen=True)
class Typical(TokenRule):
    """Typical acceptance (Medusa): keep what is not improbable under p; correct from p.

    Attributes:
        epsilon: hard threshold, in (0, 1).
        alpha: threshold relative to exp(-entropy), in (0, 1].
    """

    name: ClassVar[str] = "typical"
    epsilon: float = 0.09
    alpha: float = 0.3

    def __post_init__(self) -> None:
        require(self, "epsilon", 0 < self.epsilon < 1, "in (0, 1)")
        require(self, "alpha", 0 < self.alpha <= 1, "in (0, 1]")

    def chance(
        self, p: CategoricalLaw, q: CategoricalLaw, tokens: Tensor, depth: Tensor | None = None
    ) -> Tensor:
        return acceptance.typical(p, tokens, self.epsilon, self.alpha)

    def correction(
        self, p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor, position: Tensor
    ) -> CategoricalLaw:
        return p.rows(position[:, None])

    def _after_rejection(self, p: CategoricalLaw, q: CategoricalLaw, rejected: Tensor) -> Tensor:
        return p.probabilities

    def _correction_error(self, p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor) -> Tensor:
        return acceptance.distance(p, acceptance.residual(p, q))


RULES: dict[str, type[Rule]] = {
    rule.name: rule for rule in (Exact, Block, Grouped, Lantern, LanternPlus, Omega, Typical)
}


def parse_rule(text: str) -> Rule | BitRule:
    """Builds a rule from its name and options, such as "grouped/size=24/gap=0.1".

    Raises:
        ValueError: unknown rule or option, or a value that is no number or out of its range.
    """
    name, *options = str(text).split("/")
    every: dict[str, type[Rule] | type[BitRule]] = {**RULES, **BIT_RULES}
    if name not in every:
        raise ValueError(f"rule must be one of {', '.join(every)}, got {name!r}")
    known = {f.name: f for f in dataclasses.fields(every[name]) if f.init and f.repr}
    values: dict[str, Any] = {}
    for part in options:
        key, _, value = part.partition("=")
        if key not in known:
            names = ", ".join(known) or "none"
            raise ValueError(f"rule {name} has the options {names}, got {key!r}")
        values[key] = _number(value, known[key].default, f"{key} of rule {name}")
    return every[name](**values)


def _number(text: str, like: Any, what: str) -> int | float:
    kind = type(like)
    try:
        return kind(text)
    except ValueError as error:
        noun = "a whole number" if kind is int else "a number"
        raise ValueError(f"{what} must be {noun}, got {text!r}") from error
