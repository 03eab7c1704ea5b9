"""The two exact acceptance rules of drafts that are bit vectors; who drafted is unknown here.

Both emit the target law whatever the drafts' law. Keeping whole tokens accepts with probability
1 - TV(p, q), which no rule exceeds; keeping bits accepts with the product over bits of
1 - |p_i - q_i|, which is smaller, but needs no residual draw and no branch. Refusals of one bit
leave the others as they were.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from visual_ar.bits import BitLaw, SubcodeLaw


class BitVerdict(NamedTuple):
    """What testing bits gives.

    Attributes:
        tokens: bool [B, K, d], drafts with the refused bits flipped: draws from p at every
            position whose predecessors were all accepted.
        accepted: bool [B, K], whether no bit was flipped.
    """

    tokens: Tensor
    accepted: Tensor


def by_bit(p: BitLaw, q: BitLaw, drafts: Tensor, u: Tensor) -> BitVerdict:
    """Keeps each bit with probability min(1, p_i / q_i) and flips it otherwise.

    Speculative sampling (Leviathan et al. 2023, Algorithm 1) of every bit: the residual of two
    Bernoulli laws is a certainty, the other value. Strict: a bit that p rules out is never kept.

    Args:
        p: [B, K] target laws.
        q: [B, K] laws the drafts were drawn from.
        drafts: bool [B, K, d].
        u: [B, K, d] in (0, 1).
    """
    kept = u * q.bit_prob(drafts) < p.bit_prob(drafts)
    return BitVerdict(drafts == kept, kept.all(-1))


def by_token(p: BitLaw, q: BitLaw, drafts: Tensor, u: Tensor) -> Tensor:
    """Keeps a token with probability min(1, p / q) (Leviathan et al. 2023, Algorithm 1).

    The first token that is not kept is replaced by a draw of `BitLaw.residual`.

    Args:
        p: [B, K] target laws.
        q: [B, K] laws the drafts were drawn from.
        drafts: bool [B, K, d].
        u: [B, K] in (0, 1).

    Returns:
        bool [B, K], whether each draft passes by itself.
    """
    # The ratio out of logarithms: products over 256 bits underflow.
    return u < torch.exp(p.log_ratio(q, drafts))


def by_part(
    p: BitLaw | SubcodeLaw, q: BitLaw | SubcodeLaw, drafts: Tensor, u: Tensor
) -> BitVerdict:
    """`by_bit`, or the same along the sub-codes of a token where laws are of those.

    Args:
        p: [B, K] target laws.
        q: [B, K] laws the drafts were drawn from, of the same kind.
        drafts: bool [B, K, d].
        u: [B, K, d] in (0, 1).
    """
    if isinstance(p, SubcodeLaw):
        assert isinstance(q, SubcodeLaw)
        tokens = p.couple(q, drafts, u)
        return BitVerdict(tokens, (tokens == drafts).all(-1))
    assert isinstance(q, BitLaw)
    return by_bit(p, q, drafts, u)
