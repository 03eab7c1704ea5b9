"""Guidance, temperature, top-k and top-p in one place, and random numbers.

Random numbers are counter-based (Philox4x32-10, Salmon et al. 2011): a function of the picture's
seed, the rank, a stream and an attempt, so that a picture does not depend on its slot or on its
neighbours. Knows nothing about models, kinds of tokens or decoding methods.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_MASK32 = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

UNIFORM_STREAM, GUMBEL_STREAM, BIT_STREAM = 0, 1, 2
FROZEN_STREAM = 2  # of the bits; see `bit_uniforms`
NORMAL_STREAM = _MASK32  # the last one: the streams of bits count up from theirs
LARGEST_UNIFORM = 1 - 2.0**-24
_MOST_NUMBERS = 2**20  # of a rank; a counter has room for more, no memory has
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 1e-6, 1e6  # between them fp32 logits stay finite


class Sampling(NamedTuple):
    """Options of every picture; they may differ within a batch.

    Attributes:
        guidance: float [B], or [B, N] by rank when it follows a schedule. 1 is unguided.
        temperature: float [B], above 0.
        top_k: int64 [B], 0 is off.
        top_p: float [B], in (0, 1], 1 is off.
        seed: int64 [B].
    """

    guidance: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    seed: Tensor

    @classmethod
    def create(
        cls,
        seeds: list[int],
        guidance: float | Tensor = 1.0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> Sampling:
        """The same options for every seed.

        Args:
            seeds: one integer in [0, 2^63) a picture.
            guidance: scale, at least 0, or float [N] by rank.
            temperature: at least 1e-6.
            top_k: at least 0, 0 is off.
            top_p: in (0, 1].

        Raises:
            ValueError: an option outside its range.
        """
        scales = torch.as_tensor(guidance, dtype=torch.float32)
        if not bool(torch.isfinite(scales).all()) or bool((scales < 0).any()):
            raise ValueError(f"guidance_scale must be at least 0, got {guidance}")
        if not LOWEST_TEMPERATURE <= temperature <= HIGHEST_TEMPERATURE:
            raise ValueError(
                f"temperature must be above 0, from {LOWEST_TEMPERATURE:g} to "
                f"{HIGHEST_TEMPERATURE:g}, got {temperature}"
            )
        if not 0 <= top_k < 2**63:
            raise ValueError(f"top_k must be at least 0 (0 is off) and below 2^63, got {top_k}")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {top_p}")
        for seed in seeds:
            if not 0 <= seed < 2**63:
                raise ValueError(f"seed must be in [0, 2^63), got {seed}")
        batch = len(seeds)
        return cls(
            guidance=scales.expand(batch, *scales.shape).contiguous(),
            temperature=torch.full((batch,), float(temperature)),
            top_k=torch.full((batch,), top_k, dtype=torch.int64),
            top_p=torch.full((batch,), float(top_p)),
            seed=torch.tensor(seeds, dtype=torch.int64),
        )


class Warps(NamedTuple):
    """Which warps any picture in the batch uses, known to the host so that the rest is skipped.

    Attributes:
        temperature: some temperature is not 1.
        top_k: the different values of top-k in use, ascending, without 0.
        top_p: some top-p is below 1.
    """

    temperature: bool = False
    top_k: tuple[int, ...] = ()
    top_p: bool = False

    @classmethod
    def of(cls, sampling: Sampling) -> Warps:
        """The warps that `sampling` needs. Reads the options on the host."""
        return cls(
            temperature=bool((sampling.temperature != 1).any()),
            top_k=tuple(sorted(set(sampling.top_k.tolist()) - {0})),
            top_p=bool((sampling.top_p < 1).any()),
        )

    def union(self, other: Warps) -> Warps:
        """The warps that either needs."""
        return Warps(
            self.temperature or other.temperature,
            tuple(sorted({*self.top_k, *other.top_k})),
            self.top_p or other.top_p,
        )


def guide(conditional: Tensor, unconditional: Tensor, scale: Tensor) -> Tensor:
    """Classifier-free guidance u + s (c - u) on raw logits or log-odds.

    What is certain stays so: where either is infinite, that infinity is the result, the
    conditional's first, and the unconditional's only where s is not 1, which is no guidance.

    Args:
        conditional: [B, Q, V].
        unconditional: [B, Q, V].
        scale: [B, Q].
    """
    scale = scale[..., None]
    guided = torch.lerp(unconditional, conditional, scale)
    sure, other = conditional.isinf(), unconditional.isinf()
    certain = torch.where(sure | (scale == 1), conditional, unconditional)
    return torch.where(sure | other, certain, guided)


def warp(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, warps: Warps) -> Tensor:
    """Temperature, then top-k, then top-p. This is the one home of warping.

    Top-k keeps every token at least as likely as the k-th, so ties with it stay. Top-p keeps the
    smallest set of most likely tokens whose mass reaches p, and every tie with the last of them.

    Args:
        logits: [B, Q, V] guided logits.
        temperature: [B].
        top_k: int64 [B]; below 1 and from V on it is off.
        top_p: [B].
        warps: what any picture needs.

    Returns:
        [B, Q, V] logits with -inf at the tokens cut off.
    """
    vocabulary = logits.shape[-1]
    if warps.temperature:
        logits = logits / temperature[:, None, None]
    # One selection for every different k: four times faster than topk for the largest.
    for k in warps.top_k:
        if 0 < k < vocabulary:
            threshold = _kth_largest(logits, k)
            threshold = threshold.masked_fill((top_k != k)[:, None, None], -torch.inf)
            logits = logits.masked_fill(logits < threshold, -torch.inf)
    if warps.top_p:
        ordered = logits.sort(dim=-1, descending=True).values
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities  # mass of the tokens ahead
        kept = (before < top_p[:, None, None]).sum(-1, keepdim=True).clamp(min=1)
        threshold = ordered.gather(-1, kept - 1)
        off = (top_p >= 1)[:, None, None]
        logits = logits.masked_fill((logits < threshold) & ~off, -torch.inf)
    return logits


def _numpy_selects(logits: Tensor) -> bool:
    return logits.is_cpu and logits.dtype == torch.float32


def _kth_largest(logits: Tensor, k: int) -> Tensor:
    """The k-th largest logit of every law. logits: [B, Q, V]; returns [B, Q, 1]."""
    least = logits.shape[-1] - k
    if _numpy_selects(logits):
        # One row of 16384: 35 us against 240; 64 rows of 4096: 0.5 ms against 4.
        ordered = np.partition(logits.detach().numpy(), least, axis=-1)
        return torch.from_numpy(ordered[..., least : least + 1])
    return logits.kthvalue(least + 1, dim=-1, keepdim=True).values


def take_rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows of a table per picture: a copy of whole rows, five times faster than indexing on a CPU.

    Args:
        table: [B, M, V], contiguous.
        index: int64 [B, K].

    Returns:
        [B, K, V].
    """
    batch, rows = table.shape[:2]
    first = torch.arange(0, batch * rows, rows, device=index.device)[:, None]
    flat = table.flatten(0, 1).index_select(0, (index + first).flatten())
    return flat.unflatten(0, index.shape)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: Tensor) -> Tensor:
    """Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011).

    Args:
        counter: four int64 tensors of values below 2^32, broadcastable against each other.
        seed: int64, the 64-bit key, broadcastable against the counter.

    Returns:
        int64 [4, ...] of values below 2^32.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = seed & _MASK32, (seed >> 32) & _MASK32
    for step in range(_ROUNDS):
        # The product of two 32-bit words wraps in int64; its bits, which are all we use, are right.
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = (
            ((second >> 32) & _MASK32) ^ c1 ^ ((k0 + step * _KEY_STEPS[0]) & _MASK32),
            ((first >> 32) & _MASK32) ^ c3 ^ ((k1 + step * _KEY_STEPS[1]) & _MASK32),
        )
        c1, c3 = second & _MASK32, first & _MASK32
    return torch.stack(torch.broadcast_tensors(c0, c1, c2, c3))


def _to_uniform(words: Tensor) -> Tensor:
    """32-bit words to fp32 in (0, 1), with fine steps near 0 where races are decided."""
    return (words.to(torch.float32) + 0.5).mul_(2.0**-32).clamp_(max=LARGEST_UNIFORM)


def uniforms(seed: Tensor, ranks: Tensor, attempt: Tensor) -> Tensor:
    """Four independent uniform numbers for every (seed, rank, attempt).

    Args:
        seed: int64, broadcastable against the others.
        ranks: int64, at least 0.
        attempt: int64, the picture's own count of passes.

    Returns:
        fp32 [4, ...] in (0, 1).
    """
    stream = torch.full((), UNIFORM_STREAM, dtype=torch.int64, device=seed.device)
    return _to_uniform(philox((ranks, attempt, stream, torch.zeros_like(stream)), seed))


def bit_uniforms(
    seed: Tensor, ranks: Tensor, attempt: Tensor, count: int, stream: int = 0
) -> Tensor:
    """Independent uniform numbers, many for every (seed, rank, attempt): one a bit.

    Args:
        seed: int64, broadcastable against the others.
        ranks: int64, at least 0.
        attempt: int64, the picture's own count of passes.
        count: how many, at most 2^20.
        stream: which of many independent uses, at least 0.

    Returns:
        fp32 [..., count] in (0, 1).

    Raises:
        ValueError: `count` is not in 1..2^20.
    """
    if not 1 <= count <= _MOST_NUMBERS:
        raise ValueError(f"count must be in 1..{_MOST_NUMBERS}, got {count}")
    blocks = torch.arange((count + 3) // 4, device=seed.device)
    use = torch.full((), BIT_STREAM + stream, dtype=torch.int64, device=seed.device)
    words = philox((ranks[..., None], attempt[..., None], use, blocks), seed[..., None])
    return _to_uniform(words.movedim(0, -1).flatten(-2)[..., :count])


def logistic_noise(seed: Tensor, ranks: Tensor, bits: int) -> Tensor:
    """Logistic noise that is fixed for every (seed, rank): that of the Gumbel maximum of a bit.

    Args:
        seed: int64 [B].
        ranks: int64 [M].
        bits: d.

    Returns:
        fp32 [B, M, d].
    """
    u = bit_uniforms(seed[:, None], ranks, torch.zeros_like(ranks), bits, stream=FROZEN_STREAM)
    return torch.logit(u)


def gumbel_noise(seed: Tensor, ranks: Tensor, vocabulary: int) -> Tensor:
    """Gumbel noise over the vocabulary that is fixed for every (seed, rank).

    Args:
        seed: int64 [B].
        ranks: int64 [M], or [B, M] where pictures are at different ranks.
        vocabulary: V.

    Returns:
        fp32 [B, M, V].
    """
    blocks = torch.arange((vocabulary + 3) // 4, device=seed.device)
    stream = torch.full((), GUMBEL_STREAM, dtype=torch.int64, device=seed.device)
    count = ranks.shape[-1]
    noise = torch.empty(len(seed), count, vocabulary, device=seed.device)
    # Eight ranks at a time stay in cache: three times faster on a CPU than all ranks at once.
    for start in range(0, count, 8):
        some = ranks[..., start : start + 8, None]
        words = philox((some, blocks, stream, torch.zeros_like(stream)), seed[:, None, None])
        u = _to_uniform(words.movedim(0, -1).flatten(-2)[..., :vocabulary])
        noise[:, start : start + 8] = -(-torch.log1p(-u)).log()
    return noise


def normal_noise(seed: Tensor, ranks: Tensor, width: int) -> Tensor:
    """Standard normal noise that is fixed for every (seed, rank).

    Args:
        seed: int64 [B].
        ranks: int64 [M].
        width: numbers D of every rank.

    Returns:
        fp32 [B, M, D].
    """
    blocks = torch.arange((width + 3) // 4, device=seed.device)
    stream = torch.full((), NORMAL_STREAM, dtype=torch.int64, device=seed.device)
    words = philox((ranks[:, None], blocks, stream, torch.zeros_like(stream)), seed[:, None, None])
    return torch.special.ndtri(_to_uniform(words.movedim(0, -1).flatten(-2)[..., :width]))
