"""Perceptual distance of two pictures, from weights given by path; knows no other metric.

LPIPS (Zhang et al. 2018, "The unreasonable effectiveness of deep features", eq. 1), version 0.1
with VGG-16: unit-normalised activations of five layers, squared differences weighted by channel,
averaged over positions and summed over layers.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import vgg16

from visual_ar.evaluation.networks import checked_weights
from visual_ar.evaluation.result import file_sha256

VGG_SHA256 = "397923af"  # torchvision names its file by these first digits
LAYERS = (3, 8, 15, 22, 29)  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
CHANNELS = (64, 128, 256, 512, 512)
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPSILON = 1e-10


class Lpips(nn.Module):
    """LPIPS with VGG-16, frozen.

    Args:
        backbone: torchvision's ``vgg16-397923af.pth``.
        linear: channel weights, ``vgg.pth`` of version 0.1 or torch-fidelity's copy of it.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: the backbone is another file, or the channel weights are not those of VGG-16.
    """

    shift: Tensor  # [3, 1, 1], like `scale`
    scale: Tensor

    def __init__(self, backbone: Path, linear: Path) -> None:
        super().__init__()
        stored = checked_weights(backbone, VGG_SHA256)
        weights = _channel_weights(linear)
        with torch.device("meta"):  # the classifier is most of the network, and not needed
            network = vgg16().features
        prefix = "features."
        kept = {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
        network.load_state_dict(kept, assign=True)
        self.layers = network[: LAYERS[-1] + 1]
        self.weights = nn.ParameterList(weights)
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None])
        self.source = {
            "network": "LPIPS 0.1, VGG-16",
            "backbone_sha256": file_sha256(backbone),
            "linear_sha256": file_sha256(linear),
        }
        self.requires_grad_(False)
        self.eval()

    def forward(self, pictures: Tensor, originals: Tensor) -> Tensor:
        """Distance of every picture: uint8 [B, 3, H, W] twice, to float [B]."""
        total = torch.zeros(len(pictures), device=self.shift.device)
        x, y = self._prepare(pictures), self._prepare(originals)
        weights = iter(self.weights)
        for number, layer in enumerate(self.layers):
            x, y = layer(x), layer(y)
            if number in LAYERS:
                difference = (_unit(x) - _unit(y)).square()
                total = total + (difference * next(weights)).sum(dim=1).mean(dim=(1, 2))
        return total

    def _prepare(self, pictures: Tensor) -> Tensor:
        pixels = pictures.to(self.shift.device).float() / 127.5 - 1
        return (pixels - self.shift) / self.scale


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(dim=1, keepdim=True).sqrt() + _EPSILON)


def _channel_weights(path: Path) -> list[nn.Parameter]:
    stored: Any = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
    weights = []
    for number, channels in enumerate(CHANNELS):
        key, shape = f"lin{number}.model.1.weight", (1, channels, 1, 1)
        found = stored.get(key) if isinstance(stored, dict) else None
        if not isinstance(found, Tensor) or found.shape != shape:
            got = None if not isinstance(found, Tensor) else list(found.shape)
            raise ValueError(f"{key} in {path} must be {list(shape)} for VGG-16, got {got}")
        weights.append(nn.Parameter(found.float(), requires_grad=False))
    return weights
