"""Laws over bit vectors: independent bits, or a chain of sub-codes; no model is known here.

A token of d bits has 2^d values and no table. Its law is d Bernoulli laws, given everything decoded
before; Han et al. (2024), "Infinity", section 3.2, is the published generator of this kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from visual_ar.sampling import CategoricalLaw, Warps, bit_uniforms, guide, take_rows

RESIDUAL_STREAM = 1
PROPOSALS = 64  # of a residual draw in one attempt
_EQUAL = 2.0**-17  # sum over the bits of |p_i - q_i|, below which laws differ by rounding only


def check_bit_warps(warps: Warps) -> None:
    """Raises ValueError where a warp ranks tokens, which a law over bits cannot.

    Args:
        warps: what any picture needs.
    """
    rule = "must be {} for a law over bits, whose 2^d tokens cannot be ranked, got {}"
    if warps.top_k:
        raise ValueError("top_k " + rule.format("0 (off)", warps.top_k[-1]))
    if warps.top_p:
        raise ValueError("top_p " + rule.format("1 (off)", "a value below 1"))


class BitLaw:
    """Laws over bit vectors, [B, Q] of them, guided and warped exactly once.

    Attributes:
        log_odds: fp32 [B, Q, d], log P(bit = 1) / P(bit = 0).
    """

    def __init__(self, log_odds: Tensor) -> None:
        self.log_odds = log_odds

    @classmethod
    def warped(
        cls,
        conditional: Tensor,
        unconditional: Tensor | None,
        scale: Tensor,
        temperature: Tensor,
        warps: Warps,
    ) -> BitLaw:
        """The laws that are drawn from, out of what a model predicts.

        Args:
            conditional: [B, Q, d] log-odds.
            unconditional: [B, Q, d] log-odds, or None without guidance.
            scale: [B, Q], guidance.
            temperature: [B], above 0; divides the log-odds of every bit.
            warps: what any picture needs.

        Raises:
            ValueError: some picture asks for top-k or top-p.
        """
        check_bit_warps(warps)
        log_odds = conditional.float()
        if unconditional is not None:
            log_odds = guide(log_odds, unconditional.float(), scale)
        if warps.temperature:
            log_odds = log_odds / temperature[:, None, None]
        return cls(log_odds)

    @property
    def bits(self) -> int:
        """Bits of a token, d."""
        return self.log_odds.shape[-1]

    def sample(self, u: Tensor) -> Tensor:
        """One draw a law, a uniform number a bit. u: [B, Q, d] in (0, 1); bool [B, Q, d]."""
        return u < torch.sigmoid(self.log_odds)

    def bit_prob(self, tokens: Tensor) -> Tensor:
        """Probability of each bit of tokens. tokens: bool [B, Q, d]; returns [B, Q, d]."""
        return torch.sigmoid(torch.where(tokens, self.log_odds, -self.log_odds))

    def log_prob(self, tokens: Tensor) -> Tensor:
        """Log-probabilities of tokens. tokens: bool [B, Q, d]; returns [B, Q]."""
        return F.logsigmoid(torch.where(tokens, self.log_odds, -self.log_odds)).sum(-1)

    def prob(self, tokens: Tensor) -> Tensor:
        """Probabilities of tokens. tokens: bool [B, Q, d]; returns [B, Q]."""
        return self.log_prob(tokens).exp()

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

    def residual(
        self, q: BitLaw, seed: Tensor, ranks: Tensor, attempt: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Draws from norm((p - q)+), p this law, if one of 64 proposals from p is kept.

        A proposal z is kept with chance (1 - q(z) / p(z))+, on average TV(p, q), which is also how
        often a draft is refused; no sum over 2^d tokens, and nothing for the host to read. Who
        finds none asks again with another attempt. Laws that differ by rounding alone, by less than
        1e-5 over all bits, keep the first proposal.

        Args:
            q: [B, Q] laws of the drafts that were refused.
            seed: int64 [B].
            ranks: int64 [B, Q].
            attempt: int64 [B], the picture's own count of passes.

        Returns:
            bool [B, Q, d], and bool [B, Q], whether it is a draw: some proposal was kept.
        """
        numbers = torch.arange(PROPOSALS, device=ranks.device)
        attempts = attempt[:, None, None] * PROPOSALS + numbers
        u = bit_uniforms(
            seed[:, None, None], ranks[..., None], attempts, self.bits + 1, RESIDUAL_STREAM
        )
        proposals = u[..., 1:] < torch.sigmoid(self.log_odds)[..., None, :]  # [B, Q, 64, d]
        p, draft = BitLaw(self.log_odds[..., None, :]), BitLaw(q.log_odds[..., None, :])
        chance = -torch.expm1(-p.log_ratio(draft, proposals).clamp(min=0))
        kept = u[..., 0] < chance
        first = kept & (kept.long().cumsum(-1) == 1)
        index = (first * numbers).sum(-1)[..., None, None].expand(*ranks.shape, 1, self.bits)
        apart = (torch.sigmoid(self.log_odds) - torch.sigmoid(q.log_odds)).abs().sum(-1)
        return proposals.gather(-2, index)[..., 0, :], kept.any(-1) | (apart < _EQUAL)

    def sample_gumbel(self, noise: Tensor) -> Tensor:
        """One draw a law by the Gumbel maximum over the two values of every bit.

        Args:
            noise: [B, Q, d], the difference of two Gumbel numbers, which is logistic.

        Returns:
            bool [B, Q, d].
        """
        return self.log_odds + noise > 0

    def rows(self, index: Tensor) -> BitLaw:
        """The laws at some positions of every picture. index: int64 [B, K]; returns [B, K] laws."""
        return BitLaw(take_rows(self.log_odds.contiguous(), index))

    def first(self, count: int) -> BitLaw:
        """The laws of the first `count` positions."""
        return BitLaw(self.log_odds[:, :count])

    def last(self) -> BitLaw:
        """The laws of the last position."""
        return BitLaw(self.log_odds[:, -1:])

    def with_forced(self, forced: Tensor) -> BitLaw:
        """The laws with some tokens certain. forced: int64 [B, Q, d] of 0 and 1, or -1."""
        return BitLaw(torch.where(forced >= 0, certain(forced > 0), self.log_odds))

    def entropy(self) -> Tensor:
        """Entropy of every law in bits. Returns [B, Q]."""
        ones = torch.sigmoid(self.log_odds)
        return (torch.special.entr(ones) + torch.special.entr(1 - ones)).sum(-1) / math.log(2)


def certain(tokens: Tensor) -> Tensor:
    """The log-odds that always give `tokens`. bool [..., d]; returns fp32 [..., d]."""
    return torch.where(tokens, torch.inf, -torch.inf)


class SubcodeLaw:
    """Laws over bit vectors that are cut into m sub-codes, each drawn given those before it.

    Such a law is sampled and scored, which next-token methods need; nothing else is known of it.

    Args:
        logits: of the sub-code behind k given ones, int64 [B, Q, k] -> [B, Q, 2^(d / m)], guided
            and warped.
        bits: d.
        subcodes: m; the first bit of each counts least.
        forced: int64 [B, Q, d] of 0 and 1, or -1 where the model chooses; None when nothing is.
    """

    def __init__(
        self,
        logits: Callable[[Tensor], Tensor],
        bits: int,
        subcodes: int,
        forced: Tensor | None = None,
    ) -> None:
        self._logits, self._subcodes, self._forced = logits, subcodes, forced
        self._width = bits // subcodes

    def with_forced(self, forced: Tensor) -> SubcodeLaw:
        """The laws with some tokens certain. forced: int64 [B, Q, d] of 0 and 1, or -1."""
        return SubcodeLaw(self._logits, self._width * self._subcodes, self._subcodes, forced)

    def sample_gumbel(self, noise: Tensor) -> Tensor:
        """One draw a law, each sub-code by the inverse CDF of the first noise of its bits.

        Args:
            noise: [B, Q, d], logistic.

        Returns:
            bool [B, Q, d].
        """
        u = torch.sigmoid(noise)[..., :: self._width]
        codes = noise.new_empty((*noise.shape[:-1], 0), dtype=torch.int64)
        for number in range(self._subcodes):
            law = CategoricalLaw(logits=self._logits(codes))
            codes = torch.cat([codes, law.sample(u[..., number])[..., None]], dim=-1)
        places = torch.arange(self._width, device=noise.device)
        tokens = ((codes[..., None] >> places) & 1).bool().flatten(-2)
        if self._forced is None:
            return tokens
        return torch.where(self._forced >= 0, self._forced > 0, tokens)

    def log_prob(self, tokens: Tensor) -> Tensor:
        """Log-probabilities of tokens where nothing is forced. bool [B, Q, d]; returns [B, Q]."""
        places = torch.arange(self._width, device=tokens.device)
        codes = (tokens.unflatten(-1, (self._subcodes, -1)).long() << places).sum(-1)
        total = torch.zeros(tokens.shape[:-1], device=tokens.device)
        for number in range(self._subcodes):
            log_p = self._logits(codes[..., :number]).log_softmax(-1)
            total = total + log_p.gather(-1, codes[..., number, None])[..., 0]
        return total
