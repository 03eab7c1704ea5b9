"""Random windows to verify, for tests and measurements; knows nothing about models or devices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from visual_ar.accel.rules.parse import parse_rule
from visual_ar.sampling import Sampling
from visual_ar.tokens.codes import CategoricalLaw

_WIDTH = 5


def random_window(
    seed: int = 0,
    pictures: int = 3,
    ranks: int = 5,
    vocabulary: int = 40,
    dtype: torch.dtype = torch.float32,
    guided: bool = True,
    forced: bool = False,
) -> dict[str, Any]:
    """Arguments of `reference.verify` but for rule, coupling and warps, on the CPU.

    Drafts are really drawn from their laws, which are near the target laws; every picture has
    options of its own.

    Args:
        seed: of the random numbers.
        pictures: B.
        ranks: W, at least 1.
        vocabulary: V.
        dtype: of the logits.
        guided: whether there are unconditional logits.
        forced: whether some ranks are forced.
    """
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=draw).clamp(min=1e-6)

    def whole(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=draw)

    logits = 2 * normal(pictures, ranks, vocabulary)
    other = logits + 0.4 * normal(pictures, ranks, vocabulary)
    q = CategoricalLaw(logits=(logits + 0.7 * normal(pictures, ranks, vocabulary))[:, :-1])
    sampling = Sampling(
        guidance=3 * uniform(pictures, ranks),
        temperature=0.5 + uniform(pictures),
        top_k=whole(0, vocabulary + 3, pictures),
        top_p=(0.5 + 0.6 * uniform(pictures)).clamp(max=1.0),
        seed=whole(0, 2**62, pictures),
    )
    fixed = whole(-3, vocabulary, pictures, ranks)
    return {
        "conditional": logits.to(dtype),
        "unconditional": other.to(dtype) if guided else None,
        "sampling": sampling,
        "drafts": q.draw(uniform(pictures, ranks - 1)),
        "q": q.probabilities,
        "rank": whole(0, 1000, pictures),
        "attempt": whole(0, 1000, pictures),
        "forced": fixed.where(uniform(pictures, ranks) < 0.2, -1) if forced else None,
        "numbers": uniform(4, pictures, ranks),
    }


def random_codes(rule: str, vocabulary: int, seed: int = 0) -> Tensor | None:
    """A table for a rule that compares codes, on the CPU; None for the others.

    Args:
        rule: as for `parse_rule`.
        vocabulary: V.
        seed: of the code vectors.

    Returns:
        fp32 [V, 5] code vectors for grouped rules, int64 [V, at most 5] nearest codes for LANTERN.
    """
    dtype = parse_rule(rule).codes_dtype
    if dtype is None:
        return None
    draw = torch.Generator().manual_seed(seed)
    vectors = torch.rand(vocabulary, _WIDTH, generator=draw)
    if dtype.is_floating_point:
        return vectors
    away = torch.cdist(vectors, vectors).fill_diagonal_(torch.inf)
    return away.topk(min(_WIDTH, vocabulary), largest=False).indices
