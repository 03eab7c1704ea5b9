"""Says whether generated pictures look like what was asked for; knows features, no networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Retrieval(NamedTuple):
    """Result of `retrieve`.

    Attributes:
        hit_rate: Share of pictures with the prompted group among their neighbours, in [0, 1].
        hits: bool [M], the same for every picture.
        neighbours: int64 [M, k], the nearest reference pictures, nearest first.
        nearest_distance: Mean cosine distance to the nearest reference picture, in [0, 2].
    """

    hit_rate: float
    hits: Tensor
    neighbours: Tensor
    nearest_distance: float


def retrieve(
    features: Tensor,
    groups: Sequence[str],
    reference_features: Tensor,
    reference_groups: Sequence[str],
    k: int = 5,
) -> Retrieval:
    """Looks up generated pictures among reference pictures by the cosine of their features.

    The k neighbours are k different reference pictures; several may be of one group.

    Args:
        features: Float [M, D] of the generated pictures.
        groups: The prompted group of each, such as the emoji's name without a skin tone.
        reference_features: Float [N, D].
        reference_groups: The group of each reference picture.
        k: Number of neighbours, in 1..N.

    Raises:
        ValueError: Lengths or widths that do not fit, a k out of range, or a prompted group that
            no reference picture has.
    """
    _check(features, groups, "features")
    _check(reference_features, reference_groups, "reference_features")
    if features.shape[1] != reference_features.shape[1]:
        widths = features.shape[1], reference_features.shape[1]
        raise ValueError(f"features and reference_features must have one width, got {widths}")
    if not 1 <= k <= len(reference_groups):
        raise ValueError(f"k must be in 1..{len(reference_groups)}, got {k}")
    missing = set(groups) - set(reference_groups)
    if missing:
        raise ValueError(f"groups must be among the reference groups, got {min(missing)!r}")
    similarity = F.normalize(features, dim=1) @ F.normalize(reference_features, dim=1).T  # [M, N]
    nearest = similarity.topk(k, dim=1)
    hits = torch.tensor(
        [
            group in {reference_groups[index] for index in row}
            for group, row in zip(groups, nearest.indices.tolist(), strict=True)
        ]
    )
    distance = 1 - nearest.values[:, 0].double().mean()
    return Retrieval(float(hits.double().mean()), hits, nearest.indices, float(distance))


def _check(features: Tensor, groups: Sequence[str], name: str) -> None:
    if features.ndim != 2 or len(features) != len(groups) or not len(groups):
        raise ValueError(
            f"{name} must have a row for each of its groups, got {list(features.shape)} "
            f"and {len(groups)} groups"
        )
