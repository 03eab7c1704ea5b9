"""Quantizers: latent vectors to codes and back; they know nothing about pixels.

Here are the protocol and the quantizers whose tokens are integers; those whose tokens are bits are
in `binary_quantizers`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Quantized(NamedTuple):
    """What a quantizer gives: quantised latents, tokens, the inputs as compared, losses, numbers.

    Attributes:
        codes: float [B, C, h, w], the quantised latents, gradient passed straight through to the
            input.
        tokens: int64 [B, h * w], or bool [B, h * w, d].
        latents: [B, C, h, w], the input as it was compared: normalised or bounded where the
            quantizer does so.
        losses: scalars by name, unweighted, with gradients.
        statistics: what the batch used, by name, without gradients.
    """

    codes: Tensor
    tokens: Tensor
    latents: Tensor
    losses: dict[str, Tensor]
    statistics: dict[str, Tensor]


class Quantizer(Protocol):
    """What every quantizer can do."""

    def __call__(self, latents: Tensor) -> Quantized:
        """Quantise for training. latents: float [B, C, h, w]."""

    def encode(self, latents: Tensor) -> Tensor:
        """The tokens alone. latents: [B, C, h, w]; int64 [B, h * w], or bool [B, h * w, d]."""

    def lookup(self, tokens: Tensor, grid: tuple[int, ...]) -> Tensor:
        """The quantised latents of tokens on the grid (h, w). Returns [B, C, h, w]."""


class VectorQuantizer(nn.Module):
    """Nearest-neighbour quantisation on the unit sphere.

    van den Oord et al. (2017), equations 1-3, with the l2-normalised codes and latents of Yu et al.
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
        # On the unit sphere the smallest distance is the largest inner product. Under autocast it
        # would be rounded to 8 bits, in which many codes are as near.
        with torch.autocast(vectors.device.type, enabled=False):
            return (in_full(vectors) @ in_full(self.codebook()).T).argmax(dim=-1)

    def encode(self, latents: Tensor) -> Tensor:
        """The tokens alone. latents: [B, C, h, w]; returns int64 [B, h * w]."""
        return self._tokens(F.normalize(latents, dim=1))

    def soften(self, latents: Tensor, count: int, temperature: float) -> tuple[Tensor, Tensor]:
        """The codes nearest to each latent and how well each would do in its place.

        Lee et al. (2022), "Autoregressive image generation using residual quantization", section
        3.2.3: a code's chance is proportional to exp(-squared distance / temperature).

        Args:
            latents: [B, C, h, w].
            count: number K of codes to tell, 1..V; their chances sum to 1.
            temperature: above 0, in squared distances on the unit sphere.

        Returns:
            int64 [B, h * w, K], nearest first, and float [B, h * w, K].
        """
        flat = F.normalize(latents, dim=1).permute(0, 2, 3, 1).flatten(1, 2)
        similarity, tokens = (flat @ self.codebook().T).topk(count, dim=-1)
        # Between unit vectors the squared distance is 2 - 2 similarity.
        return tokens, (2 * similarity / temperature).softmax(dim=-1)

    def lookup(self, tokens: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Code vectors laid out on the grid. tokens: int64 [B, N]; returns [B, C, h, w]."""
        vectors = F.embedding(tokens, self.codebook())
        return vectors.unflatten(1, grid).permute(0, 3, 1, 2)

    def forward(self, latents: Tensor) -> Quantized:
        """Quantise. latents: [B, C, h, w].

        The losses are "commitment", which moves the latents, and "codebook", which moves the codes.
        """
        given = latents.dtype
        with torch.autocast(latents.device.type, enabled=False):
            latents = F.normalize(in_full(latents), dim=1)
            tokens = self._tokens(latents)
            codes = self.lookup(tokens, (latents.shape[2], latents.shape[3]))
            losses = {
                "commitment": (latents - codes.detach()).square().mean(),
                "codebook": (latents.detach() - codes).square().mean(),
            }
            passed = latents + (codes - latents).detach()
        statistics = {"perplexity": _perplexity(tokens, self.embedding.num_embeddings)}
        return Quantized(passed.to(given), tokens, latents, losses, statistics)

    @torch.no_grad()
    def _tokens(self, latents: Tensor) -> Tensor:
        """Of unit-length latents [B, C, h, w]."""
        flat = latents.permute(0, 2, 3, 1).flatten(0, 2)
        return self.nearest(flat).unflatten(0, (latents.shape[0], -1))


class FiniteScalarQuantizer(nn.Module):
    """Finite scalar quantisation: every channel rounded to one of a few levels.

    Mentzer et al. (2023), "Finite scalar quantization: VQ-VAE made simple", appendix A.1. A code is
    the levels read as digits, the first channel counting least.

    Args:
        levels: number of levels L of each channel, at least 2 each.

    Raises:
        ValueError: no levels, one below 2, or more codes than an int64 counts.
    """

    _half_width: Tensor
    _basis: Tensor
    _levels: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(
                f"levels must be one or more numbers of at least 2, got {list(levels)}"
            )
        if math.prod(levels) >= 2**63:
            raise ValueError(
                f"levels must give fewer than 2^63 codes, got {list(levels)} with "
                f"{math.prod(levels)}"
            )
        self.codebook_size = math.prod(levels)
        basis = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("_levels", torch.tensor(levels), persistent=False)
        self.register_buffer("_half_width", torch.tensor(levels) // 2, persistent=False)
        self.register_buffer("_basis", torch.tensor(basis), persistent=False)

    def encode(self, latents: Tensor) -> Tensor:
        """The tokens alone. latents: [B, C, h, w]; returns int64 [B, h * w]."""
        return self._tokens(self._bound(latents).round())

    def lookup(self, tokens: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Quantised latents in [-1, 1] of codes. tokens: int64 [B, N]; returns [B, C, h, w].

        Raises:
            ValueError: the tokens are not int64 [B, h * w], or a code is beyond the range.
        """
        count = grid[0] * grid[1]
        if tokens.dtype != torch.int64 or tokens.ndim != 2 or tokens.shape[1] != count:
            raise ValueError(
                f"tokens must be int64 [B, {count}] for the grid {tuple(grid)}, "
                f"got {tokens.dtype} {list(tokens.shape)}"
            )
        outside = (tokens < 0) | (tokens >= self.codebook_size)
        if bool(outside.any()):
            raise ValueError(
                f"tokens must be in 0..{self.codebook_size - 1}, got {int(tokens[outside][0])}"
            )
        digits = tokens[..., None] // self._basis % self._levels
        codes = (digits - self._half_width) / self._half_width
        return codes.unflatten(1, grid).permute(0, 3, 1, 2)

    def forward(self, latents: Tensor) -> Quantized:
        """Quantise. latents: [B, C, h, w], C channels for C levels. There are no losses."""
        bounded = self._bound(latents)
        rounded = bounded.round()
        tokens = self._tokens(rounded)
        width = self._half_width[:, None, None]
        codes = (bounded + (rounded - bounded).detach()) / width
        statistics = {"perplexity": _perplexity(tokens, self.codebook_size)}
        return Quantized(codes.to(latents.dtype), tokens, bounded / width, {}, statistics)

    def _bound(self, latents: Tensor) -> Tensor:
        """Squashes each channel so that rounding gives its levels, in fp32 at least."""
        check_latents(latents, len(self._levels))
        latents = in_full(latents)
        levels = self._levels[:, None, None].to(latents.dtype)
        half = (levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        return torch.tanh(latents + torch.atanh(offset / half)) * half - offset

    def _tokens(self, rounded: Tensor) -> Tensor:
        digits = rounded.long() + self._half_width[:, None, None]
        return (digits * self._basis[:, None, None]).sum(1).flatten(1)


def in_full(x: Tensor) -> Tensor:
    """In fp32 where it is narrower; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_latents(latents: Tensor, channels: int) -> None:
    """Raises ValueError unless `latents` are float [B, channels, h, w]."""
    if latents.ndim != 4 or latents.shape[1] != channels or not latents.is_floating_point():
        raise ValueError(
            f"latents must be float [B, {channels}, h, w], got {latents.dtype} "
            f"{list(latents.shape)}"
        )


@torch.no_grad()
def _perplexity(tokens: Tensor, codebook_size: int) -> Tensor:
    """Perplexity of the frequencies of codes, a scalar in 1..V. tokens: int64 [B, N]."""
    frequencies = torch.bincount(tokens.flatten(), minlength=codebook_size) / tokens.numel()
    return torch.special.entr(frequencies).sum().exp()
