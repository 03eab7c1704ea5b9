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

from visual_ar.sampling import (
    LARGEST_UNIFORM,
    CategoricalLaw,
    Warps,
    bit_uniforms,
    guide,
    take_rows,
)

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

    @property
    def features(self) -> Tensor:
        """What the laws are made of, [B, Q, F]; `TokenModel.law_from` makes laws of it again."""
        return self.log_odds

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

    The features of a law are what the head reads of the conditional row and, when guided, of the
    unconditional one, D numbers each; then the guidance, 1 for a uniform law or 0, and the d bits
    that are certain, 0 or 1, or -1 where the head chooses.

    Args:
        head: (hidden [..., D], int64 [..., k]) to the logits of the sub-code behind k given ones.
        features: [B, Q, F].
        temperature: [B], above 0.
        bits: d.
        subcodes: m; the first bit of each counts least.
        dim: D.
    """

    def __init__(
        self,
        head: Callable[[Tensor, Tensor], Tensor],
        features: Tensor,
        temperature: Tensor,
        bits: int,
        subcodes: int,
        dim: int,
    ) -> None:
        self.features, self.bits = features, bits
        self._head, self._temperature, self._dim = head, temperature, dim
        self._subcodes, self._width = subcodes, bits // subcodes

    def _like(self, features: Tensor) -> SubcodeLaw:
        return SubcodeLaw(
            self._head, features, self._temperature, self.bits, self._subcodes, self._dim
        )

    def with_forced(self, forced: Tensor) -> SubcodeLaw:
        """The laws with some tokens certain. forced: int64 [B, Q, d] of 0 and 1, or -1."""
        head = self.features[..., : -self.bits]
        return self._like(torch.cat([head, forced.to(head.dtype)], dim=-1))

    def rows(self, index: Tensor) -> SubcodeLaw:
        """The laws at some positions of every picture. index: int64 [B, K]; returns [B, K] laws."""
        return self._like(take_rows(self.features.contiguous(), index))

    def first(self, count: int) -> SubcodeLaw:
        """The laws of the first `count` positions."""
        return self._like(self.features[:, :count])

    def last(self) -> SubcodeLaw:
        """The laws of the last position."""
        return self._like(self.features[:, -1:])

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
        dim, number = self._dim, earlier.shape[-1]
        sizes = [self.features.shape[-1] - 2 - self.bits, 1, 1, self.bits]
        rows, scale, flat, forced = self.features.split(sizes, dim=-1)
        logits = self._head(rows[..., :dim], earlier)
        if rows.shape[-1] > dim:
            logits = guide(logits, self._head(rows[..., dim:], earlier), scale[..., 0])
        logits = logits / self._temperature[:, None, None] * (1 - flat)
        certain_bits = forced.unflatten(-1, (self._subcodes, -1))[..., number, :]
        places = torch.arange(self._width, device=forced.device)
        code = ((certain_bits > 0).long() << places).sum(-1, keepdim=True)
        values = torch.arange(logits.shape[-1], device=forced.device)
        fixed = (values == code).to(logits.dtype)
        return torch.where(certain_bits[..., :1] >= 0, fixed, logits.softmax(-1))

    def sample(self, u: Tensor) -> Tensor:
        """One draw a law, each sub-code by the inverse CDF of the first number of its bits.

        Args:
            u: [B, Q, d] in (0, 1).

        Returns:
            bool [B, Q, d].
        """
        codes = torch.empty((*u.shape[:-1], 0), dtype=torch.int64, device=u.device)
        for number in range(self._subcodes):
            law = CategoricalLaw(probabilities=self.probabilities(codes))
            drawn = law.sample(u[..., number * self._width])
            codes = torch.cat([codes, drawn[..., None]], dim=-1)
        return self.join(codes)

    def sample_gumbel(self, noise: Tensor) -> Tensor:
        """`sample` with logistic noise, which is fixed, for uniform numbers. noise: [B, Q, d]."""
        return self.sample(torch.sigmoid(noise).clamp(max=LARGEST_UNIFORM))

    def couple(self, q: SubcodeLaw, drafts: Tensor, u: Tensor) -> Tensor:
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
            kept = same & (test * q_law.prob(draft) < p_law.prob(draft))
            instead = torch.where(same, p_law.residual(q_law, again), p_law.sample(again))
            codes = torch.cat([codes, torch.where(kept, draft, instead)[..., None]], dim=-1)
            same = kept
        return self.join(codes)

    def log_prob(self, tokens: Tensor) -> Tensor:
        """Log-probabilities of tokens. tokens: bool [B, Q, d]; returns [B, Q]."""
        codes = self.split(tokens)
        total = torch.zeros(tokens.shape[:-1], device=tokens.device)
        for number in range(self._subcodes):
            chosen = codes[..., number, None]
            total = total + self.probabilities(codes[..., :number]).gather(-1, chosen)[..., 0].log()
        return total
