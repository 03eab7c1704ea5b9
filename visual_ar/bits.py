"""Laws over bit vectors: independent bits, guided and tempered one by one; no model is known here.

A token of d bits has 2^d values and no table. Its law is d Bernoulli laws, given everything decoded
before; Han et al. (2024), "Infinity", section 3.2, is the published generator of this kind.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from visual_ar.sampling import Warps, bit_uniforms, guide

RESIDUAL_STREAM = 1
_PROPOSALS = 8  # of a residual draw, between two reads by the host
_MOST_PROPOSALS = 2**16


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

    def residual_chance(self, q: BitLaw, tokens: Tensor) -> Tensor:
        """Chance (1 - q(z) / p(z))+ of keeping a proposal z drawn from p, this law.

        Args:
            q: [B, Q] draft laws.
            tokens: bool [B, Q, d].

        Returns:
            [B, Q].
        """
        return -torch.expm1((q.log_prob(tokens) - self.log_prob(tokens)).clamp(max=0))

    def residual(
        self, q: BitLaw, seed: Tensor, ranks: Tensor, attempt: Tensor, needed: Tensor
    ) -> Tensor:
        """Draws from norm((p - q)+), p this law, by proposals from p: no sum over 2^d tokens.

        A draft is rejected with probability TV(p, q), and a proposal is kept with the same one, so
        a token costs one proposal on average. Their number has no bound: the host looks after
        every 32, and after 2^16 the last proposal stands. That moves the law of a token by
        t (1 - t)^65536 < 6e-6 for t = TV(p, q), less than the rounding of fp32 laws.

        Args:
            q: [B, Q] laws of the drafts that were rejected.
            seed: int64 [B].
            ranks: int64 [B, Q].
            attempt: int64 [B], the picture's own count of passes.
            needed: bool [B, Q], where a draw is needed.

        Returns:
            bool [B, Q, d]; where none is needed, a draw from p.
        """
        shape = (*needed.shape, self.bits)
        tokens = torch.zeros(shape, dtype=torch.bool, device=needed.device)
        waiting = torch.ones_like(needed)
        for start in range(0, _MOST_PROPOSALS, _PROPOSALS):
            for number in range(start, start + _PROPOSALS):
                u = bit_uniforms(
                    seed[:, None], ranks, attempt[:, None], self.bits + 1, RESIDUAL_STREAM, number
                )
                proposal = self.sample(u[..., 1:])
                tokens = torch.where(waiting[..., None], proposal, tokens)
                waiting = waiting & needed & (u[..., 0] >= self.residual_chance(q, proposal))
            if not bool(waiting.any()):
                break
        return tokens
