"""The contract of an acceptance rule: how a run of drafts is tested, redrawn, and paid for.

Knows nothing about models, about who drafted, or which rules there are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from visual_ar.accel.rules import acceptance
from visual_ar.accel.rules.bit_rules import BitRule
from visual_ar.sampling import CategoricalLaw
from visual_ar.tokenizers.visual_tokenizer import VisualTokenizer


@dataclass(frozen=True)
class Rule(ABC):
    """What decides how many drafts of a chain are kept, and what replaces the first that is not.

    Attributes:
        name: what it is called in an option.
        lossless: whether the emitted tokens follow p exactly.
        fresh_only: whether it is exact only for drafts all drawn after the last verification.
        compares_codes: whether it reads the code book of a tokenizer.
    """

    name: ClassVar[str]
    lossless: ClassVar[bool] = False
    fresh_only: ClassVar[bool] = False
    compares_codes: ClassVar[bool] = False

    def check(self, tokenizer: VisualTokenizer | None) -> None:
        """Raises ValueError when the rule needs a code book and there is none that fits."""
        if self.compares_codes and tokenizer is None:
            raise ValueError(
                f"rule {self.name} compares codes and needs a tokenizer with a code book, such "
                "as VQTokenizer; decode with tokenizer=... or through a pipeline"
            )

    def bind(self, tokenizer: VisualTokenizer | None, device: torch.device) -> Rule:
        """The rule with the tables it reads. Raises what `check` raises.

        Args:
            tokenizer: whose codes are compared; it may lie elsewhere, when it is offloaded.
            device: that the laws are on.
        """
        return self

    def on_bits(self) -> BitRule:
        """The rule's form for tokens of d bits.

        Raises:
            ValueError: it has none.
        """
        raise ValueError(
            f"rule {self.name} reads a table of all codes, of which tokens of d bits have 2^d; "
            "a model of bits needs a rule that reads none, such as exact, bitwise or omega"
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
    def chance(
        self, p: CategoricalLaw, q: CategoricalLaw, tokens: Tensor, depth: Tensor | None = None
    ) -> Tensor:
        """Chance of keeping tokens, were they the draft.

        Args:
            p: [B, K] target laws.
            q: [B, K] laws that the drafts were drawn from.
            tokens: int64 [B, K, M], M candidates for each position.
            depth: int64 [K] or [B, K], drafts in front of each position; None counts them from 0.

        Returns:
            [B, K, M].
        """

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
        chance = self.chance(p, q, every_token(p))
        kept = q.probabilities * chance
        rest = 1 - kept.sum(-1, keepdim=True)
        after = self._after_rejection(p, q, q.probabilities - kept)
        return CategoricalLaw(probabilities=kept + rest.clamp(min=0) * after)

    def _after_rejection(self, p: CategoricalLaw, q: CategoricalLaw, rejected: Tensor) -> Tensor:
        """Mean correction law. rejected: [B, K, V], chance that a token was drafted and refused."""
        return acceptance.residual(p, q).probabilities

    def spent(self, p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor, exactly: bool) -> Tensor:
        """See `Rule.spent`.

        The estimate is `bound`, whose mean over drafts is at least what is spent.
        """
        if exactly:
            return acceptance.distance(self.emitted(p, q), p)
        return self.bound(p, q, drafts)

    def bound(
        self, p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor, depth: Tensor | None = None
    ) -> Tensor:
        """An upper bound on the total variation spent, estimated from the drafts.

        It is |a(x) - min(1, p(x) / q(x))|, x the draft and a(x) its chance, plus 1 - a(x) times the
        distance of its correction from the exact one; the draft estimates its mean over q without
        bias.

        Args:
            p: [B, K] target laws.
            q: [B, K] draft laws.
            drafts: int64 [B, K].
            depth: see `chance`.

        Returns:
            [B, K].
        """
        chance = self.chance(p, q, drafts[..., None], depth)[..., 0]
        honest = acceptance.ratio(p.prob(drafts), q.prob(drafts))
        return (chance - honest).abs() + (1 - chance) * self._correction_error(p, q, drafts)

    def _correction_error(self, p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor) -> Tensor:
        return torch.zeros_like(p.prob(drafts))


def require(rule: Rule, option: str, met: bool, range_: str) -> None:
    """Raises ValueError, naming the option, its range and its value, unless `met`."""
    if not met:
        value = getattr(rule, option)
        raise ValueError(f"{option} of rule {rule.name} must be {range_}, got {value}")


def every_token(law: CategoricalLaw) -> Tensor:
    """All codes at every position, as candidates. Returns int64 [B, K, V]."""
    shape = law.probabilities.shape
    return torch.arange(shape[-1], device=law.probabilities.device).expand(shape)
