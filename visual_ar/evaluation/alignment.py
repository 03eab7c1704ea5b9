"""Whether pictures show what was asked for: CLIP score, or retrieval offline; draws nothing."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from visual_ar.data.dataset import Dataset
from visual_ar.evaluation.fid import extract
from visual_ar.evaluation.networks import Network
from visual_ar.evaluation.pictures import Fingerprint, Pictures, of_array
from visual_ar.evaluation.quality import TOP
from visual_ar.evaluation.result import document, file_sha256
from visual_ar.evaluation.retrieval import retrieve

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Clip:
    """A network that sees pictures and reads texts.

    Attributes:
        images: PIL pictures to features [B, D].
        texts: texts to features [B, D].
        describe: what results must agree in.
    """

    images: Callable[[list[Image.Image]], Tensor]
    texts: Callable[[list[str]], Tensor]
    describe: dict[str, Any]


def open_clip(architecture: str, weights: Path, device: torch.device) -> Clip:
    """A CLIP of the package open_clip.

    Args:
        architecture: as open_clip calls it, such as "ViT-B-32". It decides the activation, of which
            a checkpoint tells nothing: OpenAI's weights need a name that ends in "-quickgelu".
        weights: its checkpoint.
        device: to compute on.

    Raises:
        ImportError: open_clip is not installed.
        FileNotFoundError: there is no such file.
        ValueError: an unknown architecture, or weights of another.
    """
    try:
        import open_clip as package
    except ImportError:
        raise ImportError(
            "the package open_clip_torch must be installed for CLIP score, found none; "
            "install visual-ar[clip]"
        ) from None
    if architecture not in package.list_models():
        raise ValueError(
            f"clip must be an architecture of open_clip such as ViT-B-32, got {architecture!r}"
        )
    digest = file_sha256(weights)
    try:
        model, _, transform = package.create_model_and_transforms(
            architecture, pretrained=str(weights), device=device
        )
    except (RuntimeError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"weights must be of {architecture}, got {weights}: {reason}") from None
    tokenizer = package.get_tokenizer(architecture)
    model.eval()

    def images(pictures: list[Image.Image]) -> Tensor:
        pixels = torch.stack([transform(picture) for picture in pictures])
        return model.encode_image(pixels.to(device)).float().cpu()

    def texts(prompts: list[str]) -> Tensor:
        return model.encode_text(tokenizer(prompts).to(device)).float().cpu()

    quick = any(isinstance(part, package.transformer.QuickGELU) for part in model.modules())
    described = {"network": architecture, "quick_gelu": quick, "weights_sha256": digest}
    return Clip(images, texts, {**described, "preprocessing": _plain(model.visual.preprocess_cfg)})


@torch.inference_mode()
def clip_score(
    pictures: Pictures,
    prompts: Sequence[str],
    clip: Clip,
    batch: int = 32,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Mean agreement of pictures and prompts (Hessel et al. 2021, "CLIPScore").

    The score is 100 max(cos, 0) averaged over the pictures; the paper's weight is 2.5 instead, and
    some reports give the bare cosine, which is a figure of its own here.

    Args:
        pictures: N of them.
        prompts: one a picture, in order.
        clip: the network.
        batch: pictures at a time.
        progress: called as progress(what, done, total) after every batch.

    Returns:
        a result, see `evaluation.result`.

    Raises:
        ValueError: the numbers of pictures and prompts differ.
    """
    _check(pictures, prompts)
    fingerprint, cosines, done = Fingerprint(), [], 0
    asked = iter(prompts)
    for rows in pictures.batches(batch):
        fingerprint.add(rows)
        seen = clip.images([Image.fromarray(row) for row in rows])
        read = clip.texts(list(islice(asked, len(rows))))
        cosines.append(F.cosine_similarity(seen.double(), read.double()))
        done += len(rows)
        if progress is not None:
            progress("pictures", done, pictures.count)
    cosine = torch.cat(cosines)
    error = float(cosine.clamp(min=0).std()) * 100 / math.sqrt(len(cosine)) if done > 1 else None
    results = {
        "CLIP score": 100 * float(cosine.clamp(min=0).mean()),
        "CLIP score, standard error": error,
        "mean cosine": float(cosine.mean()),
    }
    return document(
        "alignment",
        {"features": clip.describe, "score": "100 max(cos, 0)", **_asked(pictures, prompts)},
        {"pictures": fingerprint.describe(pictures)},
        results,
    )


def prompt_retrieval(
    pictures: Pictures,
    prompts: Sequence[str],
    dataset: Dataset,
    network: Network,
    batch: int = 32,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Whether the nearest pictures of a dataset carry the name that was asked for.

    Args:
        pictures: N of them.
        prompts: one a picture, in order, each a prompt of the dataset.
        dataset: with names; variants of one name count as one, see `evaluation.retrieval`.
        network: in whose features pictures are near.
        batch: pictures at a time.
        progress: called as progress(what, done, total) after every batch.

    Returns:
        a result, see `evaluation.result`.

    Raises:
        ValueError: the numbers of pictures and prompts differ, or the dataset lacks a prompt.
    """
    _check(pictures, prompts)
    groups = dict(zip(dataset.prompts, dataset.groups, strict=True))
    unknown = [prompt for prompt in prompts if prompt not in groups]
    if unknown:
        raise ValueError(f"prompts must be of the set {dataset.name}, got {unknown[0]!r}")
    drawn = extract(pictures, network, batch, progress, "pictures")
    known = of_array(dataset.pictures, dataset.name)
    reference = extract(known, network, batch, progress, "reference pictures")
    wanted = [groups[prompt] for prompt in prompts]
    found = retrieve(drawn.features, wanted, reference.features, dataset.groups, TOP)
    misses = [p for p, hit in zip(prompts, found.hits.tolist(), strict=True) if not hit]
    protocol = {
        "features": network.describe(),
        "reference_sha256": reference.source["sha256"],
        "neighbours": TOP,
        **_asked(pictures, prompts),
    }
    results = {
        f"hit rate, top {TOP}": found.hit_rate,
        "distance to the nearest": found.nearest_distance,
    }
    inputs = {"pictures": drawn.source, "reference": reference.source, "misses": misses}
    return document("alignment", protocol, inputs, results)


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """The same with lists for tuples, as it comes back from a file."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}


def _check(pictures: Pictures, prompts: Sequence[str]) -> None:
    if pictures.count != len(prompts):
        raise ValueError(
            f"prompts must be one a picture, {pictures.count} in {pictures.name}, "
            f"got {len(prompts)}"
        )


def _asked(pictures: Pictures, prompts: Sequence[str]) -> dict[str, Any]:
    """What was asked for, as far as results must agree in it."""
    digest = sha256("\n".join(prompts).encode()).hexdigest()
    return {"pictures": pictures.count, "prompts_sha256": digest, "crop": pictures.preprocessing()}
