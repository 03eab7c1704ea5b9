"""Counts which codes a tokenizer uses; knows tokens, no pictures."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import torch
from torch import Tensor


class CodeCounts:
    """How often every code was used.

    Args:
        codebook_size: number of codes V, 2^d for vectors of d bits.
    """

    def __init__(self, codebook_size: int) -> None:
        self._size = codebook_size
        self._counts: Counter[bytes] = Counter()

    def add(self, tokens: Tensor) -> None:
        """Counts tokens: int64 [B, N], or bool [B, N, d]."""
        if tokens.dtype == torch.bool:
            rows = np.packbits(tokens.flatten(0, 1).cpu().numpy(), axis=1)
        else:
            rows = tokens.reshape(-1, 1).cpu().numpy().astype(">i8").view(np.uint8)
        keys = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.shape[1])))[:, 0]
        for key, count in zip(*np.unique(keys, return_counts=True), strict=True):
            self._counts[bytes(key)] += int(count)

    def used(self) -> int:
        """Different codes that occurred."""
        return len(self._counts)

    def usage(self) -> float:
        """Share of all codes that occurred, in [0, 1]."""
        return len(self._counts) / self._size

    def perplexity(self) -> float:
        """exp of the entropy of the codes' frequencies, in [1, V]."""
        counts = np.array(list(self._counts.values()), np.float64)
        share = counts / counts.sum()
        return math.exp(-float((share * np.log(share)).sum()))


def bits(tokens: Tensor, codebook_size: int) -> float:
    """Bits that store the tokens of one picture: log2 V for a code, d for a vector of d bits.

    Args:
        tokens: int64 [B, N], or bool [B, N, d].
        codebook_size: number of codes V.
    """
    each = tokens.shape[2] if tokens.dtype == torch.bool else math.log2(codebook_size)
    return float(tokens.shape[1] * each)
