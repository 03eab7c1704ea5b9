"""Tokens that are d independent bits, and their laws: d Bernoulli laws, no table.

A token of d bits has 2^d values. Han et al. (2024), "Infinity", section 3.2, is the published
generator of this kind.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from visual_ar.layout import FREE
from visual_ar.sampling import (
    Sampling,
    Warps,
    bit_uniforms,
    guide,
    logistic_noise,
    take_rows,
)
from visual_ar.tokens.codes import check_range
from visual_ar.tokens.kind import FLIPS, PARTS, RATIO, TEST, TokenKind
from visual_ar.tokens.law import Law, Redrawn
from visual_ar.tokens.numbers import Numbers

RESIDUAL_STREAM = 1
PROPOSALS = 64  # of a residual draw in one attempt
_EQUAL = 2.0**-17  # sum over the bits of |p_i - q_i|, below which laws differ by rounding only
_USES = 3


class BitLaw(Law):
    """Laws over bit vectors, [B, Q] of them.

    Attributes:
        log_odds: fp32 [B, Q, d], log P(bit = 1) / P(bit = 0).
    """

    def __init__(self, log_odds: Tensor) -> None:
        self.log_odds = log_odds

    @property
    def features(self) -> Tensor:
        """The log-odds."""
        return self.log_odds

    @property
    def bits(self) -> int:
        """Bits of a token, d."""
        return self.log_odds.shape[-1]

    def draw(self, u: Tensor) -> Tensor:
        """One draw a law, a uniform number a bit. u: [B, Q, d] in (0, 1); bool [B, Q, d]."""
        return u < torch.sigmoid(self.log_odds)

    def draw_frozen(self, noise: Tensor) -> Tensor:
        """One draw a law by the Gumbel maximum over the two values of every bit.

        Args:
            noise: [B, Q, d], the difference of two Gumbel numbers, which is logistic.

        Returns:
            bool [B, Q, d].
        """
        return self.log_odds + noise > 0

    def part_probs(self, tokens: Tensor) -> Tensor:
        """Probability of each bit of tokens. tokens: bool [B, Q, d]; returns [B, Q, d]."""
        return torch.sigmoid(torch.where(tokens, self.log_odds, -self.log_odds))

    def log_prob(self, tokens: Tensor) -> Tensor:
        """See `Law.log_prob`."""
        return F.logsigmoid(torch.where(tokens, self.log_odds, -self.log_odds)).sum(-1)

    def log_ratio(self, q: BitLaw, tokens: Tensor) -> Tensor:
        """log p(z) - log q(z), p this law: summed bit by bit, so that equal laws give exactly 0.

        Args:
            q: [B, Q] laws.
            tokens: bool [B, Q, d], possible under at least one of the two.

        Returns:
            fp32 [B, Q].
        """
        sign = torch.where(tokens, 1.0, -1.0)
        target, draft = sign * self.log_odds, sign * q.log_odds
        return (F.logsigmoid(target) - F.logsigmoid(draft)).sum(-1)

    def ratio(self, q: BitLaw, tokens: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        """See `Law.ratio`."""
        return (self.log_ratio(q, tokens).exp() * scale).clamp(max=1)

    def flip_odds(self, tokens: Tensor) -> Tensor:
        """Probability of each token with one bit flipped over that of the token: [B, Q, d]."""
        return torch.where(tokens, -self.log_odds, self.log_odds).exp()

    def keep(self, q: BitLaw, drafts: Tensor, u: Tensor) -> Tensor:
        """See `Law.keep`: of whole tokens, which accepts with probability 1 - TV(p, q)."""
        # The ratio out of logarithms: products over 256 bits underflow.
        return u[..., 0] < torch.exp(self.log_ratio(q, drafts))

    def residual(self, q: BitLaw, drafts: Tensor, numbers: Numbers) -> Redrawn:
        """See `Law.residual`: a draw if one of 64 proposals from p is kept.

        A proposal z is kept with chance (1 - q(z) / p(z))+, on average TV(p, q), which is also how
        often a draft is refused; no sum over 2^d tokens, and nothing for the host to read. Who
        finds none asks again with another attempt. Laws that differ by rounding alone, by less than
        1e-5 over all bits, keep the first proposal.
        """
        ranks = numbers.ranks
        places = torch.arange(PROPOSALS, device=ranks.device)
        attempts = numbers.attempt[:, None, None] * PROPOSALS + places
        u = bit_uniforms(
            numbers.seed[:, None, None], ranks[..., None], attempts, self.bits + 1, RESIDUAL_STREAM
        )
        proposals = u[..., 1:] < torch.sigmoid(self.log_odds)[..., None, :]  # [B, Q, 64, d]
        p, draft = BitLaw(self.log_odds[..., None, :]), BitLaw(q.log_odds[..., None, :])
        chance = -torch.expm1(-p.log_ratio(draft, proposals).clamp(min=0))
        kept = u[..., 0] < chance
        first = kept & (kept.long().cumsum(-1) == 1)
        index = (first * places).sum(-1)[..., None, None].expand(*ranks.shape, 1, self.bits)
        apart = (torch.sigmoid(self.log_odds) - torch.sigmoid(q.log_odds)).abs().sum(-1)
        found = kept.any(-1) | (apart < _EQUAL)
        return Redrawn(proposals.gather(-2, index)[..., 0, :], found)

    def couple(
        self, q: BitLaw, drafts: Tensor, numbers: Numbers, refused: Tensor | None = None
    ) -> Tensor:
        """See `Law.couple`: bit by bit, so that nothing is left to be sought."""
        if refused is not None:
            raise ValueError("refused must be None for laws over bits, got some")
        return self.couple_parts(q, drafts, numbers.test)

    def couple_parts(self, q: BitLaw, drafts: Tensor, u: Tensor) -> Tensor:
        """Keeps each bit with probability min(1, p_i / q_i) and flips it otherwise.

        For the residual of two Bernoulli laws is a certainty, the other value. Strict: a bit that p
        rules out is never kept. A whole token is kept with the product of 1 - |p_i - q_i|.

        Args:
            q: [B, K] laws of the drafts.
            drafts: bool [B, K, d].
            u: fp32 [B, K, d] in (0, 1).

        Returns:
            bool [B, K, d].
        """
        return drafts == (u * q.part_probs(drafts) < self.part_probs(drafts))

    def rows(self, index: Tensor) -> BitLaw:
        """See `Law.rows`."""
        return BitLaw(take_rows(self.log_odds.contiguous(), index))

    def first(self, count: int) -> BitLaw:
        """See `Law.first`."""
        return BitLaw(self.log_odds[:, :count])

    def last(self) -> BitLaw:
        """See `Law.last`."""
        return BitLaw(self.log_odds[:, -1:])

    def with_forced(self, forced: Tensor) -> BitLaw:
        """The laws with some bits certain. forced: int64 [B, Q, d] of 0 and 1, or -1."""
        return BitLaw(torch.where(forced >= 0, certain(forced > 0), self.log_odds))

    def entropy(self) -> Tensor:
        """See `Law.entropy`."""
        ones = torch.sigmoid(self.log_odds)
        return (torch.special.entr(ones) + torch.special.entr(1 - ones)).sum(-1) / math.log(2)


@dataclass(frozen=True)
class Bits(TokenKind):
    """Vectors of d bits: bool [B, N, d]. Guidance and temperature are those of every bit.

    Attributes:
        bits: d, at least 1.
    """

    dtype: ClassVar[torch.dtype] = torch.bool
    offers: ClassVar[frozenset[str]] = frozenset({TEST, RATIO, PARTS, FLIPS})
    waits: ClassVar[bool] = True
    bits: int

    @property
    def shape(self) -> tuple[int, ...]:
        """See `TokenKind.shape`."""
        return (self.bits,)

    @property
    def name(self) -> str:
        """See `TokenKind.name`."""
        return f"vectors of {self.bits} bits"

    @property
    def count(self) -> int:
        """See `TokenKind.count`."""
        return 2**self.bits

    def law(
        self,
        conditional: Tensor,
        unconditional: Tensor | None,
        scale: Tensor,
        options: Sampling,
        warps: Warps,
    ) -> Law:
        """See `TokenKind.law`. conditional, unconditional: [B, Q, d] log-odds."""
        self.check_warps(warps)
        log_odds = conditional.float()
        if unconditional is not None:
            log_odds = guide(log_odds, unconditional.float(), scale)
        if warps.temperature:
            log_odds = log_odds / options.temperature[:, None, None]
        return BitLaw(log_odds)

    def check_warps(self, warps: Warps) -> None:
        """See `TokenKind.check_warps`: no warp may rank tokens, which a law over bits cannot."""
        rule = "must be {} for a law over bits, whose 2^d tokens cannot be ranked, got {}"
        if warps.top_k:
            raise ValueError("top_k " + rule.format("0 (off)", warps.top_k[-1]))
        if warps.top_p:
            raise ValueError("top_p " + rule.format("1 (off)", "a value below 1"))

    def width(self, guided: bool) -> int:
        """See `TokenKind.width`: d log-odds."""
        return self.bits

    def law_from(self, features: Tensor, temperature: Tensor) -> Any:
        """See `TokenKind.law_from`."""
        return BitLaw(features)

    def flat(self, width: int, device: torch.device) -> Tensor:
        """See `TokenKind.flat`."""
        return torch.zeros(1, 1, width, device=device)

    def certain(self, tokens: Tensor, width: int) -> Tensor:
        """See `TokenKind.certain`."""
        return certain(tokens)

    def flat_tokens(self, u: Tensor) -> Tensor:
        """See `TokenKind.flat_tokens`."""
        return u < 0.5

    def uniforms(self, seed: Tensor, ranks: Tensor, attempt: Tensor) -> Tensor:
        """See `TokenKind.uniforms`: three uses, of a number a bit."""
        u = bit_uniforms(seed, ranks, attempt, _USES * self.bits)
        return u.unflatten(-1, (_USES, self.bits)).movedim(-2, 0)

    def numbers(self, u: Tensor, seed: Tensor, ranks: Tensor, attempt: Tensor) -> Numbers:
        """See `TokenKind.numbers`."""
        return Numbers(u[0], u[0], u[1], u[2], seed, ranks, attempt)

    def noise(self, seed: Tensor, ranks: Tensor) -> Tensor:
        """See `TokenKind.noise`: logistic noise [B, M, d]."""
        return logistic_noise(seed, ranks, self.bits)

    def check_forced(self, forced: Tensor, who: str) -> None:
        """See `TokenKind.check_forced`. forced: int64 [B, N, d], or [N] that forces nothing."""
        if forced.dim() != 3 and bool((forced != FREE).any()):
            raise ValueError(
                f"the layout must force every bit [B, N, d] for {who}, "
                f"got forced of shape {list(forced.shape)}"
            )
        check_range(forced, 1)


def certain(tokens: Tensor) -> Tensor:
    """The log-odds that always give `tokens`. bool [..., d]; returns fp32 [..., d]."""
    return torch.where(tokens, torch.inf, -torch.inf)
