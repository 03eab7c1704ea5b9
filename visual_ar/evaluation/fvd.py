"""How far a set of videos is from another: FVD with an I3D by path, or offline; draws nothing.

FVD (Unterthiner et al. 2018, eq. 2) is the Fréchet distance of the 400 logits of an I3D. Ports
prepare clips differently and give different figures, so one of two conventions is named. Offline,
EfficientNet-Lite0 looks at every frame: the clip's features are those of its frames and their
differences from frame to frame, projected to the principal components of the real clips. That is
not FVD and never called so.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from visual_ar.evaluation.clips import Choice, Videos, batches, new_digest
from visual_ar.evaluation.fid import check_count, frechet
from visual_ar.evaluation.moments import Moments
from visual_ar.evaluation.networks import LITE0, Network
from visual_ar.evaluation.quality import NETWORK
from visual_ar.evaluation.result import document, file_sha256

ENOUGH = 2048
COMPONENTS = 64
SIDE = 224
LOGITS = 400
SHORTEST = 10  # frames that an I3D needs for its last pooling

Convention = Literal["stylegan-v", "videogpt"]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ClipNetwork:
    """What turns clips into features.

    Attributes:
        figure: name of the distance.
        describe: what results must agree in.
        extract: uint8 [B, T, H, W, 3] to features [B, D].
        components: to project to, fitted on the real clips; None keeps the features.
        shortest: frames that a clip must have.
    """

    figure: str
    describe: dict[str, Any]
    extract: Callable[[Tensor], Tensor]
    components: int | None = None
    shortest: int = 2


def i3d(path: Path, convention: Convention, device: torch.device) -> ClipNetwork:
    """An I3D trained on Kinetics-400, as a TorchScript file.

    Args:
        path: for "stylegan-v" its ``i3d_torchscript.pt``; for "videogpt" its
            ``i3d_pretrained_400.pt`` as a script whose call gives the logits.
        convention: "stylegan-v" resizes frames to 224x224 and asks the script for raw features;
            "videogpt" resizes the short side to 224 and cuts out the centre. Both are bilinear
            without antialiasing and give the script pixels in [-1, 1].
        device: to compute on.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown convention, or a file that is no TorchScript.
    """
    if convention not in get_args(Convention):
        raise ValueError(
            f"convention must be one of {', '.join(get_args(Convention))}, got {convention!r}"
        )
    digest = file_sha256(path)
    try:
        with warnings.catch_warnings():  # what exists is TorchScript, deprecated or not
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            network = torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"I3D must be a TorchScript file, got {str(path)!r}: {reason}") from None

    def extract(clips: Tensor) -> Tensor:
        pixels = prepare(clips.to(device), convention)
        if convention == "stylegan-v":
            features = network(pixels, rescale=False, resize=False, return_features=True)
        else:
            features = network(pixels)
        if features.shape != (len(clips), LOGITS):
            raise ValueError(
                f"I3D must give [{len(clips)}, {LOGITS}] with {convention}, "
                f"got {list(features.shape)}"
            )
        return features.float().cpu()

    described = {"network": "I3D", "weights_sha256": digest, "convention": convention}
    return ClipNetwork("FVD", described, extract, shortest=SHORTEST)


def frames(network: Network, components: int = COMPONENTS) -> ClipNetwork:
    """A picture network on every frame, with differences in time.

    Args:
        network: of pictures.
        components: of the real clips, to project to.
    """

    def extract(clips: Tensor) -> Tensor:
        flat, _ = network.extract(clips.flatten(0, 1).permute(0, 3, 1, 2))
        parts = flat.float().unflatten(0, clips.shape[:2])  # [B, T, D]
        return torch.cat([parts, parts.diff(dim=1)], dim=1).flatten(1)

    label = NETWORK if network.name == LITE0 else network.name
    described = {**network.describe(), "time": "frames and their differences"}
    described["components"] = components
    return ClipNetwork(f"Fréchet distance of clips ({label})", described, extract, components)


def prepare(clips: Tensor, convention: Convention) -> Tensor:
    """Clips as a convention gives them to the network.

    Args:
        clips: uint8 [B, T, H, W, 3].
        convention: see `i3d`.

    Returns:
        float [B, 3, T, 224, 224] in [-1, 1].
    """
    pixels = clips.flatten(0, 1).permute(0, 3, 1, 2).float() / 255
    height, width = pixels.shape[2:]
    size = (SIDE, SIDE)
    if convention == "videogpt":
        scale = SIDE / min(height, width)
        size = tuple(  # type: ignore[assignment]
            SIDE if side == min(height, width) else math.ceil(side * scale)
            for side in (height, width)
        )
    pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False)
    top, left = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    pixels = pixels[:, :, top : top + SIDE, left : left + SIDE] * 2 - 1
    return pixels.unflatten(0, clips.shape[:2]).transpose(1, 2)


def fvd(
    samples: Videos,
    reference: Videos,
    network: ClipNetwork,
    choice: Choice | None = None,
    allow_small: bool = False,
    batch: int = 8,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compares clips of two sets of videos.

    Args:
        samples: generated videos.
        reference: real videos.
        network: whose features are compared.
        choice: of the clips, the same for both sets; by default what `Choice` says.
        allow_small: accept fewer than 2,048 clips.
        batch: clips at a time.
        progress: called as progress(what, done, total) after every batch.

    Returns:
        a result, see `evaluation.result`.

    Raises:
        ValueError: too few clips or too short ones, or what `Choice.of` refuses.
    """
    choice = choice or Choice()
    check_count(choice.count, ENOUGH, allow_small, "clips")
    if choice.length < network.shortest:
        raise ValueError(f"length must be at least {network.shortest} frames, got {choice.length}")
    if network.components is not None and choice.count <= network.components:
        raise ValueError(
            f"clips must be more than the {network.components} components, got {choice.count}"
        )
    for videos in (samples, reference):
        choice.of(videos)
    found, sample_source = _extract(samples, network, choice, batch, progress, "samples")
    real, real_source = _extract(reference, network, choice, batch, progress, "reference")
    explained = {}
    if network.components is not None:
        mean, axes, share = principal_components(real, network.components)
        found, real = (found - mean) @ axes, (real - mean) @ axes
        explained = {"variance in the components": share}
    distance = frechet(Moments.of_features(found, {}), Moments.of_features(real, {}))
    protocol = {
        "features": network.describe,
        **choice.describe(),
        "resolution": sample_source["width_height"],
        "reference_resolution": real_source["width_height"],
        "reference_sha256": real_source["sha256"],
        "choice": "one clip a video, uniform start",
    }
    name = f"{network.figure}, {choice.count} clips of {choice.length}"
    inputs = {"samples": sample_source, "reference": real_source}
    return document("fvd", protocol, inputs, {name: distance, **explained}, {"clips": choice.seed})


def principal_components(features: Tensor, count: int) -> tuple[Tensor, Tensor, float]:
    """Directions in which features vary most, from the matrix of the rows' products.

    Args:
        features: float [N, D].
        count: of directions K, below N.

    Returns:
        the mean [D], orthonormal directions [D, K] and the share of the variance in them, all in
        the type of the features but the share.
    """
    mean = features.mean(dim=0)
    centred = (features - mean).double()
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    axes = centred.T @ vectors[:, -count:]
    axes, _ = torch.linalg.qr(axes)
    share = float(values[-count:].clamp(min=0).sum() / values.clamp(min=0).sum())
    return mean, axes.to(features.dtype), share


@torch.inference_mode()
def _extract(
    videos: Videos,
    network: ClipNetwork,
    choice: Choice,
    batch: int,
    progress: Progress | None,
    what: str,
) -> tuple[Tensor, dict[str, Any]]:
    """Features of the chosen clips, and what a result says about them."""
    digest, parts, size, done = new_digest(), [], (0, 0), 0
    for clips in batches(videos, choice, batch, digest):
        parts.append(network.extract(torch.from_numpy(clips)))
        size = clips.shape[3], clips.shape[2]
        done += len(clips)
        if progress is not None:
            progress(what, done, choice.count)
    source = {**videos.describe(), "width_height": list(size)}
    return torch.cat(parts), {**source, "sha256": digest.hexdigest()}
