"""BSQ-ViT: two vision transformers around bits on a sphere; knows nothing about generators.

Zhao, Xiong and Krähenbühl (2024), "Image and video tokenization with binary spherical
quantization", arXiv:2406.07548, section 3. Every parameter has its published name, and the numbers
are those of zhaoyue-zephyrus/bsq-vit at commit 37d212d (MIT).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin  # noqa: F401  (diffusers looks for it in a component's module)
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from visual_ar.size import Size
from visual_ar.tokenizers.binary_quantizers import BinarySphericalQuantizer
from visual_ar.tokenizers.bit_tokenizer import BitTokenizer
from visual_ar.tokenizers.vq import count_keys

_HEAD_WIDTH = 64  # of every published model
_PREFIXES = ("module.module.", "module.", "")  # running averages, data-parallel weights, neither
_BASES = ("quantize.basis", "quantize.group_basis")
_INITIAL_STD = 0.02


class Block(nn.Module):
    """Attention over all cells, then a perceptron, each behind its norm. [B, N, D] -> [B, N, D]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        parts = {
            "c_fc": nn.Linear(width, 4 * width),
            "gelu": nn.GELU(),
            "c_proj": nn.Linear(4 * width, width),
        }
        self.mlp = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Trunk(nn.Module):
    """Positions, a norm, the blocks, a norm: what encoder and decoder share. [B, N, D] twice."""

    def __init__(self, cells: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(cells, width) * _INITIAL_STD)
        self.ln_pre = nn.LayerNorm(width)
        blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.transformer = nn.ModuleDict({"resblocks": blocks})
        self.ln_post = nn.LayerNorm(width)

    def run(self, x: Tensor) -> Tensor:
        """Cells [B, N, D] in raster order to as many hidden states."""
        x = self.ln_pre(x + self.positional_embedding)
        blocks = self.transformer["resblocks"]
        assert isinstance(blocks, nn.ModuleList)
        for block in blocks:
            x = block(x)
        return self.ln_post(x)


class Encoder(Trunk):
    """Pixels [B, 3, H, W] to hidden states [B, N, D]."""

    def __init__(self, cells: int, patch_size: int, width: int, layers: int, heads: int) -> None:
        super().__init__(cells, width, layers, heads)
        self._patch_size = patch_size
        self.conv1 = nn.Linear(3 * patch_size**2, width, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        # The order within a patch is colour, row, column, as unfolding has it.
        patches = F.unfold(pixels, self._patch_size, stride=self._patch_size)
        return self.run(self.conv1(patches.transpose(1, 2)))


class Decoder(Trunk):
    """Hidden states [B, N, D] to pixels [B, 3, H, W]."""

    def __init__(
        self, cells: int, patch_size: int, width: int, layers: int, heads: int, ffn_dim: int
    ) -> None:
        super().__init__(cells, width, layers, heads)
        self._patch_size, self._side = patch_size, math.isqrt(cells) * patch_size
        self.ffn = nn.Sequential(nn.Linear(width, ffn_dim), nn.Tanh())
        self.conv_out = nn.Linear(ffn_dim, 3 * patch_size**2)

    def forward(self, hidden: Tensor) -> Tensor:
        patches = self.conv_out(self.ffn(self.run(hidden))).transpose(1, 2)
        size = (self._side, self._side)
        return F.fold(patches, size, self._patch_size, stride=self._patch_size)


class BSQTokenizer(BitTokenizer):
    """A transformer autoencoder whose tokens are the signs of d numbers on the unit sphere.

    Its positions are learned, so that it has one size of pictures. The defaults are the published
    18-bit model for 256x256 pixels.

    Args:
        image_size: pixels along each side, a multiple of `patch_size`.
        patch_size: pixels along each side of a cell.
        width: of both transformers, D.
        layers: of each of them.
        heads: of a layer, dividing the width.
        bits: d, at least 1.
        bit_groups: groups of bits in the entropy loss; nothing else depends on it.
        ffn_dim: width of the layer before the pixels.

    Raises:
        ValueError: a size is below 1 or does not divide, or the bits do not divide into the groups.
    """

    @register_to_config
    def __init__(
        self,
        image_size: int = 256,
        patch_size: int = 8,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        bits: int = 18,
        bit_groups: int = 2,
        ffn_dim: int = 3072,
    ) -> None:
        super().__init__()
        sizes = {"image_size": image_size, "patch_size": patch_size, "width": width}
        for name, value in (sizes | {"layers": layers, "heads": heads, "ffn_dim": ffn_dim}).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if image_size % patch_size:
            raise ValueError(
                f"image_size must be a multiple of patch_size = {patch_size}, got {image_size}"
            )
        if width % heads:
            raise ValueError(f"heads must divide the width {width}, got {heads}")
        self.quantize = BinarySphericalQuantizer(bits, bit_groups)
        cells = (image_size // patch_size) ** 2
        self.encoder = Encoder(cells, patch_size, width, layers, heads)
        self.quant_embed = nn.Linear(width, bits)
        self.post_quant_embed = nn.Linear(bits, width)
        self.decoder = Decoder(cells, patch_size, width, layers, heads, ffn_dim)
        self.apply(_initialise)

    @property
    def downsample(self) -> int:
        return self.config.patch_size

    def grid(self, size: Size) -> tuple[int, ...]:
        """The one grid (h, w) that the positions were learned for.

        Raises:
            ValueError: another size in pixels.
        """
        side = self.config.image_size
        for name, pixels in (("height", size.height), ("width", size.width)):
            if pixels != side:
                raise ValueError(
                    f"{name} must be {side}, for which the positions were learned, got {pixels}"
                )
        return super().grid(size)

    def latents(self, pixels: Tensor) -> Tensor:
        """Encoder output, whose signs are the bits. pixels: [B, 3, H, W]; -> [B, d, h, w].

        It is not normalised; the quantizer puts it on the sphere.
        """
        cells = self.config.image_size // self.config.patch_size
        hidden = self.quant_embed(self.encoder(pixels))
        return hidden.transpose(1, 2).unflatten(2, (cells, cells))

    def reconstruct(self, latents: Tensor, grid: tuple[int, ...] | None = None) -> Tensor:
        """Pixels of codes, approximately in [-1, 1]. latents: [B, d, h, w]; returns [B, 3, H, W].

        Raises:
            ValueError: another grid than the positions were learned for.
        """
        cells = self.config.image_size // self.config.patch_size
        if tuple(latents.shape[2:]) != (cells, cells):
            raise ValueError(
                f"grid must be {(cells, cells)}, for which the positions were learned, "
                f"got {tuple(latents.shape[2:])}"
            )
        return self.decoder(self.post_quant_embed(latents.flatten(2).transpose(1, 2)))


def _initialise(module: nn.Module) -> None:
    """Draws the weights as the published code does; biases of linear maps start as theirs do."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=_INITIAL_STD)
    elif isinstance(module, nn.MultiheadAttention):
        nn.init.trunc_normal_(module.in_proj_weight, std=_INITIAL_STD)


def convert_official(state_dict: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Maps a published BSQ-ViT checkpoint to ours. Sizes are read off the shapes.

    The number of heads cannot be: a head is 64 wide in every published model. The groups of the
    entropy loss are told by a table of powers of two beside the weights.

    Args:
        state_dict: parameters by name, with the prefix that training put before them.

    Returns:
        Constructor arguments of `BSQTokenizer`, and the weights by our names.

    Raises:
        ValueError: the checkpoint is not of this architecture or has another bit order; names the
            offending key.
    """
    prefix = next((p for p in _PREFIXES if f"{p}post_quant_embed.weight" in state_dict), "")
    named = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    _check_bit_order(named)
    config = _config_of(named)
    return config, {key: value for key, value in named.items() if key not in _BASES}


def _check_bit_order(weights: Mapping[str, Tensor]) -> None:
    """Raises where a stored table of powers of two counts the first bit least."""
    for key in _BASES:
        basis = weights.get(key)
        if basis is None or basis.is_meta:
            continue
        if basis.tolist() != [2**i for i in reversed(range(len(basis)))]:
            raise ValueError(
                f"the checkpoint must count the first bit most (msb), got another order in {key}"
            )


def _config_of(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The constructor arguments that the shapes speak of."""
    needed = ("encoder.conv1.weight", "encoder.positional_embedding", "quant_embed.weight")
    for key in (*needed, "decoder.conv_out.weight"):
        if key not in weights:
            raise ValueError(f"the BSQ-ViT checkpoint has no {key}")
        if weights[key].ndim != 2:
            raise ValueError(f"{key} must have 2 axes, got {list(weights[key].shape)}")
    width, colours = weights["encoder.conv1.weight"].shape
    cells, bits = len(weights["encoder.positional_embedding"]), len(weights["quant_embed.weight"])
    side, patch = math.isqrt(cells), math.isqrt(colours // 3)
    if side**2 != cells or 3 * patch**2 != colours:
        raise ValueError(
            "encoder must have a square of cells and of pixels in each, got "
            f"{cells} in positional_embedding and {colours} numbers a cell in conv1.weight"
        )
    if width % _HEAD_WIDTH:
        raise ValueError(
            f"encoder.conv1.weight must have a multiple of {_HEAD_WIDTH} rows, got {width}"
        )
    group = len(weights["quantize.group_basis"]) if _BASES[1] in weights else 1
    return {
        "image_size": side * patch,
        "patch_size": patch,
        "width": width,
        "layers": count_keys(weights, "encoder.transformer.resblocks.{}.ln_1.weight"),
        "heads": width // _HEAD_WIDTH,
        "bits": bits,
        "bit_groups": bits // group,
        "ffn_dim": weights["decoder.conv_out.weight"].shape[1],
    }
