"""The LlamaGen VQ tokenizer (Sun et al. 2024, section 3.1); knows nothing about generators."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from visual_ar.tokenizers.quantizers import Quantized, VectorQuantizer
from visual_ar.tokenizers.visual_tokenizer import VisualTokenizer, check_known


class ResidualBlock(nn.Module):
    """Two normalised 3x3 convolutions added to their input. [B, C_in, h, w] -> [B, C_out, h, w]."""

    def __init__(self, channels_in: int, channels_out: int, groups: int, bias: bool = True) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels_in, eps=1e-6)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=bias)
        self.norm2 = nn.GroupNorm(groups, channels_out, eps=1e-6)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=bias)
        if channels_in != channels_out:
            self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return hidden + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class SpatialAttention(nn.Module):
    """Single-head self-attention over all cells, added to its input. [B, C, h, w] -> same."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (
            layer(normed).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v)
        )  # each [B, 1, h * w, C]
        attended = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2)
        return x + self.proj_out(attended.unflatten(2, x.shape[2:]))


class Downsample(nn.Module):
    """Halves each side with a strided convolution. [B, C, h, w] -> [B, C, h / 2, w / 2]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        # Zeros on the right and below only: the published padding.
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles each side: nearest neighbour, then a convolution. [B, C, h, w] -> [B, C, 2h, 2w]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """One resolution: residual blocks, each followed by attention where asked, then a resampling.

    The submodules are named as in the published checkpoints: res, attn, downsample or upsample.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        blocks: int,
        groups: int,
        attention: bool,
        downsample: bool = False,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        self.res = nn.ModuleList(
            ResidualBlock(channels if i else channels_in, channels, groups) for i in range(blocks)
        )
        self.attn = nn.ModuleList(
            SpatialAttention(channels, groups) for _ in range(blocks if attention else 0)
        )
        if downsample:
            self.downsample = Downsample(channels)
        if upsample:
            self.upsample = Upsample(channels)

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.res):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


def _middle(channels: int, groups: int) -> nn.ModuleList:
    return nn.ModuleList(
        (
            ResidualBlock(channels, channels, groups),
            SpatialAttention(channels, groups),
            ResidualBlock(channels, channels, groups),
        )
    )


class Encoder(nn.Module):
    """Pixels [B, 3, H, W] to latents [B, latent_channels, H / f, W / f]."""

    def __init__(
        self, channels: int, multipliers: tuple[int, ...], blocks: int, latent: int, groups: int
    ) -> None:
        super().__init__()
        widths = [channels * m for m in multipliers]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1)
        self.conv_blocks = nn.ModuleList(
            Level(before, width, blocks, groups, attention=i == last, downsample=i < last)
            for i, (before, width) in enumerate(zip([channels, *widths[:-1]], widths, strict=True))
        )
        self.mid = _middle(widths[-1], groups)
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], latent, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv_in(pixels)
        for block in (*self.conv_blocks, *self.mid):
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """Latents [B, latent_channels, h, w] to pixels [B, 3, f * h, f * w]."""

    def __init__(
        self, channels: int, multipliers: tuple[int, ...], blocks: int, latent: int, groups: int
    ) -> None:
        super().__init__()
        widths = [channels * m for m in reversed(multipliers)]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(latent, widths[0], 3, padding=1)
        self.mid = _middle(widths[0], groups)
        self.conv_blocks = nn.ModuleList(
            Level(before, width, blocks + 1, groups, attention=i == 0, upsample=i < last)
            for i, (before, width) in enumerate(zip([widths[0], *widths[:-1]], widths, strict=True))
        )
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.conv_in(latents)
        for block in (*self.mid, *self.conv_blocks):
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class VQTokenizer(VisualTokenizer, ModelMixin):
    """A convolutional VQGAN with an l2-normalised code book.

    The defaults are the published VQ-16; VQ-8 has `channel_multipliers=(1, 2, 2, 4)`. Every
    parameter has its published name.

    Args:
        channels: width at full resolution, in units of which the multipliers count.
        channel_multipliers: one per resolution, finest first; each but the last halves the sides.
        residual_blocks: per resolution in the encoder; the decoder has one more.
        latent_channels: width between the convolutions and the code space.
        codebook_size: number of codes V.
        codebook_dim: dimension C of a code.
        norm_groups: groups of every group norm.

    Raises:
        ValueError: a size is below 1 or a width is not a multiple of `norm_groups`.
    """

    @register_to_config
    def __init__(
        self,
        channels: int = 128,
        channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        residual_blocks: int = 2,
        latent_channels: int = 256,
        codebook_size: int = 16384,
        codebook_dim: int = 8,
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        sizes = {
            "channels": channels,
            "residual_blocks": residual_blocks,
            "latent_channels": latent_channels,
            "codebook_size": codebook_size,
            "codebook_dim": codebook_dim,
        }
        check_sizes(sizes, channels, tuple(channel_multipliers), norm_groups)
        shape = (channels, tuple(channel_multipliers), residual_blocks, latent_channels)
        self.encoder = Encoder(*shape, norm_groups)
        self.decoder = Decoder(*shape, norm_groups)
        self.quantize = VectorQuantizer(codebook_size, codebook_dim)
        self.quant_conv = nn.Conv2d(latent_channels, codebook_dim, 1)
        self.post_quant_conv = nn.Conv2d(codebook_dim, latent_channels, 1)

    @property
    def codebook_size(self) -> int:
        return self.config.codebook_size

    @property
    def downsample(self) -> int:
        return 2 ** (len(self.config.channel_multipliers) - 1)

    def latents(self, pixels: Tensor) -> Tensor:
        """Encoder output in code space, not normalised. pixels: [B, 3, H, W]; -> [B, C, h, w]."""
        return self.quant_conv(self.encoder(pixels))

    def reconstruct(self, latents: Tensor, grid: tuple[int, ...] | None = None) -> Tensor:
        """Pixels of code vectors or latents. latents: [B, C, h, w]; returns [B, 3, H, W]."""
        return self.decoder(self.post_quant_conv(latents))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Quantized]:
        """Reconstructs pictures through the code book. pixels: [B, 3, H, W] in [-1, 1]."""
        quantized = self.quantize(self.latents(pixels))
        return self.reconstruct(quantized.codes), quantized

    @apply_forward_hook
    @torch.no_grad()
    def encode(self, pixels: Tensor, length: int | None = None) -> Tensor:
        self.check_pixels(pixels, length)
        return self.quantize.encode(self.latents(pixels))

    @torch.no_grad()
    def soft_encode(self, pixels: Tensor, count: int, temperature: float) -> tuple[Tensor, Tensor]:
        """The nearest codes of every cell and their chances, see `VectorQuantizer.soften`.

        Args:
            pixels: [B, 3, H, W] in [-1, 1].
            count: number K of codes a cell.
            temperature: above 0.

        Returns:
            int64 [B, N, K], nearest first, and float [B, N, K].

        Raises:
            ValueError: an argument out of its range.
        """
        self.check_pixels(pixels, None)
        if not 1 <= count <= self.codebook_size:
            raise ValueError(f"count must be in 1..{self.codebook_size}, got {count}")
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        return self.quantize.soften(self.latents(pixels), count, temperature)

    @apply_forward_hook
    @torch.no_grad()
    def decode(
        self,
        tokens: Tensor,
        grid: tuple[int, ...],
        known: Tensor | None = None,
        seeds: Tensor | None = None,
    ) -> Tensor:
        codes = self.lookup(tokens, grid)
        if known is not None:
            check_known(tokens, known, grid)
            mean = self.quantize.codebook().mean(dim=0)[None, :, None, None]
            codes = torch.where(known.unflatten(1, grid)[:, None], codes, mean)
        return self.reconstruct(codes)

    def lookup(self, tokens: Tensor, grid: tuple[int, ...]) -> Tensor:
        if tokens.ndim != 2 or tokens.shape[1] != math.prod(grid):
            raise ValueError(
                f"tokens must be [B, {math.prod(grid)}] for the grid {tuple(grid)}, "
                f"got {list(tokens.shape)}"
            )
        return self.quantize.lookup(tokens, grid)

    @torch.no_grad()
    def neighbours(self, k: int) -> Tensor:
        if not 1 <= k < self.codebook_size:
            raise ValueError(f"k must be in 1..{self.codebook_size - 1}, got {k}")
        codebook = self.quantize.codebook()
        similarity = codebook @ codebook.T
        similarity.fill_diagonal_(-torch.inf)
        return similarity.topk(k, dim=-1).indices


def check_sizes(
    sizes: Mapping[str, int], channels: int, multipliers: tuple[int, ...], norm_groups: int
) -> None:
    """Raises ValueError for a size below 1, or a width that the norm groups do not divide."""
    counts = {"norm_groups": norm_groups, "len(channel_multipliers)": len(multipliers)}
    for name, value in {**sizes, **counts}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    for multiplier in (1, *multipliers):
        if multiplier < 1 or channels * multiplier % norm_groups:
            raise ValueError(
                f"every width must be a multiple of norm_groups={norm_groups}, "
                f"got {channels} * {multiplier}"
            )


def convert_official(state_dict: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Maps a published LlamaGen tokenizer checkpoint (`vq_ds16_*.pt`, `vq_ds8_*.pt`) to ours.

    The names are the published ones, so this unwraps `{"model": ...}`, drops the usage counter
    `quantize.codebook_used`, reads every size off the shapes and checks that nothing is missing,
    left over or of another shape.

    Args:
        state_dict: what the checkpoint file holds; tensors may be on the meta device.

    Returns:
        Constructor arguments of `VQTokenizer`, and the weights by our names.

    Raises:
        ValueError: the checkpoint is not of this architecture; names the offending key and shape.
    """
    weights = state_dict.get("model", state_dict)
    if not isinstance(weights, Mapping):
        raise ValueError(f'"model" must hold the weights by name, got {type(weights).__name__}')
    weights = {key: value for key, value in weights.items() if key != "quantize.codebook_used"}
    config = _config_of(weights)
    with torch.device("meta"):
        expected = {key: value.shape for key, value in VQTokenizer(**config).state_dict().items()}
    for key, shape in expected.items():
        if key not in weights:
            raise ValueError(f"the VQ checkpoint has no {key}, expected {list(shape)}")
        if weights[key].shape != shape:
            raise ValueError(
                f"{key} must be {list(shape)} in this VQ checkpoint, got {list(weights[key].shape)}"
            )
    for key in weights:
        if key not in expected:
            raise ValueError(f"the VQ checkpoint has a weight that the model lacks: {key}")
    return config, weights


def _config_of(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The constructor arguments that the shapes of a published checkpoint speak of."""

    def shape(key: str, axes: int) -> torch.Size:
        if key not in weights:
            raise ValueError(f"the VQ checkpoint has no {key}")
        value = weights[key]
        if not isinstance(value, Tensor) or value.ndim != axes:
            found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{key} must have {axes} axes in a VQ checkpoint, got {found}")
        return value.shape

    channels = shape("encoder.conv_in.weight", 4)[0]
    levels = count_keys(weights, "encoder.conv_blocks.{}.res.0.conv1.weight")
    widths = [shape(f"encoder.conv_blocks.{i}.res.0.conv1.weight", 4)[0] for i in range(levels)]
    if not widths or channels < 1 or any(width % channels for width in widths):
        raise ValueError(
            f"encoder.conv_blocks must have widths that are multiples of {channels}, got {widths}"
        )
    codebook_size, codebook_dim = shape("quantize.embedding.weight", 2)
    return {
        "channels": channels,
        "channel_multipliers": tuple(width // channels for width in widths),
        "residual_blocks": count_keys(weights, "encoder.conv_blocks.0.res.{}.conv1.weight"),
        "latent_channels": shape("encoder.conv_out.weight", 4)[0],
        "codebook_size": codebook_size,
        "codebook_dim": codebook_dim,
    }


def count_keys(weights: Mapping[str, Tensor], pattern: str) -> int:
    """How many consecutive indices from 0 the pattern has."""
    count = 0
    while pattern.format(count) in weights:
        count += 1
    return count
