"""Tokens that are codes, numbers of a code book, and laws over all of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from visual_ar.layout import FREE
from visual_ar.sampling import Sampling, Warps, guide, gumbel_noise, take_rows, uniforms, warp
from visual_ar.tokens.kind import RATIO, TABLE, TEST, TokenKind
from visual_ar.tokens.law import Law, Redrawn
from visual_ar.tokens.numbers import Numbers

UNKNOWN = -1
"""Code of a cell that was not drawn, as it is shown."""
_TINY = 1e-30


class CategoricalLaw(Law):
    """Laws over a code book, [B, Q] of them.

    Built from logits (the probabilities are computed when first asked for) or from probabilities.
    """

    coupling_is_exact: ClassVar[bool] = True

    def __init__(self, logits: Tensor | None = None, probabilities: Tensor | None = None) -> None:
        """Give one of the two. logits: [B, Q, V] fp32, -inf allowed; probabilities: [B, Q, V]."""
        if (logits is None) == (probabilities is None):
            raise ValueError("a law is built from either logits or probabilities, give one of them")
        self._logits = logits
        if probabilities is not None:
            self.__dict__["probabilities"] = probabilities

    @cached_property
    def probabilities(self) -> Tensor:
        """[B, Q, V] fp32, each law sums to 1."""
        assert self._logits is not None
        return self._logits.softmax(-1)

    @cached_property
    def logits(self) -> Tensor:
        """[B, Q, V] log-probabilities up to a constant per law; -inf where impossible."""
        return self._logits if self._logits is not None else self.probabilities.log()

    @property
    def features(self) -> Tensor:
        """The probabilities."""
        return self.probabilities

    @property
    def vocabulary(self) -> int:
        """Number of codes V."""
        known = self._logits if self._logits is not None else self.probabilities
        return known.shape[-1]

    def draw(self, u: Tensor) -> Tensor:
        """One draw a law by the inverse CDF. u: [B, Q] in (0, 1); returns int64 [B, Q]."""
        return _invert(self.probabilities, u)

    def draw_frozen(self, noise: Tensor) -> Tensor:
        """One draw a law by the Gumbel maximum. noise: [B, Q, V]; returns int64 [B, Q]."""
        return (self.logits + noise).argmax(-1)

    def prob(self, tokens: Tensor) -> Tensor:
        """Probabilities of tokens. tokens: int64 [B, Q]; returns [B, Q]."""
        return self.probabilities.gather(-1, tokens[..., None])[..., 0]

    def probs(self, tokens: Tensor) -> Tensor:
        """Probabilities of several tokens a law. tokens: int64 [B, Q, M]; returns [B, Q, M]."""
        return self.probabilities.gather(-1, tokens)

    def log_prob(self, tokens: Tensor) -> Tensor:
        """See `Law.log_prob`."""
        return self.prob(tokens).log()

    def keep(self, q: CategoricalLaw, drafts: Tensor, u: Tensor) -> Tensor:
        """See `Law.keep`: u q(x) < p(x)."""
        return u * q.prob(drafts) < self.prob(drafts)

    def residual_law(self, q: CategoricalLaw, scale: Tensor | None = None) -> CategoricalLaw:
        """norm([s p - q]+), p these laws; p where rounding leaves no mass. scale: [B, Q], s, or 1.

        q: [B, Q] laws.
        """
        own = self.probabilities
        target = own if scale is None else scale[..., None] * own
        return self.or_instead((target - q.probabilities).clamp(min=0))

    def or_instead(self, weights: Tensor) -> CategoricalLaw:
        """Laws from weights [B, Q, V], or these laws where there is no weight."""
        total = weights.sum(-1, keepdim=True)
        law = torch.where(total > 0, weights / total.clamp(min=_TINY), self.probabilities)
        return CategoricalLaw(probabilities=law)

    def residual(self, q: CategoricalLaw, drafts: Tensor, numbers: Numbers) -> Redrawn:
        """See `Law.residual`."""
        return Redrawn(self.residual_law(q).draw(numbers.instead))

    def redraw(self, q: CategoricalLaw, u: Tensor) -> Tensor:
        """A draw from `residual_law` without its normalisation.

        Args:
            q: [B, Q] laws.
            u: [B, Q] in (0, 1).

        Returns:
            int64 [B, Q].
        """
        rest = (self.probabilities - q.probabilities).clamp_(min=0)
        empty = rest.amax(-1, keepdim=True) <= 0
        return _invert(torch.where(empty, self.probabilities, rest), u)

    def couple(
        self, q: CategoricalLaw, drafts: Tensor, numbers: Numbers, refused: Tensor | None = None
    ) -> Tensor:
        """See `Law.couple`."""
        passes = self.keep(q, drafts, numbers.test)
        if refused is not None:
            passes = passes & ~refused
        return torch.where(passes, drafts, self.redraw(q, numbers.instead))

    def ratio(self, q: CategoricalLaw, tokens: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        """See `Law.ratio`."""
        return ratio(self.prob(tokens) * scale, q.prob(tokens))

    def distance(self, other: CategoricalLaw) -> Tensor:
        """Total variation between laws. Returns [B, Q]."""
        return 0.5 * (self.probabilities - other.probabilities).abs().sum(-1)

    def rows(self, index: Tensor) -> CategoricalLaw:
        """See `Law.rows`."""
        return CategoricalLaw(probabilities=take_rows(self.probabilities, index))

    def first(self, count: int) -> CategoricalLaw:
        """See `Law.first`."""
        return CategoricalLaw(probabilities=self.probabilities[:, :count])

    def last(self) -> CategoricalLaw:
        """See `Law.last`."""
        return CategoricalLaw(probabilities=self.probabilities[:, -1:])

    def with_forced(self, forced: Tensor) -> CategoricalLaw:
        """The laws with some tokens certain. forced: int64 [B, Q], a code or -1."""
        token = forced[..., None]
        if self._logits is None:
            certain = point_mass(forced.clamp(min=0), self.vocabulary)
            return CategoricalLaw(
                probabilities=torch.where(token >= 0, certain, self.probabilities)
            )
        logits = self._logits
        codes = torch.arange(logits.shape[-1], device=logits.device)
        fixed = torch.where(codes == token, 0.0, -torch.inf)
        return CategoricalLaw(logits=torch.where(token >= 0, fixed, logits))

    def entropy(self) -> Tensor:
        """See `Law.entropy`."""
        return torch.special.entr(self.probabilities).sum(-1) / torch.log(torch.tensor(2.0))


@dataclass(frozen=True)
class Codes(TokenKind):
    """Numbers of a code book: int64 [B, N].

    Attributes:
        vocabulary: number of codes V.
        end: code that ends a picture, if one does.
    """

    dtype: ClassVar[torch.dtype] = torch.int64
    offers: ClassVar[frozenset[str]] = frozenset({TEST, RATIO, TABLE})
    vocabulary: int
    end: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """See `TokenKind.shape`."""
        return ()

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """See `TokenKind.noise_shape`."""
        return (self.vocabulary,)

    @property
    def name(self) -> str:
        """See `TokenKind.name`."""
        return f"codes of {self.vocabulary}"

    @property
    def count(self) -> int:
        """See `TokenKind.count`."""
        return self.vocabulary

    def index(self, ranks: Tensor) -> Tensor:
        """See `TokenKind.index`."""
        return ranks

    def spread(self, per_token: Tensor) -> Tensor:
        """See `TokenKind.spread`."""
        return per_token

    def law(
        self,
        conditional: Tensor,
        unconditional: Tensor | None,
        scale: Tensor,
        options: Sampling,
        warps: Warps,
    ) -> CategoricalLaw:
        """See `TokenKind.law`. conditional, unconditional: fp32 logits [B, Q, V]."""
        logits = conditional
        if unconditional is not None:
            logits = guide(conditional, unconditional, scale)
        return CategoricalLaw(
            logits=warp(logits, options.temperature, options.top_k, options.top_p, warps)
        )

    def width(self, guided: bool) -> int:
        """See `TokenKind.width`: V probabilities."""
        return self.vocabulary

    def law_from(self, features: Tensor, temperature: Tensor) -> CategoricalLaw:
        """See `TokenKind.law_from`."""
        return CategoricalLaw(probabilities=features)

    def flat(self, width: int, device: torch.device) -> Tensor:
        """See `TokenKind.flat`."""
        return torch.full((1, 1, 1), 1.0 / width, device=device)

    def certain(self, tokens: Tensor, width: int) -> Tensor:
        """See `TokenKind.certain`."""
        return point_mass(tokens, width)

    def flat_tokens(self, u: Tensor) -> Tensor:
        """See `TokenKind.flat_tokens`."""
        return (u * self.vocabulary).long().clamp_(max=self.vocabulary - 1)

    def uniforms(self, seed: Tensor, ranks: Tensor, attempt: Tensor) -> Tensor:
        """See `TokenKind.uniforms`: four uses."""
        return uniforms(seed, ranks, attempt)

    def numbers(self, u: Tensor, seed: Tensor, ranks: Tensor, attempt: Tensor) -> Numbers:
        """See `TokenKind.numbers`."""
        return Numbers(u[0], u[1], u[2], u[3], seed, ranks, attempt)

    def noise(self, seed: Tensor, ranks: Tensor) -> Tensor:
        """See `TokenKind.noise`: Gumbel noise [B, M, V]."""
        return gumbel_noise(seed, ranks, self.vocabulary)

    def check_forced(self, forced: Tensor, who: str) -> None:
        """See `TokenKind.check_forced`. forced: int64 [N] or [B, N]."""
        if forced.dim() > 2 and bool((forced != FREE).any()):
            raise ValueError(
                f"the layout must force one code a cell, [N] or [B, N], for {who}, "
                f"got forced of shape {list(forced.shape)}"
            )
        check_range(forced, self.vocabulary - 1)

    @property
    def can_end(self) -> bool:
        """See `TokenKind.can_end`."""
        return self.end is not None

    def ends(self, tokens: Tensor) -> Tensor:
        """See `TokenKind.ends`."""
        assert self.end is not None
        return torch.eq(tokens, self.end)

    def hidden(self, tokens: Tensor, known: Tensor) -> Tensor:
        """See `TokenKind.hidden`: -1 where not known."""
        return tokens.masked_fill(~known, UNKNOWN)

    def readable(self, tokens: Tensor) -> Tensor:
        """See `TokenKind.readable`."""
        return tokens.clamp(min=0)


def ratio(target: Tensor, draft: Tensor) -> Tensor:
    """min(1, target / draft), 0 where the target is 0. Probabilities of one shape, the result's."""
    return (target / draft.clamp(min=_TINY)).clamp(max=1.0)


def point_mass(tokens: Tensor, vocabulary: int) -> Tensor:
    """The laws that always give `tokens`. tokens: int64 [...]; returns fp32 [..., V]."""
    shape = (*tokens.shape, vocabulary)
    return torch.zeros(shape, device=tokens.device).scatter_(-1, tokens[..., None], 1.0)


def check_range(forced: Tensor, most: int) -> None:
    """Raises ValueError unless whole numbers are from 0 to `most`, or FREE."""
    if bool(((forced < FREE) | (forced > most)).any()):
        raise ValueError(
            f"the layout must force tokens from 0 to {most}, or {FREE} for none, got "
            f"{int(forced.min())} to {int(forced.max())}"
        )


def _invert(weights: Tensor, u: Tensor) -> Tensor:
    """First index whose cumulative weight exceeds u times the total, so never one of weight 0."""
    cumulative = weights.cumsum(-1)
    target = u[..., None] * cumulative[..., -1:]
    index = torch.searchsorted(cumulative, target, right=True)[..., 0]
    return index.clamp_(max=weights.shape[-1] - 1)
