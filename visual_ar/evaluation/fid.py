"""How far a set of pictures is from another: FID, KID, IS, precision and recall; draws nothing.

The figures are computed by torch-fidelity's own functions: FID (Heusel et al. 2017, eq. 6), KID
(Bińkowski et al. 2018, section 3), inception score (Salimans et al. 2016, section 4), precision and
recall (Kynkäänniemi et al. 2019, eq. 1 and 2) with k = 3. The last two use the same Inception
features as ADM's evaluator does, where torch-fidelity by itself would take VGG-16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from visual_ar.evaluation.moments import Moments
from visual_ar.evaluation.networks import Network
from visual_ar.evaluation.pictures import Fingerprint, Pictures
from visual_ar.evaluation.result import document

ENOUGH = 50_000
FIGURES = ("fid", "kid", "is", "pr")
SPLITS = 10
SUBSETS = 100
NEIGHBOURS = 3

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Extracted:
    """What a network says about a set.

    Attributes:
        features: fp32 [N, D].
        logits: fp32 [N, K] or None.
        source: hash, count and size of the set.
    """

    features: Tensor
    logits: Tensor | None
    source: dict[str, Any]


def fid(
    samples: Pictures,
    reference: Pictures | None,
    network: Network,
    figures: Sequence[str] = ("fid",),
    moments: Moments | None = None,
    allow_small: bool = False,
    batch: int = 64,
    kid_subset: int = 1000,
    seed: int = 2020,
    statistics: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compares a set of pictures with a reference.

    Args:
        samples: the pictures.
        reference: pictures; None when `moments` are all there is, which serves "fid" and "is".
        network: whose features are compared.
        figures: of `FIGURES`: "fid", "kid", "is", "pr".
        moments: of the reference's features for "fid", where they are of more pictures than
            `reference`, as in ADM's file for ImageNet; None takes those of `reference`.
        allow_small: accept fewer than 50,000 samples; the count then is part of the name.
        batch: pictures at a time.
        kid_subset: pictures of each of the 100 subsets of KID.
        seed: of KID's subsets and of the inception score's splits.
        statistics: an npz for the samples' own moments, for use as a reference; None writes none.
        progress: called as progress(what, done, total) after every batch.

    Returns:
        a result, see `evaluation.result`.

    Raises:
        ValueError: too few samples, a figure that the reference or the network cannot give, or
            what `Pictures.batches` refuses.
    """
    _check(samples, reference, moments, network, figures, allow_small, kid_subset)
    few = samples.count if samples.count < ENOUGH else None
    extracted = extract(samples, network, batch, progress, "samples")
    own = Moments.of_features(extracted.features, extracted.source)
    real = None
    if reference is not None and (moments is None or {"kid", "pr"} & set(figures)):
        real = extract(reference, network, batch, progress, "reference")
    if moments is None and real is not None:
        moments = Moments.of_features(real.features, real.source)
    if statistics is not None:
        own.save(statistics, network)
    results = _figures(extracted, own, real, moments, network, figures, few, kid_subset, seed)
    sources = {
        "samples": extracted.source,
        "reference": None if real is None else real.source,
        "moments": None if moments is None else moments.source,
    }
    inputs = {name: source for name, source in sources.items() if source is not None}
    protocol = {
        "features": network.describe(),
        "pictures": samples.count,
        "width_height": extracted.source["width_height"],
        "pixels": "uint8",
        "samples_crop": samples.preprocessing(),
        "reference_crop": None if reference is None else reference.preprocessing(),
        "reference_sha256": {k: v["sha256"] for k, v in inputs.items() if k != "samples"},
        "figures": {name: _convention(name, kid_subset) for name in figures},
    }
    random = {"kid", "is"} & set(figures)
    seeds = {"subsets_and_splits": seed} if random else {}
    return document("fid", protocol, inputs, results, seeds)


@torch.inference_mode()
def extract(
    pictures: Pictures,
    network: Network,
    batch: int = 64,
    progress: Progress | None = None,
    what: str = "pictures",
) -> Extracted:
    """Features of all pictures of a set.

    Args:
        pictures: the set.
        network: whose features.
        batch: pictures at a time.
        progress: called as progress(what, done, total) after every batch.
        what: name of the set, for the progress.

    Raises:
        ValueError: what `Pictures.batches` refuses.
    """
    fingerprint, features, logits, done = Fingerprint(), [], [], 0
    for rows in pictures.batches(batch):
        fingerprint.add(rows)
        of_batch, classes = network.extract(torch.from_numpy(rows).permute(0, 3, 1, 2))
        features.append(of_batch.float())
        if classes is not None:
            logits.append(classes.float())
        done += len(rows)
        if progress is not None:
            progress(what, done, pictures.count)
    return Extracted(
        torch.cat(features),
        torch.cat(logits) if logits else None,
        fingerprint.describe(pictures),
    )


def frechet(first: Moments, second: Moments) -> float:
    """Fréchet distance of two Gaussians, as torch-fidelity computes it.

    Raises:
        ValueError: moments of different dimensions.
    """
    if first.mu.shape != second.mu.shape:
        shapes = [len(first.mu), len(second.mu)]
        raise ValueError(f"moments must be of one dimension, got {shapes}")
    pair = [{"mu": part.mu, "sigma": part.sigma} for part in (first, second)]
    return next(iter(fid_statistics_to_metric(*pair, verbose=False).values()))


def check_count(count: int, enough: int, allow_small: bool, what: str) -> None:
    """Raises ValueError when there are fewer than a convention asks for, unless that is allowed."""
    if count < enough and not allow_small:
        raise ValueError(
            f"{what} must be at least {enough} to be comparable with published figures, got "
            f"{count}; allow a small set to get a figure that says so"
        )


def _check(
    samples: Pictures,
    reference: Pictures | None,
    moments: Moments | None,
    network: Network,
    figures: Sequence[str],
    allow_small: bool,
    kid_subset: int,
) -> None:
    if not figures or any(name not in FIGURES for name in figures):
        raise ValueError(f"figures must be among {', '.join(FIGURES)}, got {list(figures)}")
    check_count(samples.count, ENOUGH, allow_small, "samples")
    counts = [samples.count]
    if reference is not None:
        counts.append(reference.count)
    elif {"kid", "pr"} & set(figures):
        raise ValueError("figures kid and pr need pictures as reference, got none")
    elif moments is None:
        raise ValueError("reference must be given as pictures or as moments, got neither")
    if min(counts) < 2:
        raise ValueError(f"pictures must be at least 2 in each set, got {min(counts)}")
    if "is" in figures and not network.official:
        raise ValueError(f"figures must be without is for {network.name}, got {list(figures)}")
    if "is" in figures and samples.count < SPLITS:
        raise ValueError(f"samples must be at least {SPLITS} for is, got {samples.count}")
    if "kid" in figures and not 2 <= kid_subset <= min(counts):
        raise ValueError(f"kid_subset must be in 2..{min(counts)}, got {kid_subset}")
    if "pr" in figures and min(counts) <= NEIGHBOURS:
        raise ValueError(f"pictures must be more than {NEIGHBOURS} for pr, got {min(counts)}")


def _figures(
    extracted: Extracted,
    own: Moments,
    real: Extracted | None,
    moments: Moments | None,
    network: Network,
    figures: Sequence[str],
    few: int | None,
    kid_subset: int,
    seed: int,
) -> dict[str, float]:
    results = {}
    if "fid" in figures and moments is not None:
        results[network.figure("FID", "Fréchet distance", few)] = frechet(own, moments)
    if "kid" in figures and real is not None:
        name = network.figure("KID", "kernel distance", few)
        options = {"kid_subset_size": kid_subset, "kid_subsets": SUBSETS, "rng_seed": seed}
        kid = kid_features_to_metric(extracted.features, real.features, **options, verbose=False)
        results[name], results[f"{name}, deviation over subsets"] = kid.values()
    if "is" in figures:
        score = isc_features_to_metric(extracted.logits, SPLITS, shuffle=True, rng_seed=seed)
        name = network.figure("inception score", "", few)
        results[name], results[f"{name}, deviation over splits"] = score.values()
    if "pr" in figures and real is not None:
        options = {"prc_neighborhood": NEIGHBOURS, "save_cpu_ram": True, "verbose": False}
        both = prc_features_to_metric(extracted.features, real.features, **options)
        for name in ("precision", "recall"):
            results[network.figure(name, name, few)] = both[name]
    return results


def _convention(figure: str, kid_subset: int) -> str:
    return {
        "fid": "float64 moments, unbiased covariance",
        "kid": f"cubic kernel, {SUBSETS} subsets of {kid_subset}",
        "is": f"{SPLITS} splits, shuffled",
        "pr": f"k = {NEIGHBOURS}, the features of fid",
    }[figure]
