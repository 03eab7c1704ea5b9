"""Tokens of d bits that are drawn in parts: m sub-codes, each a small softmax given those before.

Luo et al. (2024), "Open-MAGVIT2", section 3.2. The head that gives the logits is a function here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from visual_ar.sampling import LARGEST_UNIFORM, Sampling, Warps, guide, take_rows
from visual_ar.tokens.bits import Bits
from visual_ar.tokens.codes import CategoricalLaw
from visual_ar.tokens.kind import PARTS, TEST
from visual_ar.tokens.law import Law, Redrawn
from visual_ar.tokens.numbers import Numbers

Head = Callable[[Tensor, Tensor], Tensor]
"""(hidden [..., D], int64 [..., k]) to the logits of the sub-code behind k given ones."""


class SubcodeLaw(Law):
    """Laws over bit vectors that are cut into m sub-codes, each drawn given those before it.

    The features of a law are what the head reads of the conditional row and, when guided, of the
    unconditional one, D numbers each; then the guidance, 1 for a uniform law or 0, and the d bits
    that are certain, 0 or 1, or -1 where the head chooses.

    Args:
        kind: of the tokens.
        features: [B, Q, F].
        temperature: [B], above 0.
    """

    coupling_is_exact: ClassVar[bool] = True

    def __init__(self, kind: Subcodes, features: Tensor, temperature: Tensor) -> None:
        self._kind, self._features, self._temperature = kind, features, temperature
        self._subcodes, self._width = kind.subcodes, kind.bits // kind.subcodes

    @property
    def features(self) -> Tensor:
        """See the class."""
        return self._features

    def _like(self, features: Tensor) -> SubcodeLaw:
        return SubcodeLaw(self._kind, features, self._temperature)

    def with_forced(self, forced: Tensor) -> SubcodeLaw:
        """The laws with some bits certain: those of tokens that agree with them, sub-code by
        sub-code. forced: int64 [B, Q, d] of 0 and 1, or -1.
        """
        bits = self._kind.bits
        head, before = self._features[..., :-bits], self._features[..., -bits:]
        certain = torch.where(forced >= 0, forced.to(head.dtype), before)
        return self._like(torch.cat([head, certain], dim=-1))

    def rows(self, index: Tensor) -> SubcodeLaw:
        """See `Law.rows`."""
        return self._like(take_rows(self._features.contiguous(), index))

    def first(self, count: int) -> SubcodeLaw:
        """See `Law.first`."""
        return self._like(self._features[:, :count])

    def last(self) -> SubcodeLaw:
        """See `Law.last`."""
        return self._like(self._features[:, -1:])

    def split(self, tokens: Tensor) -> Tensor:
        """The sub-codes of tokens. bool [B, Q, d]; returns int64 [B, Q, m]."""
        places = torch.arange(self._width, device=tokens.device)
        return (tokens.unflatten(-1, (self._subcodes, -1)).long() << places).sum(-1)

    def join(self, codes: Tensor) -> Tensor:
        """The inverse of `split`."""
        places = torch.arange(self._width, device=codes.device)
        return ((codes[..., None] >> places) & 1).bool().flatten(-2)

    def probabilities(self, earlier: Tensor) -> Tensor:
        """Of the sub-code behind given ones. int64 [B, Q, k]; returns fp32 [B, Q, 2^(d / m)]."""
        dim, bits, number = self._kind.dim, self._kind.bits, earlier.shape[-1]
        sizes = [self._features.shape[-1] - 2 - bits, 1, 1, bits]
        rows, scale, flat, forced = self._features.split(sizes, dim=-1)
        logits = self._kind.head(rows[..., :dim], earlier)
        if rows.shape[-1] > dim:
            logits = guide(logits, self._kind.head(rows[..., dim:], earlier), scale[..., 0])
        logits = logits / self._temperature[:, None, None] * (1 - flat)
        certain = forced.unflatten(-1, (self._subcodes, -1))[..., number, None, :]
        places = torch.arange(self._width, device=forced.device)
        values = torch.arange(logits.shape[-1], device=forced.device)
        agrees = (certain < 0) | (certain == ((values[:, None] >> places) & 1))
        return logits.masked_fill(~agrees.all(-1), -torch.inf).softmax(-1)

    def draw(self, u: Tensor) -> Tensor:
        """One draw a law, each sub-code by the inverse CDF of the first number of its bits.

        Args:
            u: [B, Q, d] in (0, 1).

        Returns:
            bool [B, Q, d].
        """
        codes = torch.empty((*u.shape[:-1], 0), dtype=torch.int64, device=u.device)
        for number in range(self._subcodes):
            law = CategoricalLaw(probabilities=self.probabilities(codes))
            drawn = law.draw(u[..., number * self._width])
            codes = torch.cat([codes, drawn[..., None]], dim=-1)
        return self.join(codes)

    def draw_frozen(self, noise: Tensor) -> Tensor:
        """`draw` with logistic noise, which is fixed, for uniform numbers. noise: [B, Q, d]."""
        return self.draw(torch.sigmoid(noise).clamp(max=LARGEST_UNIFORM))

    def keep(self, q: SubcodeLaw, drafts: Tensor, u: Tensor) -> Tensor:
        """See `Law.keep`: along the sub-codes, all of which must be kept."""
        return (self.couple_parts(q, drafts, u) == drafts).all(-1)

    def residual(self, q: SubcodeLaw, drafts: Tensor, numbers: Numbers) -> Redrawn:
        """See `Law.residual`."""
        return Redrawn(self.couple_parts(q, drafts, numbers.test))

    def couple(
        self, q: SubcodeLaw, drafts: Tensor, numbers: Numbers, refused: Tensor | None = None
    ) -> Tensor:
        """See `Law.couple`."""
        if refused is not None:
            raise ValueError("refused must be None for laws over sub-codes, got some")
        return self.couple_parts(q, drafts, numbers.test)

    def couple_parts(self, q: SubcodeLaw, drafts: Tensor, u: Tensor) -> Tensor:
        """Draws from this law p that keep the drafts' sub-codes as far as speculation allows.

        Speculative sampling (Leviathan et al. 2023, Algorithm 1) along the sub-codes: one is kept
        with probability min(1, p / q), the first that is not is drawn from norm((p - q)+), and
        those behind it from p.

        Args:
            q: [B, K] laws of the drafts.
            drafts: bool [B, K, d].
            u: [B, K, d] in (0, 1).

        Returns:
            bool [B, K, d], equal to the draft where it was kept whole.
        """
        given, width = self.split(drafts), self._width
        codes, same = given[..., :0], torch.ones_like(given[..., 0], dtype=torch.bool)
        for number in range(self._subcodes):
            p_law = CategoricalLaw(probabilities=self.probabilities(codes))
            q_law = CategoricalLaw(probabilities=q.probabilities(given[..., :number]))
            draft, test = given[..., number], u[..., number * width]
            # The residual of one bit is certain, so that a sub-code of one bit needs no more.
            again = u[..., number * width + min(1, width - 1)]
            kept = same & p_law.keep(q_law, draft, test)
            instead = torch.where(same, p_law.redraw(q_law, again), p_law.draw(again))
            codes = torch.cat([codes, torch.where(kept, draft, instead)[..., None]], dim=-1)
            same = kept
        return self.join(codes)

    def log_prob(self, tokens: Tensor) -> Tensor:
        """See `Law.log_prob`."""
        codes = self.split(tokens)
        total = torch.zeros(tokens.shape[:-1], device=tokens.device)
        for number in range(self._subcodes):
            chosen = codes[..., number, None]
            total = total + self.probabilities(codes[..., :number]).gather(-1, chosen)[..., 0].log()
        return total

    def uncertainty(self, tokens: Tensor) -> Tensor:
        """See `Law.uncertainty`: the entropy would be a sum over all sub-codes given all others."""
        return -self.log_prob(tokens) / math.log(2)


@dataclass(frozen=True)
class Subcodes(Bits):
    """Vectors of d bits in m sub-codes; guidance and temperature are those of every softmax.

    Attributes:
        subcodes: m, dividing d; the first bit of each counts least.
        dim: D, width of what the head reads.
        head: gives the logits of a sub-code.
    """

    offers: ClassVar[frozenset[str]] = frozenset({TEST, PARTS})
    waits: ClassVar[bool] = False
    subcodes: int
    dim: int
    head: Head = field(repr=False, compare=False)

    def law(
        self,
        conditional: Tensor,
        unconditional: Tensor | None,
        scale: Tensor,
        options: Sampling,
        warps: Warps,
    ) -> SubcodeLaw:
        """See `TokenKind.law`. conditional, unconditional: [B, Q, D], what the head reads."""
        self.check_warps(warps)
        shape = (*scale.shape, 1)
        rows = [conditional] if unconditional is None else [conditional, unconditional]
        features = [row.float() for row in rows]
        features += [scale[..., None], scale.new_zeros(shape)]
        features += [scale.new_full((*scale.shape, self.bits), -1.0)]
        return self.law_from(torch.cat(features, dim=-1), options.temperature)

    def width(self, guided: bool) -> int:
        """See `TokenKind.width`."""
        return (2 if guided else 1) * self.dim + 2 + self.bits

    def law_from(self, features: Tensor, temperature: Tensor) -> SubcodeLaw:
        """See `TokenKind.law_from`."""
        return SubcodeLaw(self, features, temperature)

    def flat(self, width: int, device: torch.device) -> Tensor:
        """See `TokenKind.flat`."""
        features = torch.zeros(1, 1, width, device=device)
        features[..., -self.bits - 1] = 1
        features[..., -self.bits :] = -1
        return features

    def certain(self, tokens: Tensor, width: int) -> Tensor:
        """See `TokenKind.certain`."""
        head = self.flat(width, tokens.device)[..., : -self.bits]
        return torch.cat([head.expand(*tokens.shape[:-1], -1), tokens.float()], dim=-1)
