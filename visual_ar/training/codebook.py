"""The life of a code book in training: k-means start, running averages, revival of dead codes.

van den Oord et al. (2017), "Neural discrete representation learning", appendix A.1, equations 6-8,
on the unit sphere; knows nothing about the networks around the quantizer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from visual_ar.tokenizers.quantizers import VectorQuantizer
from visual_ar.training.recipe import Codebook


class CodebookUpkeep:
    """Keeps each code at the running average of the vectors that chose it."""

    def __init__(self, quantizer: VectorQuantizer, options: Codebook) -> None:
        self._quantizer = quantizer.requires_grad_(False)
        self._options = options
        weight = quantizer.embedding.weight
        self._counts = torch.ones(len(weight), device=weight.device)
        self._sums = weight.detach().clone()

    @torch.no_grad()
    def start(self, vectors: Tensor, generator: torch.Generator, rounds: int = 10) -> None:
        """Spherical k-means. vectors: [M, C] unit length, M at least the number of codes."""
        count = len(self._counts)
        chosen = torch.randperm(len(vectors), generator=generator)[:count].to(vectors.device)
        codes = vectors[chosen].clone()
        for _ in range(rounds):
            tokens = torch.cat([(part @ codes.T).argmax(dim=-1) for part in vectors.split(8192)])
            sums = torch.zeros_like(codes).index_add_(0, tokens, vectors)
            # An empty cluster keeps its vector; it is revived later if it stays empty.
            codes = torch.where(sums.square().sum(-1, keepdim=True) > 0, F.normalize(sums), codes)
        self._set(codes)

    @torch.no_grad()
    def update(self, vectors: Tensor, tokens: Tensor) -> None:
        """Moves the codes towards their vectors. vectors: [M, C] unit length; tokens: int64 [M]."""
        decay = self._options.decay
        counts = torch.bincount(tokens, minlength=len(self._counts)).to(self._counts)
        sums = torch.zeros_like(self._sums).index_add_(0, tokens, vectors.float())
        self._counts.lerp_(counts, 1 - decay)
        self._sums.lerp_(sums, 1 - decay)
        self._quantizer.embedding.weight.copy_(F.normalize(self._sums))

    @torch.no_grad()
    def revive(self, vectors: Tensor, generator: torch.Generator) -> int:
        """Puts dead codes on random vectors of the batch; returns how many there were."""
        share = len(vectors) / len(self._counts)
        dead = (self._counts < self._options.dead * share).nonzero().flatten()[: len(vectors)]
        chosen = torch.randperm(len(vectors), generator=generator)[: len(dead)].to(dead.device)
        # A full share of count gives a revived code the time to prove itself.
        self._counts[dead] = share
        self._sums[dead] = vectors[chosen].float() * share
        self._quantizer.embedding.weight[dead] = vectors[chosen].float()
        return len(dead)

    def _set(self, codes: Tensor) -> None:
        self._quantizer.embedding.weight.copy_(codes)
        self._counts.fill_(1.0)
        self._sums.copy_(codes)

    def state(self) -> dict[str, Any]:
        """What `restore` needs."""
        return {"counts": self._counts, "sums": self._sums}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        self._counts.copy_(state["counts"])
        self._sums.copy_(state["sums"])
