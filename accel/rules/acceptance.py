"""When a draft is kept, as pure functions over laws, drafts and uniforms; one paper a function.

A chance is the probability of keeping a token, were it the draft. Everything here works on [B, K]
laws and [B, K, M] tokens, M candidates for each position. Knows nothing about who drafted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visual_ar.sampling import CategoricalLaw

_TINY = 1e-30


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


def couple(
    p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor, passes: Tensor, u: Tensor, last: Tensor
) -> Tensor:
    """New drafts that differ from the old as rarely as their laws allow (maximal coupling).

    Args:
        p: [B, K + 1] new laws.
        q: [B, K] laws of `drafts`.
        drafts: int64 [B, K].
        passes: bool [B, K], from `exact`.
        u: [B, K] in (0, 1), for those that do not pass.
        last: [B, 1] in (0, 1), for the last position, which has no draft.

    Returns:
        int64 [B, K + 1].
    """
    again = torch.where(passes, drafts, p.first(drafts.shape[1]).residual(q, u))
    return torch.cat([again, p.last().sample(last)], dim=1)


def leading_run(passes: Tensor) -> Tensor:
    """How many drafts are kept before the first that fails. passes: bool [B, K]; int64 [B]."""
    return passes.long().cumprod(-1).sum(-1)


def ratio(target: Tensor, draft: Tensor) -> Tensor:
    """min(1, target / draft), 0 where the target is 0. Both [B, K, M]; so is the result."""
    return (target / draft.clamp(min=_TINY)).clamp(max=1.0)


def of_tokens(law: CategoricalLaw, tokens: Tensor) -> Tensor:
    """Probabilities of several tokens a position. tokens: int64 [B, K, M]; returns [B, K, M]."""
    return law.probabilities.gather(-1, tokens)


def omega(p: CategoricalLaw, q: CategoricalLaw, tokens: Tensor, scale: Tensor) -> Tensor:
    """Chances min(1, omega_k p / q) of Cool-SD (AAAI 2026): the exact test, loosened by a factor.

    Args:
        p: [B, K] target laws.
        q: [B, K] draft laws.
        tokens: int64 [B, K, M].
        scale: [K] or [B, K], omega of every position, at least 1.

    Returns:
        [B, K, M].
    """
    return ratio(of_tokens(p, tokens) * scale[..., None], of_tokens(q, tokens))


def typical(p: CategoricalLaw, tokens: Tensor, epsilon: float, alpha: float) -> Tensor:
    """Chances of typical acceptance (Cai et al. 2024, Medusa): 1 where p > min(eps, a exp(-H(p))).

    Args:
        p: [B, K] target laws, H their entropy in nats.
        tokens: int64 [B, K, M].
        epsilon: the hard threshold, in (0, 1).
        alpha: the entropy-dependent one, in (0, 1].

    Returns:
        [B, K, M] of 0 and 1.
    """
    entropy = torch.special.entr(p.probabilities).sum(-1, keepdim=True)
    threshold = (alpha * torch.exp(-entropy)).clamp(max=epsilon)
    return (of_tokens(p, tokens) > threshold).to(p.probabilities.dtype)


def aggregated(
    p: CategoricalLaw, tokens: Tensor, neighbours: Tensor, bound: Tensor | float
) -> tuple[Tensor, Tensor, Tensor]:
    """The set A(x) of LANTERN (Jang et al. 2025, eq. 4): nearest codes while their mass fits.

    Args:
        p: [B, K] target laws.
        tokens: int64 [B, K, M].
        neighbours: int64 [V, k], nearest first, without the code itself.
        bound: largest p(A(x)), broadcastable to [B, K, M].

    Returns:
        p(A(x)) [B, K, M], the neighbours int64 [B, K, M, k], and which of them are in A(x), bool.
    """
    near = neighbours[tokens]
    mass = p.probabilities.gather(-1, near.flatten(-2)).view(near.shape).cumsum(-1)
    limit = torch.as_tensor(bound, device=mass.device)
    inside = mass <= (limit[..., None] if limit.dim() else limit)
    return (mass * inside).amax(-1), near, inside


def cluster_of_drafts(p: CategoricalLaw, drafts: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The tokens next to each draft in the order of p, half of them above and half below.

    So et al. (2025), Grouped Speculative Decoding, section 3.3: clusters made anew at every step.

    Args:
        p: [B, K] target laws.
        drafts: int64 [B, K].
        size: tokens in a cluster besides the draft, even.

    Returns:
        int64 [B, K, size], and bool [B, K, size], False where there is no such token.
    """
    weights, own = p.probabilities, p.prob(drafts)[..., None]
    half = min(size // 2, weights.shape[-1] - 1)
    at_draft = torch.zeros_like(weights, dtype=torch.bool).scatter_(-1, drafts[..., None], True)
    above = weights.masked_fill((weights < own) | at_draft, torch.inf)
    below = weights.masked_fill((weights >= own) | (weights <= 0), -1.0)
    upper = above.topk(half, largest=False)
    lower = below.topk(half)
    tokens = torch.cat([upper.indices, lower.indices], -1)
    return tokens, torch.cat([upper.values.isfinite(), lower.values > 0], -1)


def cluster_of_all(p: CategoricalLaw, size: int) -> tuple[Tensor, Tensor]:
    """`cluster_of_drafts` of every token at once, by sorting. Returns [B, K, V, size] twice."""
    vocabulary, half = p.vocabulary, min(size // 2, p.vocabulary - 1)
    order = p.probabilities.argsort(-1)  # ascending
    rank = order.argsort(-1)
    steps = torch.cat([torch.arange(1, half + 1), -torch.arange(1, half + 1)]).to(rank.device)
    around = rank[..., None] + steps
    there = (around >= 0) & (around < vocabulary)
    shape = around.shape
    tokens = order.gather(-1, around.clamp(0, vocabulary - 1).flatten(-2)).view(shape)
    possible = of_tokens(p, tokens.flatten(-2)).view(shape) > 0
    return tokens, there & (possible | (steps > 0))


def cluster_ratio(
    p: CategoricalLaw,
    q: CategoricalLaw,
    tokens: Tensor,
    cluster: Tensor,
    member: Tensor,
    gap: float,
) -> Tensor:
    """Chances min(1, p(C) / q(C)) of grouped acceptance (So et al. 2025, eq. 6).

    Args:
        p: [B, K] target laws.
        q: [B, K] draft laws.
        tokens: int64 [B, K, M].
        cluster: int64 [B, K, M, G], the other tokens of the cluster of each.
        member: bool [B, K, M, G], which of them count.
        gap: largest difference of probability within a cluster.

    Returns:
        [B, K, M]; 0 for a token that p rules out.
    """
    own, flat = of_tokens(p, tokens), cluster.flatten(-2)
    target = of_tokens(p, flat).view(cluster.shape)
    draft = of_tokens(q, flat).view(cluster.shape)
    member = member & ((target - own[..., None]).abs() < gap)
    together = own + (target * member).sum(-1)
    chance = ratio(together, of_tokens(q, tokens) + (draft * member).sum(-1))
    return chance * (own > 0)


def block_ratios(p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor) -> Tensor:
    """r_0 .. r_K of block verification: r_i = min(1, r_{i-1} p_i(x_i) / q_i(x_i)), r_0 = 1.

    Sun et al. (2024), Block Verification Accelerates Speculative Decoding, Algorithm 2.

    Args:
        p: [B, K] target laws.
        q: [B, K] draft laws.
        drafts: int64 [B, K].

    Returns:
        [B, K + 1].
    """
    step = p.prob(drafts) / q.prob(drafts).clamp(min=_TINY)
    ratios = [torch.ones_like(step[:, 0])]
    for column in step.unbind(1):
        ratios.append((ratios[-1] * column).clamp(max=1.0))
    return torch.stack(ratios, 1)


def block_run(p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor, u: Tensor) -> Tensor:
    """The last i with u_i <= h_i, the number of drafts that block verification keeps.

    h_i = S_i / (S_i + 1 - r_i) with S_i the mass of [r_i p_{i+1} - q_{i+1}]+, and h_K = r_K.

    Args:
        p: [B, K] target laws.
        q: [B, K] draft laws, of drafts that were all drawn after the last verification.
        drafts: int64 [B, K].
        u: [B, K] in (0, 1).

    Returns:
        int64 [B].
    """
    ratios = block_ratios(p, q, drafts)
    scaled = ratios[:, 1:-1, None] * p.probabilities[:, 1:]
    left = (scaled - q.probabilities[:, 1:]).clamp(min=0).sum(-1)  # S_1 .. S_{K-1}
    chance = left / (left + 1 - ratios[:, 1:-1]).clamp(min=_TINY)
    kept = u < torch.cat([chance, ratios[:, -1:]], 1)
    numbers = torch.arange(1, kept.shape[1] + 1, device=kept.device)
    return (kept * numbers).amax(1)


def residual(p: CategoricalLaw, q: CategoricalLaw, scale: Tensor | None = None) -> CategoricalLaw:
    """norm([s p - q]+), or p where rounding leaves no mass. scale: [B, K], s; 1 by default."""
    target = p.probabilities if scale is None else scale[..., None] * p.probabilities
    rest = (target - q.probabilities).clamp(min=0)
    return normalised(rest, p)


def normalised(weights: Tensor, instead: CategoricalLaw) -> CategoricalLaw:
    """Laws from weights [B, K, V], or those of `instead` where there is no weight."""
    total = weights.sum(-1, keepdim=True)
    law = torch.where(total > 0, weights / total.clamp(min=_TINY), instead.probabilities)
    return CategoricalLaw(probabilities=law)


def distance(p: CategoricalLaw, other: CategoricalLaw) -> Tensor:
    """Total variation between laws. Returns [B, K]."""
    return 0.5 * (p.probabilities - other.probabilities).abs().sum(-1)


def at(values: Tensor, position: Tensor) -> Tensor:
    """One column of every picture. values: [B, K]; position: int64 [B]; returns [B, 1]."""
    return values.gather(1, position[:, None])
