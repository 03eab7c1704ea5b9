"""Counts which codes a tokenizer uses; knows tokens, no pictures."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
from torch import Tensor


class CodeCounts:
    """How often every code was used.

    Args:
        codebook_size: number of different tokens V.
    """

    def __init__(self, codebook_size: int) -> None:
        self._size = codebook_size
        self._counts: Counter[bytes] = Counter()

    def add(self, tokens: Tensor) -> None:
        """Counts tokens [B, N, *]: two are the same where all their parts are."""
        rows = tokens.flatten(0, 1).flatten(1) if tokens.dim() > 2 else tokens.reshape(-1, 1)
        parts = rows.cpu().numpy()
        parts = parts.astype(parts.dtype.newbyteorder(">"))  # sorted like the numbers they hold
        keys = np.ascontiguousarray(parts).view(np.dtype((np.void, parts[0].nbytes)))[:, 0]
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
    """Bits that store the tokens of one picture, log2 V each.

    Args:
        tokens: [B, N, *].
        codebook_size: number of different tokens V.
    """
    return float(tokens.shape[1] * math.log2(codebook_size))
