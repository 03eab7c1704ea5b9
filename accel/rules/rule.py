"""The contract of an acceptance rule: how a run of drafts is tested, redrawn, and paid for.

Knows nothing about models, about who drafted, or which rules there are.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from visual_ar.tokenizers.visual_tokenizer import VisualTokenizer
from visual_ar.tokens.codes import CategoricalLaw
from visual_ar.tokens.kind import TABLE, TEST, TokenKind
from visual_ar.tokens.law import Law, Redrawn
from visual_ar.tokens.numbers import Numbers


class KernelForm(NamedTuple):
    """A rule as the verification kernel takes it.

    Attributes:
        structure: of `rules.cuh`, what the kernel is compiled for.
        options: two numbers, whose meaning the structure says.
        size: codes of a cluster besides the draft.
        codes: [V, k], int64 nearest codes or fp32 code vectors; None for most rules.
    """

    structure: str
    options: tuple[float, float] = (0.0, 0.0)
    size: int = 0
    codes: Tensor | None = None


@dataclass(frozen=True)
class Rule(ABC):
    """What decides how many drafts of a chain are kept, and what replaces the first that is not.

    A rule has options, fields with a default. One that compares codes has a field `codes`, a table
    that `bind` fills in.

    Attributes:
        name: what it is called in an option.
        lossless: whether the emitted tokens follow p exactly.
        fresh_only: whether it is exact only for drafts all drawn after the last verification.
        needs: what laws must tell, see `TokenKind.offers`.
        structure: of the kernel's `rules.cuh`; None where the kernel does not have the rule.
        codes_dtype: of the table that codes are compared by; None where none are.
    """

    name: ClassVar[str]
    lossless: ClassVar[bool] = False
    fresh_only: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({TEST})
    structure: ClassVar[str | None] = None
    codes_dtype: ClassVar[torch.dtype | None] = None

    @classmethod
    def options(cls) -> dict[str, Any]:
        """Names and defaults of its options."""
        return {f.name: f.default for f in dataclasses.fields(cls) if f.init and f.repr}

    def check(self, kind: TokenKind, tokenizer: VisualTokenizer | None) -> None:
        """Raises ValueError when the rule cannot judge such tokens, or lacks a code book."""
        untold = self.needs - kind.offers
        if untold:
            raise ValueError(
                f"rule {self.name} needs laws that tell {' and '.join(sorted(untold))}, "
                f"got tokens that are {kind.name}"
            )
        if self.codes_dtype is not None and tokenizer is None:
            raise ValueError(
                f"rule {self.name} compares codes and needs a tokenizer with a code book, such "
                "as VQTokenizer; decode with a tokenizer in the cast or through a pipeline"
            )

    def bind(self, tokenizer: VisualTokenizer | None, device: torch.device) -> Rule:
        """The rule with the table it reads.

        Args:
            tokenizer: whose codes are compared; it may lie elsewhere, when it is offloaded.
            device: that the laws are on.
        """
        return self

    def with_codes(self, codes: Tensor) -> Rule:
        """The rule with a table. codes: [V, k] of `codes_dtype`."""
        filled: Any = {"codes": codes}
        return dataclasses.replace(self, **filled)

    def kernel_form(self) -> KernelForm | None:
        """How the kernel takes the rule, None where it does not have it."""
        return None if self.structure is None else KernelForm(self.structure)

    def follows_coupling(self, p: Law) -> bool:
        """Whether the rule keeps and replaces what `Law.couple` does, with the same numbers."""
        return False

    @abstractmethod
    def passes(self, p: Law, q: Law, drafts: Tensor, u: Tensor) -> Tensor:
        """Whether each draft passes by itself: bool [B, K].

        Args:
            p: [B, K] target laws.
            q: [B, K] laws that the drafts were drawn from.
            drafts: [B, K, *].
            u: fp32 [B, K, *] in (0, 1), `Numbers.test`.
        """

    def run(
        self, p: Law, q: Law, drafts: Tensor, u: Tensor, refused: Tensor | None = None
    ) -> Tensor:
        """How many drafts are kept: int64 [B], 0..K. Arguments as of `passes`.

        refused: bool [B], pictures whose first draft was refused in an earlier pass.
        """
        passes = self.passes(p, q, drafts, u)
        if refused is not None:
            first = torch.arange(passes.shape[1], device=passes.device) == 0
            passes = passes & ~(refused[:, None] & first)
        return leading_run(passes)

    def replacement(
        self, p: Law, q: Law, drafts: Tensor, position: Tensor, numbers: Numbers
    ) -> Redrawn:
        """What replaces the draft at one position of every picture: [B, 1, *].

        Args:
            p: [B, K] target laws.
            q: [B, K] draft laws.
            drafts: [B, K, *].
            position: int64 [B], the first draft that was not kept, below K.
            numbers: of [B, K] ranks.
        """
        here = position[:, None]
        index = here.view(-1, *[1] * (drafts.dim() - 1)).expand(-1, -1, *drafts.shape[2:])
        refused = drafts.gather(1, index)
        return p.rows(here).residual(q.rows(here), refused, numbers.at(position))

    def spent(self, p: Law, q: Law, drafts: Tensor, exactly: bool) -> Tensor:
        """Total variation between the emitted law and p at every position.

        Args:
            p: [B, K] target laws.
            q: [B, K] draft laws.
            drafts: [B, K, *].
            exactly: sum over the code book; otherwise an upper bound, estimated from the drafts.

        Returns:
            fp32 [B, K].
        """
        assert self.lossless, "a lossy rule says what it spends"
        return torch.zeros(drafts.shape[:2], device=drafts.device)

    def fill(
        self, p: Law, q: Law, drafts: Tensor, run: Tensor, fresh: Tensor, numbers: Numbers
    ) -> Redrawn:
        """The window after a pass: kept drafts, the correction, and the fresh tail.

        Args:
            p: [B, K + 1] target laws.
            q: [B, K] draft laws, K at least 1.
            drafts: [B, K, *].
            run: int64 [B], drafts kept.
            fresh: [B, K + 1, *], the tail's tokens at every position.
            numbers: of [B, K] ranks.

        Returns:
            tokens [B, K + 1, *], and found bool [B]: where it is False the refused draft stands in
            the place of the correction.
        """
        count = drafts.shape[1]
        position = run.clamp(max=count - 1)
        instead, found = self.replacement(p.first(count), q, drafts, position, numbers)
        if found is not None:
            found = found[:, 0] | (run == count)
            instead = torch.where(_spread(found[:, None], drafts), instead, drafts)
        column = torch.arange(count, device=run.device)
        corrected, kept = column == run[:, None], column < run[:, None]
        tail = torch.where(_spread(corrected, drafts), instead, fresh[:, :-1])
        tokens = torch.where(_spread(kept, drafts), drafts, tail)
        return Redrawn(torch.cat([tokens, fresh[:, -1:]], dim=1), found)


@dataclass(frozen=True)
class TableRule(Rule):
    """A rule that tests every draft by itself, with a chance read off laws over a code book.

    Such rules also judge siblings on trees.
    """

    needs: ClassVar[frozenset[str]] = frozenset({TABLE})

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

    def passes(self, p: Any, q: Any, drafts: Tensor, u: Tensor) -> Tensor:
        """See `Rule.passes`."""
        return u < self.chance(p, q, drafts[..., None])[..., 0]

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
        here = position[:, None]
        return p.rows(here).residual_law(q.rows(here))

    def replacement(
        self, p: Any, q: Any, drafts: Tensor, position: Tensor, numbers: Numbers
    ) -> Redrawn:
        """See `Rule.replacement`: a draw from the correction."""
        law = self.correction(p, q, drafts, position)
        return Redrawn(law.draw(numbers.instead.gather(1, position[:, None])))

    def emitted(self, p: CategoricalLaw, q: CategoricalLaw) -> CategoricalLaw:
        """The law of the token emitted at a position, given all before it: [B, K] laws, exactly."""
        chance = self.chance(p, q, every_token(p))
        kept = q.probabilities * chance
        rest = 1 - kept.sum(-1, keepdim=True)
        after = self._after_rejection(p, q, q.probabilities - kept)
        return CategoricalLaw(probabilities=kept + rest.clamp(min=0) * after)

    def _after_rejection(self, p: CategoricalLaw, q: CategoricalLaw, rejected: Tensor) -> Tensor:
        """Mean correction law. rejected: [B, K, V], chance that a token was drafted and refused."""
        return p.residual_law(q).probabilities

    def spent(self, p: Any, q: Any, drafts: Tensor, exactly: bool) -> Tensor:
        """See `Rule.spent`.

        The estimate is `bound`, whose mean over drafts is at least what is spent.
        """
        return self.emitted(p, q).distance(p) if exactly else self.bound(p, q, drafts)

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
        honest = p.ratio(q, drafts)
        return (chance - honest).abs() + (1 - chance) * self._correction_error(p, q, drafts)

    def _correction_error(self, p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor) -> Tensor:
        return torch.zeros_like(p.prob(drafts))


def redraw(
    rule: Rule,
    p: Law,
    q: Law,
    drafts: Tensor,
    run: Tensor,
    numbers: Numbers,
    fresh: Tensor | None,
    refused: Tensor | None = None,
) -> Redrawn:
    """Tokens of the window after a pass: kept drafts, the correction, the new tail.

    Args:
        rule: which kept them.
        p: [B, K + 1] target laws.
        q: [B, K] draft laws, K at least 1.
        drafts: [B, K, *].
        run: int64 [B], kept drafts.
        numbers: of [B, K + 1] ranks.
        fresh: [B, K + 1, *], tokens of the tail; None couples them maximally with the drafts.
        refused: bool [B, K], drafts that are replaced whatever a test says.

    Returns:
        as of `Rule.fill`.
    """
    count = drafts.shape[1]
    head = numbers.head(count)
    if fresh is None:
        coupled = p.first(count).couple(q, drafts, head, refused)
        fresh = torch.cat([coupled, p.last().draw(numbers.fresh[:, -1:])], dim=1)
        if rule.follows_coupling(p):
            return Redrawn(fresh)  # whose leading run and correction are already the rule's
    return rule.fill(p, q, drafts, run, fresh, head)


def leading_run(passes: Tensor) -> Tensor:
    """How many drafts are kept before the first that fails. passes: bool [B, K]; int64 [B]."""
    return passes.long().cumprod(-1).sum(-1)


def require(rule: Rule, option: str, met: bool, range_: str) -> None:
    """Raises ValueError, naming the option, its range and its value, unless `met`."""
    if not met:
        value = getattr(rule, option)
        raise ValueError(f"{option} of rule {rule.name} must be {range_}, got {value}")


def every_token(law: CategoricalLaw) -> Tensor:
    """All codes at every position, as candidates. Returns int64 [B, K, V]."""
    shape = law.probabilities.shape
    return torch.arange(shape[-1], device=law.probabilities.device).expand(shape)


def _spread(per_token: Tensor, tokens: Tensor) -> Tensor:
    """[B, K] so that it meets tokens [B, K, *]."""
    return per_token.view(*per_token.shape, *[1] * (tokens.dim() - 2))
