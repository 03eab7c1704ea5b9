"""Acceptance rules as named, configured objects: how a run of drafts is tested, redrawn, and paid.

A rule is written as one string, such as "exact" or "omega/omega=1.2/decay=0.1", so that it fits a
configuration, a command line and the recipe inside a picture. The formulas are in `acceptance`.
Knows nothing about models or about who drafted.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from visual_ar.accel import acceptance
from visual_ar.accel.bit_rules import BIT_RULES, BitRule, OmegaBits, WholeToken
from visual_ar.sampling import CategoricalLaw
from visual_ar.tokenizers.base import VisualTokenizer


@dataclass(frozen=True)
class Rule(ABC):
    """What decides how many drafts of a chain are kept, and what replaces the first that is not.

    Attributes:
        lossless: whether the emitted tokens follow p exactly.
        fresh_only: whether it is exact only for drafts all drawn after the last verification.
        compares_codes: whether it reads the code book of a tokenizer.
    """

    lossless: ClassVar[bool] = False
    fresh_only: ClassVar[bool] = False
    compares_codes: ClassVar[bool] = False

    def check(self, tokenizer: VisualTokenizer | None) -> None:
        """Raises ValueError when the rule needs a code book and there is none that fits."""
        if self.compares_codes and tokenizer is None:
            raise ValueError(
                f"rule {_name(self)} compares codes and needs a tokenizer with a code book, such "
                "as VQTokenizer; decode with tokenizer=... or through a pipeline"
            )

    def bind(self, tokenizer: VisualTokenizer | None) -> Rule:
        """The rule with the tables it reads. Raises what `check` raises."""
        return self

    def on_bits(self) -> BitRule:
        """The rule's form for tokens of d bits.

        Raises:
            ValueError: it has none.
        """
        raise ValueError(
            f"rule {_name(self)} reads a table of all codes, of which tokens of d bits have 2^d; "
            f"rule must be one of exact, omega, {', '.join(BIT_RULES)} for a model of bits"
        )

    @abstractmethod
    def run(self, p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor, u: Tensor) -> Tensor:
        """How many drafts are kept.

        Args:
            p: [B, K] target laws.
            q: [B, K] laws that the drafts were drawn from.
            drafts: int64 [B, K].
            u: [B, K] in (0, 1).

        Returns:
            int64 [B], 0..K.
        """

    @abstractmethod
    def correction(
        self, p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor, position: Tensor
    ) -> CategoricalLaw:
        """The law of the token that replaces the draft at one position of every picture.

        Args:
            p: [B, K] target laws.
            q: [B, K] draft laws.
            drafts: int64 [B, K].
            position: int64 [B], the first draft that was not kept, below K.

        Returns:
            [B, 1] laws.
        """

    @abstractmethod
    def spent(self, p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor, exactly: bool) -> Tensor:
        """Total variation between the emitted law and p at every position.

        Args:
            p: [B, K] target laws.
            q: [B, K] draft laws.
            drafts: int64 [B, K].
            exactly: sum over the code book; otherwise an upper bound, estimated from the drafts.

        Returns:
            [B, K].
        """

    def fill(
        self,
        p: CategoricalLaw,
        q: CategoricalLaw,
        drafts: Tensor,
        run: Tensor,
        fresh: Tensor,
        u: Tensor,
    ) -> Tensor:
        """The window after a pass: kept drafts, the correction, and the fresh tail.

        Args:
            p: [B, K + 1] target laws.
            q: [B, K] draft laws, K at least 1.
            drafts: int64 [B, K].
            run: int64 [B], drafts kept.
            fresh: int64 [B, K + 1], the tail's tokens at every position.
            u: [B, K] in (0, 1), for the correction.

        Returns:
            int64 [B, K + 1].
        """
        count = drafts.shape[1]
        position = run.clamp(max=count - 1)
        law = self.correction(p.first(count), q, drafts, position)
        corrected = law.sample(acceptance.at(u, position))
        column = torch.arange(count, device=run.device)
        tail = torch.where(column == run[:, None], corrected, fresh[:, :-1])
        return torch.cat([torch.where(column < run[:, None], drafts, tail), fresh[:, -1:]], dim=1)


@dataclass(frozen=True)
class TokenRule(Rule):
    """A rule that tests every draft by itself, with a chance of its own."""

    @abstractmethod
    def chance(self, p: CategoricalLaw, q: CategoricalLaw, tokens: Tensor) -> Tensor:
        """Chance of keeping tokens, were they the draft. int64 [B, K, M]; returns [B, K, M]."""

    def run(self, p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor, u: Tensor) -> Tensor:
        chance = self.chance(p, q, drafts[..., None])[..., 0]
        return acceptance.leading_run(u < chance)

    def correction(
        self, p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor, position: Tensor
    ) -> CategoricalLaw:
        here = position[:, None]
        return acceptance.residual(p.rows(here), q.rows(here))

    def emitted(self, p: CategoricalLaw, q: CategoricalLaw) -> CategoricalLaw:
        """The law of the token emitted at a position, given all before it: [B, K] laws, exactly."""
        chance = self.chance(p, q, _every_token(p))
        kept = q.probabilities * chance
        rest = 1 - kept.sum(-1, keepdim=True)
        after = self._after_rejection(p, q, q.probabilities - kept)
        return CategoricalLaw(probabilities=kept + rest.clamp(min=0) * after)

    def _after_rejection(self, p: CategoricalLaw, q: CategoricalLaw, rejected: Tensor) -> Tensor:
        """Mean correction law. rejected: [B, K, V], chance that a token was drafted and refused."""
        return acceptance.residual(p, q).probabilities

    def spent(self, p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor, exactly: bool) -> Tensor:
        """See `Rule.spent`.

        The bound is |a(x) - min(1, p(x) / q(x))|, x the draft and a(x) its chance, plus 1 - a(x)
        times the distance of its correction from the exact one; the draft estimates its mean over q
        without bias.
        """
        if exactly:
            return acceptance.distance(self.emitted(p, q), p)
        chance = self.chance(p, q, drafts[..., None])[..., 0]
        honest = acceptance.ratio(p.prob(drafts), q.prob(drafts))
        return (chance - honest).abs() + (1 - chance) * self._correction_error(p, q, drafts)

    def _correction_error(self, p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor) -> Tensor:
        return torch.zeros_like(p.prob(drafts))


@dataclass(frozen=True)
class Exact(TokenRule):
    """Speculative sampling, u q(x) < p(x) (Leviathan et al. 2023). Lossless."""

    lossless: ClassVar[bool] = True

    def chance(self, p: CategoricalLaw, q: CategoricalLaw, tokens: Tensor) -> Tensor:
        return acceptance.ratio(acceptance.of_tokens(p, tokens), acceptance.of_tokens(q, tokens))

    def run(self, p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor, u: Tensor) -> Tensor:
        return acceptance.leading_run(acceptance.exact(p, q, drafts, u))

    def on_bits(self) -> BitRule:
        return WholeToken()


@dataclass(frozen=True)
class Block(Rule):
    """Block verification (Sun et al. 2024): drafts are judged together. Lossless where allowed."""

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

    omega: float = 1.1
    decay: float = 0.0

    def __post_init__(self) -> None:
        _require(self, "omega", self.omega >= 1, "at least 1")
        _require(self, "decay", self.decay >= 0, "at least 0")

    def chance(self, p: CategoricalLaw, q: CategoricalLaw, tokens: Tensor) -> Tensor:
        position = torch.arange(tokens.shape[1], device=tokens.device)
        scale = (self.omega * torch.exp(-self.decay * position)).clamp(min=1.0)
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

    epsilon: float = 0.09
    alpha: float = 0.3

    def __post_init__(self) -> None:
        _require(self, "epsilon", 0 < self.epsilon < 1, "in (0, 1)")
        _require(self, "alpha", 0 < self.alpha <= 1, "in (0, 1]")

    def chance(self, p: CategoricalLaw, q: CategoricalLaw, tokens: Tensor) -> Tensor:
        return acceptance.typical(p, tokens, self.epsilon, self.alpha)

    def correction(
        self, p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor, position: Tensor
    ) -> CategoricalLaw:
        return p.rows(position[:, None])

    def _after_rejection(self, p: CategoricalLaw, q: CategoricalLaw, rejected: Tensor) -> Tensor:
        return p.probabilities

    def _correction_error(self, p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor) -> Tensor:
        return acceptance.distance(p, acceptance.residual(p, q))


@dataclass(frozen=True)
class Grouped(TokenRule):
    """Grouped Speculative Decoding: the ratio of clusters next to the draft in the order of p.

    A resample inside the cluster would make the cluster law exact, but the drafts behind were
    tested after the draft itself, so the run would end wherever the resample differs; drawn so as
    to differ as rarely as possible, that is the exact test again, and nothing is gained.

    Attributes:
        size: tokens of a cluster besides the draft, even, at least 2.
        distance: largest squared distance between code vectors of a cluster.
        gap: largest difference of probability within a cluster, in (0, 1].
        vectors: [V, d] code vectors; bound from the tokenizer.
    """

    compares_codes: ClassVar[bool] = True
    size: int = 14
    distance: float = 0.5
    gap: float = 0.15
    vectors: Tensor | None = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        _require(self, "size", self.size >= 2 and self.size % 2 == 0, "even and at least 2")
        _require(self, "distance", self.distance > 0, "above 0")
        _require(self, "gap", 0 < self.gap <= 1, "in (0, 1]")

    def bind(self, tokenizer: VisualTokenizer | None) -> Rule:
        self.check(tokenizer)
        assert tokenizer is not None
        return dataclasses.replace(self, vectors=tokenizer.code_vectors())

    def chance(self, p: CategoricalLaw, q: CategoricalLaw, tokens: Tensor) -> Tensor:
        assert self.vectors is not None, "bind the rule to a tokenizer first"
        if tokens.shape[-1] == 1:
            cluster, member = acceptance.cluster_of_drafts(p, tokens[..., 0], self.size)
            cluster, member = cluster[..., None, :], member[..., None, :]
        else:
            cluster, member = acceptance.cluster_of_all(p, self.size)
        away = (self.vectors[cluster] - self.vectors[tokens][..., None, :]).square().sum(-1)
        return acceptance.cluster_ratio(
            p, q, tokens, cluster, member & (away < self.distance), self.gap
        )


@dataclass(frozen=True)
class Lantern(TokenRule):
    """LANTERN: a draft counts with its nearest codes, whose mass together is at most `delta`.

    Attributes:
        neighbours: codes looked at, at least 1.
        delta: largest mass added, in (0, 1].
        table: int64 [V, k] nearest codes; bound from the tokenizer.
    """

    compares_codes: ClassVar[bool] = True
    neighbours: int = 10
    delta: float = 0.1
    table: Tensor | None = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        _require(self, "neighbours", self.neighbours >= 1, "at least 1")
        _require(self, "delta", 0 < self.delta <= 1, "in (0, 1]")

    def check(self, tokenizer: VisualTokenizer | None) -> None:
        super().check(tokenizer)
        assert tokenizer is not None
        most = tokenizer.codebook_size - 1
        _require(self, "neighbours", self.neighbours <= most, f"at most {most} for this code book")

    def bind(self, tokenizer: VisualTokenizer | None) -> Rule:
        self.check(tokenizer)
        assert tokenizer is not None
        return dataclasses.replace(self, table=tokenizer.neighbours(self.neighbours))

    def chance(self, p: CategoricalLaw, q: CategoricalLaw, tokens: Tensor) -> Tensor:
        added, _, _ = self._aggregated(p, tokens)
        own = acceptance.of_tokens(p, tokens)
        return acceptance.ratio(own + added, acceptance.of_tokens(q, tokens)) * (own > 0)

    def correction(
        self, p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor, position: Tensor
    ) -> CategoricalLaw:
        p, q = p.rows(position[:, None]), q.rows(position[:, None])
        rest = acceptance.residual(p, q)
        _, near, inside = self._aggregated(p, acceptance.at(drafts, position)[..., None])
        removed = torch.zeros_like(rest.probabilities)
        removed.scatter_add_(-1, near[..., 0, :], inside[..., 0, :].to(removed.dtype))
        return acceptance.normalised(rest.probabilities * (removed == 0), rest)

    def _after_rejection(self, p: CategoricalLaw, q: CategoricalLaw, rejected: Tensor) -> Tensor:
        """Sums over the refused drafts, whose corrections differ by the set that is removed."""
        rest = acceptance.residual(p, q).probabilities
        _, near, inside = self._aggregated(p, _every_token(p))
        gone = rest.gather(-1, near.flatten(-2)).view(near.shape) * inside  # [B, K, V, k]
        left = 1 - gone.sum(-1)
        share = torch.where(left > 1e-6, rejected / left.clamp(min=1e-6), 0.0)
        whole = torch.where(left > 1e-6, 0.0, rejected)  # nothing is left: the ordinary residual
        weights = (share[..., None] * inside).flatten(-2)
        removed = torch.zeros_like(rest).scatter_add_(-1, near.flatten(-2), weights)
        mixed = rest * (share.sum(-1, keepdim=True) - removed) + rest * whole.sum(-1, keepdim=True)
        return mixed / mixed.sum(-1, keepdim=True).clamp(min=1e-30)

    def _correction_error(self, p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor) -> Tensor:
        rest = acceptance.residual(p, q)
        _, near, inside = self._aggregated(p, drafts[..., None])
        gone = (acceptance.of_tokens(rest, near[..., 0, :]) * inside[..., 0, :]).sum(-1)
        return torch.where(gone < 1 - 1e-6, gone, 0.0)

    def _aggregated(self, p: CategoricalLaw, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert self.table is not None, "bind the rule to a tokenizer first"
        return acceptance.aggregated(p, tokens, self.table, self._bound(p, tokens))

    def _bound(self, p: CategoricalLaw, tokens: Tensor) -> Tensor | float:
        return self.delta


@dataclass(frozen=True)
class LanternPlus(Lantern):
    """LANTERN++: the mass added is at most (lambda - 1) times that of the draft itself.

    Attributes:
        factor: lambda, above 1.
    """

    delta: float = dataclasses.field(default=1.0, init=False, repr=False)
    factor: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self, "factor", self.factor > 1, "above 1")

    def _bound(self, p: CategoricalLaw, tokens: Tensor) -> Tensor | float:
        return (self.factor - 1) * acceptance.of_tokens(p, tokens)


RULES: dict[str, type[Rule]] = {
    "exact": Exact,
    "block": Block,
    "grouped": Grouped,
    "lantern": Lantern,
    "lantern++": LanternPlus,
    "omega": Omega,
    "typical": Typical,
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


def _require(rule: Rule, option: str, met: bool, range_: str) -> None:
    if not met:
        value = getattr(rule, option)
        raise ValueError(f"{option} of rule {_name(rule)} must be {range_}, got {value}")


def _name(rule: Rule) -> str:
    return next(name for name, cls in RULES.items() if cls is type(rule))


def _every_token(law: CategoricalLaw) -> Tensor:
    shape = law.probabilities.shape
    return torch.arange(shape[-1], device=law.probabilities.device).expand(shape)
