"""Compares two sets of features as samples of two laws; knows nothing of what the features show."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from scipy.linalg import eigh
from torch import Tensor

Statistic = Literal["energy", "mmd"]

BLOCK = 1024  # rows of the pair matrix in memory at once


def statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased covariance of features [n, D]: float64 [D] and [D, D].

    Raises:
        ValueError: Fewer than two rows, or a value that is not finite.
    """
    _check(features, "features")
    features = features.double()
    return features.mean(dim=0), torch.cov(features.T).reshape(2 * features.shape[1:])


def frechet_distance(mu1: Tensor, sigma1: Tensor, mu2: Tensor, sigma2: Tensor) -> float:
    """Squared 2-Wasserstein distance of two Gaussians (Dowson and Landau, 1982; eq. 4).

    ``|mu1 - mu2|^2 + tr(sigma1 + sigma2 - 2 (sigma1^1/2 sigma2 sigma1^1/2)^1/2)``, in float64. The
    symmetric form of the root needs no complex numbers and takes singular covariances as they are.

    Args:
        mu1: Mean [D].
        sigma1: Covariance [D, D].
        mu2: Mean [D].
        sigma2: Covariance [D, D].

    Raises:
        ValueError: Shapes that do not fit together.
    """
    size = mu1.shape[0]
    shapes = [list(part.shape) for part in (mu1, sigma1, mu2, sigma2)]
    if shapes != [[size], [size, size], [size], [size, size]]:
        raise ValueError(f"means and covariances must be [D] and [D, D] of one D, got {shapes}")
    mu1, sigma1, mu2, sigma2 = (part.double() for part in (mu1, sigma1, mu2, sigma2))
    values, vectors = _eigh(sigma1)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = torch.linalg.eigvalsh(root @ sigma2 @ root)
    covered = product.clamp(min=0).sqrt().sum()
    distance = (mu1 - mu2).square().sum() + sigma1.trace() + sigma2.trace() - 2 * covered
    return float(distance)


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [D] and vectors [D, D] of a symmetric matrix float64 [D, D]."""
    try:
        return torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:  # divide and conquer, on a covariance of a few samples
        values, vectors = map(torch.from_numpy, eigh(matrix.cpu().numpy(), driver="evr"))
        return values.to(matrix.device), vectors.to(matrix.device)


def permutation_test(
    features_a: Tensor,
    features_b: Tensor,
    statistic: Statistic = "energy",
    permutations: int = 1000,
    seed: int = 0,
) -> float:
    """Tests that two samples come from one law; a small result says that they do not.

    The result is the share of random relabellings, the given one counted, whose statistic is at
    least the observed one: exact at any sample size (Phipson and Smyth, 2010, eq. 2).

    Args:
        features_a: Float [n, D].
        features_b: Float [m, D].
        statistic: ``"energy"`` (Székely and Rizzo, 2013) or ``"mmd"`` with the cubic kernel of
            KID (Bińkowski et al., 2018), both unbiased.
        permutations: Number of relabellings, at least 1.
        seed: Seed of the relabellings.

    Returns:
        The p value, in [1 / (permutations + 1), 1].

    Raises:
        ValueError: Unknown statistic, no permutation, fewer than two rows, widths that differ,
            or a value that is not finite.
    """
    if statistic not in get_args(Statistic):
        raise ValueError(f"statistic must be energy or mmd, got {statistic!r}")
    if permutations < 1:
        raise ValueError(f"permutations must be at least 1, got {permutations}")
    _check(features_a, "features_a")
    _check(features_b, "features_b")
    if features_a.shape[1] != features_b.shape[1]:
        widths = features_a.shape[1], features_b.shape[1]
        raise ValueError(f"features_a and features_b must have one width, got {widths}")
    pooled = torch.cat([features_a, features_b]).float()
    members = _relabellings(len(features_a), len(pooled), permutations, seed).to(pooled.device)
    values = _statistics(pooled, members, statistic)
    return float((values >= values[0]).double().mean())


def _relabellings(first: int, total: int, permutations: int, seed: int) -> Tensor:
    """Columns of 0 and 1, `first` ones each, the given labelling in front: [total, 1 + P]."""
    generator = torch.Generator().manual_seed(seed)
    members = torch.zeros(total, 1 + permutations, dtype=torch.float64)
    members[:first, 0] = 1
    for column in range(1, 1 + permutations):
        members[torch.randperm(total, generator=generator)[:first], column] = 1
    return members


def _statistics(pooled: Tensor, members: Tensor, statistic: Statistic) -> Tensor:
    """The statistic of every relabelling at once, from sums over one matrix of pairs.

    Args:
        pooled: Features [N, D].
        members: 0 or 1 [N, C], a relabelling a column.
        statistic: Which.

    Returns:
        float64 [C].
    """
    total = len(pooled)
    pairs = torch.zeros_like(members)  # [N, C]: sum over the members of every row of the matrix
    rows = torch.zeros(total, dtype=torch.float64, device=pooled.device)
    for start in range(0, total, BLOCK):
        block = _pairs(pooled[start : start + BLOCK], pooled, statistic).double()
        index = torch.arange(len(block), device=pooled.device)
        block[index, start + index] = 0  # a row is no pair with itself
        pairs[start : start + BLOCK] = block @ members
        rows[start : start + BLOCK] = block.sum(dim=1)
    inside_a = (members * pairs).sum(dim=0)
    from_a = rows @ members
    inside_b = rows.sum() - 2 * from_a + inside_a
    first = members[:, 0].sum()
    second = total - first
    across = 2 * (from_a - inside_a) / (first * second)
    within = inside_a / (first * (first - 1)) + inside_b / (second * (second - 1))
    return across - within if statistic == "energy" else within - across


def _pairs(block: Tensor, pooled: Tensor, statistic: Statistic) -> Tensor:
    """Distance or kernel of features [R, D] and [N, D]: [R, N]."""
    if statistic == "energy":
        return torch.cdist(block, pooled)
    return (block @ pooled.T / pooled.shape[1] + 1) ** 3


def _check(features: Tensor, name: str) -> None:
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"{name} must have shape [n >= 2, D], got {list(features.shape)}")
    if not features.isfinite().all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
