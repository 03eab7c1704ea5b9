"""Rules that decide how many drafts of a chain are kept; knows nothing about who drafted them."""

from __future__ import annotations

from torch import Tensor

from visual_ar.sampling import CategoricalLaw


def exact(p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor, u: Tensor) -> Tensor:
    """The lossless test u q(x) < p(x) of Leviathan et al. (2023), Algorithm 1, at every position.

    Strict, and u is above 0: a token that p rules out is never kept.

    Args:
        p: [B, K] target laws.
        q: [B, K] laws the drafts were drawn from.
        drafts: int64 [B, K].
        u: [B, K] in (0, 1).

    Returns:
        bool [B, K], whether each draft passes by itself.
    """
    return u * q.prob(drafts) < p.prob(drafts)


def leading_run(passes: Tensor) -> Tensor:
    """How many drafts are kept before the first that fails. passes: bool [B, K]; int64 [B]."""
    return passes.long().cumprod(-1).sum(-1)
