"""The binary convolutional tokenizer of Open-MAGVIT2 and BitDance; knows nothing about generators.

Luo et al. (2024), "Open-MAGVIT2", section 3.1: an autoencoder without attention, whose decoder is
modulated at every resolution by the mean and the spread of the code. Every parameter has its
published name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from diffusers import ModelMixin  # noqa: F401  (diffusers looks for it in a component's module)
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from visual_ar.tokenizers.binary_quantizers import WIDEST_GROUP, GroupedLookupFreeQuantizer
from visual_ar.tokenizers.bit_tokenizer import BitTokenizer
from visual_ar.tokenizers.vq import ResidualBlock, check_sizes, count_keys

_EPSILON = 1e-6


class Upsample(nn.Module):
    """Doubles each side: a convolution to 4 C channels, then depth to space. [B, C, h, w]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # The place in the 2x2 block counts most in the channel index, unlike in a pixel shuffle.
        x = self.conv1(x).unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2)
        return F.pixel_shuffle(x, 2)


class AdaptiveGroupNorm(nn.Module):
    """A group norm whose scale and shift are linear in the spread and mean of the code's channels.

    [B, C, h', w'] and the code [B, d, h, w] of at least two cells -> [B, C, h', w'].
    """

    def __init__(self, bits: int, channels: int, groups: int) -> None:
        super().__init__()
        self.gn = nn.GroupNorm(groups, channels, eps=_EPSILON, affine=False)
        self.gamma = nn.Linear(bits, channels)
        self.beta = nn.Linear(bits, channels)

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        cells = codes.flatten(2)
        scale = self.gamma((cells.var(dim=-1) + _EPSILON).sqrt())
        return scale[..., None, None] * self.gn(x) + self.beta(cells.mean(dim=-1))[..., None, None]


class Level(nn.Module):
    """One resolution: residual blocks, then a resampling. Named as in the published checkpoints."""

    def __init__(self, channels_in: int, channels: int, blocks: int, groups: int) -> None:
        super().__init__()
        self.block = _blocks(channels_in, channels, blocks, groups)
        self.downsample: nn.Module
        self.upsample: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


def _blocks(channels_in: int, channels: int, count: int, groups: int) -> nn.ModuleList:
    return nn.ModuleList(
        ResidualBlock(channels if i else channels_in, channels, groups, bias=False)
        for i in range(count)
    )


class Encoder(nn.Module):
    """Pixels [B, 3, H, W] to latents [B, d, H / f, W / f]."""

    def __init__(
        self, channels: int, multipliers: tuple[int, ...], blocks: int, bits: int, groups: int
    ) -> None:
        super().__init__()
        widths = [channels * m for m in multipliers]
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.down = nn.ModuleList(
            Level(before, width, blocks, groups)
            for before, width in zip([channels, *widths[:-1]], widths, strict=True)
        )
        for level, width in zip(self.down[:-1], widths, strict=False):
            level.downsample = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.mid_block = _blocks(widths[-1], widths[-1], blocks, groups)
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=_EPSILON)
        self.conv_out = nn.Conv2d(widths[-1], bits, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv_in(pixels)
        for block in (*self.down, *self.mid_block):
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """Codes [B, d, h, w] to pixels [B, 3, f * h, f * w]. `up` and `adaptive` are finest first."""

    def __init__(
        self, channels: int, multipliers: tuple[int, ...], blocks: int, bits: int, groups: int
    ) -> None:
        super().__init__()
        widths = [channels * m for m in multipliers]
        before = [*widths[1:], widths[-1]]
        self.conv_in = nn.Conv2d(bits, widths[-1], 3, padding=1)
        self.mid_block = _blocks(widths[-1], widths[-1], blocks, groups)
        self.up = nn.ModuleList(
            Level(wider, width, blocks, groups) for wider, width in zip(before, widths, strict=True)
        )
        for level, width in zip(self.up[1:], widths[1:], strict=True):
            level.upsample = Upsample(width)
        self.adaptive = nn.ModuleList(AdaptiveGroupNorm(bits, wider, groups) for wider in before)
        self.norm_out = nn.GroupNorm(groups, widths[0], eps=_EPSILON)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.conv_in(codes)
        for block in self.mid_block:
            x = block(x)
        for norm, level in zip(reversed(self.adaptive), reversed(self.up), strict=True):
            x = level(norm(x, codes))
        return self.conv_out(F.silu(self.norm_out(x)))


class BinaryTokenizer(BitTokenizer):
    """A convolutional autoencoder whose tokens are d bits, decoded from their signs.

    The defaults are the published Open-MAGVIT2 256_L. BitDance's three have `channels=256` with
    `bits` 32, 128 and 256, and one more resolution for the last two.

    Args:
        channels: width at full resolution, in units of which the multipliers count.
        channel_multipliers: one per resolution, finest first; each but the last halves the sides.
        residual_blocks: per resolution and in the middle.
        bits: d, at least 1.
        bit_groups: groups of bits in the entropy loss, see `GroupedLookupFreeQuantizer`; nothing
            else depends on it.
        norm_groups: groups of every group norm.
        decoder_blocks: `residual_blocks` of the decoder where it is deeper than the encoder; None
            is as many, as in all published checkpoints.

    Raises:
        ValueError: a size is below 1, a width is not a multiple of `norm_groups`, or the bits do
            not divide into the groups.
    """

    @register_to_config
    def __init__(
        self,
        channels: int = 128,
        channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        residual_blocks: int = 4,
        bits: int = 18,
        bit_groups: int = 1,
        norm_groups: int = 32,
        decoder_blocks: int | None = None,
    ) -> None:
        super().__init__()
        of_decoder = residual_blocks if decoder_blocks is None else decoder_blocks
        sizes = {
            "channels": channels,
            "residual_blocks": residual_blocks,
            "decoder_blocks": of_decoder,
        }
        check_sizes(sizes, channels, tuple(channel_multipliers), norm_groups)
        self.quantize = GroupedLookupFreeQuantizer(bits, bit_groups)
        widths, rest = (channels, tuple(channel_multipliers)), (bits, norm_groups)
        self.encoder = Encoder(*widths, residual_blocks, *rest)
        self.decoder = Decoder(*widths, of_decoder, *rest)

    @property
    def downsample(self) -> int:
        return 2 ** (len(self.config.channel_multipliers) - 1)

    def latents(self, pixels: Tensor) -> Tensor:
        """Encoder output, whose signs are the bits. pixels: [B, 3, H, W]; -> [B, d, h, w]."""
        return self.encoder(pixels)

    def reconstruct(self, latents: Tensor, grid: tuple[int, ...] | None = None) -> Tensor:
        """Pixels of codes in [-1, 1]. latents: [B, d, h, w]; returns [B, 3, H, W].

        Raises:
            ValueError: there is a single cell, whose spread is not defined.
        """
        if latents.shape[2] * latents.shape[3] < 2:
            raise ValueError(
                "grid must have at least 2 cells, because the decoder reads the spread of the "
                f"code over them, got {tuple(latents.shape[2:])}"
            )
        return self.decoder(latents)


def convert_official(state_dict: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Maps a published Open-MAGVIT2 or BitDance tokenizer checkpoint to ours.

    Both have our names. Lightning checkpoints of Open-MAGVIT2 also hold running averages, under
    `model_ema.` and the name without its dots; those are taken, as the published numbers do. What
    belongs to the losses is dropped. Sizes are read off the shapes. The groups of the entropy loss
    cannot be read off: one up to 18 bits, then groups of 8 bits or fewer, BitDance's four for 32.

    Args:
        state_dict: parameters by name; tensors may be on the meta device.

    Returns:
        Constructor arguments of `BinaryTokenizer`, and the weights by our names.

    Raises:
        ValueError: the checkpoint is not of this architecture, has another bit order, or holds some
            averages only; names the offending key.
    """
    _check_bit_order(state_dict)
    weights = _averaged(state_dict)
    config = _config_of(weights)
    if weights["decoder.conv_in.weight"].shape[1] == 2 * config["bits"]:
        raise ValueError(
            "decoder.conv_in.weight takes as many noise channels as bits; the decoder that draws "
            "noise is not supported"
        )
    return config, weights


def _averaged(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of the two networks, as running averages if there are any."""
    raw = {k: v for k, v in state_dict.items() if k.startswith(("encoder.", "decoder."))}
    averages = {key: "model_ema." + key.replace(".", "") for key in raw}
    if not any(average in state_dict for average in averages.values()):
        return raw
    for key, average in averages.items():
        if average not in state_dict:
            raise ValueError(f"the checkpoint has running averages, but none of {key}: {average}")
    return {key: state_dict[average] for key, average in averages.items()}


def _check_bit_order(state_dict: Mapping[str, Any]) -> None:
    """Raises where a stored table of powers of two counts the first bit most."""
    for key, value in state_dict.items():
        if not key.startswith(("quantize.mask", "quantize.basis")) or value.is_meta:
            continue
        if value.tolist() != [2**i for i in range(len(value))]:
            raise ValueError(
                f"the checkpoint must count the first bit least (lsb), got another order in {key}"
            )


def _config_of(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The constructor arguments that the shapes speak of."""
    for key in ("encoder.conv_in.weight", "encoder.conv_out.weight", "decoder.conv_in.weight"):
        if key not in weights:
            raise ValueError(f"the binary tokenizer checkpoint has no {key}")
        if weights[key].ndim != 4:
            raise ValueError(f"{key} must have 4 axes, got {list(weights[key].shape)}")
    channels, bits = (weights[f"encoder.conv_{end}.weight"].shape[0] for end in ("in", "out"))
    pattern = "encoder.down.{}.block.0.conv1.weight"
    levels = count_keys(weights, pattern)
    widths = [weights[pattern.format(level)].shape[0] for level in range(levels)]
    if not widths or channels < 1 or any(width % channels for width in widths):
        raise ValueError(f"encoder.down must have widths that {channels} divides, got {widths}")
    return {
        "channels": channels,
        "channel_multipliers": tuple(width // channels for width in widths),
        "residual_blocks": count_keys(weights, "encoder.mid_block.{}.conv1.weight"),
        "bits": bits,
        "bit_groups": _bit_groups(bits),
    }


def _bit_groups(bits: int) -> int:
    """One group as far as that is published, then as few as give at most a byte each."""
    if bits <= WIDEST_GROUP:
        return 1
    return next(
        groups for groups in range(1, bits + 1) if bits % groups == 0 and bits <= 8 * groups
    )
