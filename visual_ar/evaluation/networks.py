"""The feature networks that distances between sets of pictures are taken in; computes no distance.

Inception-v3 as torch-fidelity has it (TensorFlow's 2015 graph and its resize, which FID is defined
by, Heusel et al. 2017), from a file whose hash is checked; EfficientNet-Lite0 offline. Figures in
other features than Inception's are named so that nobody takes them for FID.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visual_ar.evaluation.features import SHA256, EfficientNetLite0Features
from visual_ar.evaluation.quality import NETWORK

INCEPTION = "inception-v3-compat"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
LITE0 = "efficientnet-lite0"

Extract = Callable[[Tensor], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Network:
    """A feature network.

    Attributes:
        name: as torch-fidelity registers it, or ours; statistics of another are refused.
        layer: whose output the features are.
        dimension: of the features D.
        sha256: of the weights.
        preprocessing: what it does to the pixels.
        extract: uint8 [B, 3, H, W] to features [B, D] and logits [B, K], or None without classes
            that the inception score may use.
        official: whether distances in it are FID.
    """

    name: str
    layer: str
    dimension: int
    sha256: str
    preprocessing: str
    extract: Extract
    official: bool

    def figure(self, official: str, other: str, count: int | None = None) -> str:
        """Name of a figure: the official one only in the official features.

        Args:
            official: such as "FID".
            other: such as "Fréchet distance".
            count: pictures, when there are fewer than the convention asks for.
        """
        if self.official:
            return official if count is None else f"{official}-{count}"
        few = "" if count is None else f", {count} pictures"
        return f"{other} ({NETWORK if self.name == LITE0 else self.name}{few})"

    def describe(self) -> dict[str, Any]:
        """What a result says about it."""
        return {
            "network": self.name,
            "layer": self.layer,
            "weights_sha256": self.sha256,
            "preprocessing": self.preprocessing,
        }


def inception(weights: Path, device: torch.device) -> Network:
    """Inception-v3 with the weights of torch-fidelity and pytorch-fid.

    The file is read without unpickling anything but tensors.

    Args:
        weights: ``weights-inception-2015-12-05-6726825d.pth``.
        device: to compute on.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another file.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    safe = checked_weights(weights, INCEPTION_SHA256)
    again = io.BytesIO()  # torch-fidelity would unpickle anything, so it gets what was read safely
    torch.save(safe, again)
    again.seek(0)
    layers = ["2048", "logits_unbiased"]
    network = FeatureExtractorInceptionV3(INCEPTION, layers, feature_extractor_weights_path=again)
    network = network.to(device)

    def extract(pictures: Tensor) -> tuple[Tensor, Tensor | None]:
        features, logits = network(pictures.to(device))
        return features.cpu(), logits.cpu()

    resize = "torch-fidelity: TensorFlow 1 bilinear to 299x299, (x - 128) / 128"
    return Network(INCEPTION, "2048", 2048, INCEPTION_SHA256, resize, extract, True)


def efficientnet_lite0(resolution: int, device: torch.device) -> Network:
    """EfficientNet-Lite0 from its PyPI package, offline.

    Args:
        resolution: side to which pictures are resized; see `EfficientNetLite0Features`.
        device: to compute on.

    Raises:
        ImportError: the package is not installed.
        ValueError: a resolution below 32.
    """
    network = EfficientNetLite0Features(resolution).to(device)

    def extract(pictures: Tensor) -> tuple[Tensor, Tensor | None]:
        return network(pictures.to(device).float() / 127.5 - 1).cpu(), None

    resize = f"bicubic with antialiasing to {resolution}x{resolution}, x / 127.5 - 1"
    return Network(LITE0, "pooled", network.dimension, SHA256, resize, extract, False)


def checked_weights(path: Path, sha256: str) -> dict[str, Tensor]:
    """A state dict, read without unpickling code, from a file that must have a known hash.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the hash is another one.
    """
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if not digest.startswith(sha256):
        raise ValueError(f"the weights {path} must have sha256 {sha256}, got {digest}")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
