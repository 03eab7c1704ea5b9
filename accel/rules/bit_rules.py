"""Acceptance rules of drafts that are bit vectors: exact ones, and Hamming neighbourhoods.

Nothing here sums over the 2^d tokens: chances come from ratios of the draft and of the tokens one
bit away, replacements from `BitLaw.residual` or from flipped bits. A rule of codes that has a form
for bits gives it with `Rule.on_bits`. Knows nothing about models or about who drafted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from visual_ar.accel.rules import bit_acceptance
from visual_ar.accel.rules.acceptance import at
from visual_ar.bits import BitLaw
from visual_ar.tokenizers.visual_tokenizer import VisualTokenizer


@dataclass(frozen=True)
class BitRule(ABC):
    """What decides whether each draft of a chain passes, and what replaces the first that fails.

    Attributes:
        name: as written in a configuration.
        lossless: whether the emitted tokens follow p exactly.
        fresh_only: as of `Rule`; no rule of bits looks ahead.
    """

    name: ClassVar[str]
    lossless: ClassVar[bool] = False
    fresh_only: ClassVar[bool] = False

    def check(self, tokenizer: VisualTokenizer | None) -> None:
        """Raises ValueError: what is checked against a code book has codes."""
        raise ValueError(
            f"rule {self.name} compares bits and needs a model whose tokens are bit vectors"
        )

    def on_bits(self) -> BitRule:
        """Itself."""
        return self

    @abstractmethod
    def chance(self, p: BitLaw, q: BitLaw, drafts: Tensor) -> Tensor:
        """Chance of keeping whole drafts.

        Args:
            p: [B, K] target laws.
            q: [B, K] laws that the drafts were drawn from.
            drafts: bool [B, K, d].

        Returns:
            fp32 [B, K].
        """

    def passes(self, p: BitLaw, q: BitLaw, drafts: Tensor, u: Tensor) -> Tensor:
        """Whether each draft passes by itself: bool [B, K]. u: [B, K, d] in (0, 1)."""
        return u[..., 0] < self.chance(p, q, drafts)

    def correction(
        self,
        p: BitLaw,
        q: BitLaw,
        drafts: Tensor,
        u: Tensor,
        numbers: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Replaces refused drafts, one a picture.

        Args:
            p: [B, 1] target laws.
            q: [B, 1] draft laws.
            drafts: bool [B, 1, d].
            u: [B, 1, d], the numbers that `passes` had.
            numbers: seed int64 [B], rank int64 [B, 1] and attempt int64 [B] of a residual draw.

        Returns:
            bool [B, 1, d], and bool [B, 1], False where the replacement must be asked for again
            with another attempt.
        """
        return p.residual(q, *numbers)

    def spent(self, p: BitLaw, q: BitLaw, drafts: Tensor) -> Tensor:
        """Estimated bound of the total variation spent: fp32 [B, K]; see `TokenRule.spent`."""
        honest = p.log_ratio(q, drafts).exp().clamp(max=1)
        return (self.chance(p, q, drafts) - honest).abs()


@dataclass(frozen=True)
class WholeToken(BitRule):
    """Speculative sampling of whole tokens (Leviathan et al. 2023): accepts the most. Lossless."""

    name: ClassVar[str] = "exact"
    lossless: ClassVar[bool] = True

    def chance(self, p: BitLaw, q: BitLaw, drafts: Tensor) -> Tensor:
        return p.log_ratio(q, drafts).exp().clamp(max=1)

    def passes(self, p: BitLaw, q: BitLaw, drafts: Tensor, u: Tensor) -> Tensor:
        return bit_acceptance.by_token(p, q, drafts, u[..., 0])


@dataclass(frozen=True)
class Bitwise(BitRule):
    """Speculative sampling of every bit: a refused bit is flipped, nothing is drawn. Lossless.

    Of laws over sub-codes, the same of every sub-code; the only rule that they have.
    """

    name: ClassVar[str] = "bitwise"
    lossless: ClassVar[bool] = True

    def chance(self, p: BitLaw, q: BitLaw, drafts: Tensor) -> Tensor:
        return (p.bit_prob(drafts) / q.bit_prob(drafts)).clamp(max=1).prod(-1)

    def passes(self, p: BitLaw, q: BitLaw, drafts: Tensor, u: Tensor) -> Tensor:
        return bit_acceptance.by_part(p, q, drafts, u).accepted

    def correction(
        self,
        p: BitLaw,
        q: BitLaw,
        drafts: Tensor,
        u: Tensor,
        numbers: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        verdict = bit_acceptance.by_part(p, q, drafts, u)
        return verdict.tokens, torch.ones_like(verdict.accepted)


@dataclass(frozen=True)
class OmegaBits(BitRule):
    """Cool-SD on whole tokens; the options are those of `rules.Omega`."""

    name: ClassVar[str] = "omega"
    omega: float
    decay: float

    def chance(self, p: BitLaw, q: BitLaw, drafts: Tensor) -> Tensor:
        position = torch.arange(drafts.shape[1], device=drafts.device)
        scale = (self.omega * torch.exp(-self.decay * position)).clamp(min=1.0)
        return (p.log_ratio(q, drafts).exp() * scale).clamp(max=1)


@dataclass(frozen=True)
class HammingGrouped(BitRule):
    """Grouped acceptance (So et al. 2025, eq. 6): the cluster of a token is it and those near it.

    Near are the tokens with one bit flipped, likeliest first.

    Attributes:
        size: tokens of a cluster besides the draft, at least 1; at most d count.
    """

    name: ClassVar[str] = "hamming-grouped"
    size: int = 4

    def __post_init__(self) -> None:
        _require(self, "size", self.size >= 1, "at least 1")

    def chance(self, p: BitLaw, q: BitLaw, drafts: Tensor) -> Tensor:
        there = _flip_odds(p, drafts)
        odds, bits = there.topk(min(self.size, p.bits), dim=-1)
        drafted = _flip_odds(q, drafts).gather(-1, bits)
        gain = (1 + odds.sum(-1)) / (1 + drafted.sum(-1))
        return _kept(p.log_ratio(q, drafts).exp() * gain)


@dataclass(frozen=True)
class HammingLantern(BitRule):
    """LANTERN (Jang et al. 2025, eq. 4) whose nearest codes are the tokens with one bit flipped.

    They are equally near, so the likeliest come first. A refused draft is replaced by the exact
    residual, from which no neighbour is removed.

    Attributes:
        flips: tokens looked at, at least 1; at most d count.
        delta: largest mass added, in (0, 1].
    """

    name: ClassVar[str] = "hamming-lantern"
    flips: int = 8
    delta: float = 0.1

    def __post_init__(self) -> None:
        _require(self, "flips", self.flips >= 1, "at least 1")
        _require(self, "delta", 0 < self.delta <= 1, "in (0, 1]")

    def chance(self, p: BitLaw, q: BitLaw, drafts: Tensor) -> Tensor:
        odds = _flip_odds(p, drafts).topk(min(self.flips, p.bits), dim=-1).values.cumsum(-1)
        inside = p.prob(drafts)[..., None] * odds <= self.delta
        gain = 1 + torch.where(inside, odds, 0.0).amax(-1)
        return _kept(p.log_ratio(q, drafts).exp() * gain)


BIT_RULES: dict[str, type[BitRule]] = {
    "bitwise": Bitwise,
    "hamming-grouped": HammingGrouped,
    "hamming-lantern": HammingLantern,
}


def corrected(
    rule: BitRule,
    p: BitLaw,
    q: BitLaw,
    drafts: Tensor,
    run: Tensor,
    u: Tensor,
    numbers: tuple[Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """The replacement of the first draft that was refused.

    Args:
        rule: that refused it.
        p: [B, K] target laws.
        q: [B, K] draft laws.
        drafts: bool [B, K, d], K at least 1.
        run: int64 [B], drafts kept; K where all were, whose result nobody reads.
        u: [B, K, d], the numbers that `passes` had.
        numbers: seed int64 [B], ranks int64 [B, K] and attempt int64 [B].

    Returns:
        bool [B, 1, d], and bool [B], see `BitRule.correction`.
    """
    seed, ranks, attempt = numbers
    position = run.clamp(max=drafts.shape[1] - 1)
    here = position[:, None]
    bits = here[..., None].expand(-1, -1, p.bits)
    tokens, found = rule.correction(
        p.rows(here),
        q.rows(here),
        drafts.gather(1, bits),
        u.gather(1, bits),
        (seed, at(ranks, position), attempt),
    )
    return tokens, found[:, 0]


def _flip_odds(law: BitLaw, tokens: Tensor) -> Tensor:
    """Probability of each token with one bit flipped over that of the token: fp32 [B, K, d]."""
    return torch.where(tokens, -law.log_odds, law.log_odds).exp()


def _kept(chance: Tensor) -> Tensor:
    """At most 1, and 0 for a token that p rules out, where 0 times infinite odds is no number."""
    return torch.nan_to_num(chance, nan=0.0).clamp(max=1)


def _require(rule: BitRule, option: str, met: bool, range_: str) -> None:
    if not met:
        value = getattr(rule, option)
        raise ValueError(f"{option} of rule {rule.name} must be {range_}, got {value}")
