"""Quantizers: latent vectors to codes and back; they know nothing about pixels."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Quantized(NamedTuple):
    """What a quantizer gives: the chosen code vectors, the codes, and the inputs as compared."""

    codes: Tensor  # [B, C, h, w] code vectors, gradient passed straight through to the input
    tokens: Tensor  # int64 [B, h * w]
    latents: Tensor  # [B, C, h, w] the input, l2-normalised where the quantizer does so


class VectorQuantizer(nn.Module):
    """Nearest-neighbour quantisation on the unit sphere.

    van den Oord et al. (2017), equations 1-2, with the l2-normalised codes and latents of Yu et al.
    (2022), "Vector-quantized image modeling with improved VQGAN", section 3.2.
    """

    def __init__(self, codebook_size: int, codebook_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, codebook_dim)
        nn.init.normal_(self.embedding.weight)

    def codebook(self) -> Tensor:
        """The unit-length code vectors, [V, C]."""
        return F.normalize(self.embedding.weight, dim=-1)

    def nearest(self, vectors: Tensor) -> Tensor:
        """The code nearest to each unit vector. vectors: [M, C]; returns int64 [M]."""
        # On the unit sphere the smallest distance is the largest inner product.
        return (vectors @ self.codebook().T).argmax(dim=-1)

    def lookup(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Code vectors laid out on the grid. tokens: int64 [B, N]; returns [B, C, h, w]."""
        vectors = F.embedding(tokens, self.codebook())
        return vectors.unflatten(1, grid).permute(0, 3, 1, 2)

    def forward(self, latents: Tensor) -> Quantized:
        """Quantise. latents: [B, C, h, w]."""
        grid = (latents.shape[2], latents.shape[3])
        latents = F.normalize(latents, dim=1)
        flat = latents.permute(0, 2, 3, 1).flatten(0, 2)
        with torch.no_grad():
            tokens = self.nearest(flat).unflatten(0, (latents.shape[0], -1))
        codes = self.lookup(tokens, grid)
        return Quantized(latents + (codes - latents).detach(), tokens, latents)
