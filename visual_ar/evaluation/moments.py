"""Mean and covariance of a set's features, in memory and in files; knows no network's inside.

Files are ADM's (npz with ``mu`` and ``sigma``, pictures beside them ignored), torch-fidelity's
(``NAME-NETWORK-stat-fid-LAYER.pt`` in its cache) and ours, an npz that names its network within.
Nothing is unpickled but the arrays of numbers that torch-fidelity stores.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visual_ar.data.dataset import write_file
from visual_ar.evaluation.frechet import statistics
from visual_ar.evaluation.networks import INCEPTION, Network
from visual_ar.evaluation.pictures import check_array, open_npz
from visual_ar.evaluation.result import file_sha256

SUFFIXES = (".npz", ".pt")


@dataclass(frozen=True)
class Moments:
    """Mean [D] and covariance [D, D] of features, float64.

    Attributes:
        mu: the mean.
        sigma: the unbiased covariance.
        source: where they come from, for a result.
    """

    mu: NDArray[np.float64]
    sigma: NDArray[np.float64]
    source: dict[str, Any]

    @classmethod
    def of_features(cls, features: Tensor, source: dict[str, Any]) -> Moments:
        """Moments of features [N, D].

        Raises:
            ValueError: fewer than two rows, or a value that is not finite.
        """
        mu, sigma = statistics(features)
        return cls(mu.numpy(), sigma.numpy(), source)

    def save(self, path: Path, network: Network) -> None:
        """Writes them as an npz that says which network they belong to."""
        arrays: dict[str, Any] = {"mu": self.mu, "sigma": self.sigma, **network.describe()}
        write_file(path, lambda file: np.savez(file, **arrays))


def holds_moments(path: Path) -> bool:
    """Whether a file holds moments rather than only pictures.

    Raises:
        ValueError: an npz that is none.
    """
    if path.suffix != ".npz" or not path.is_file():
        return path.suffix == ".pt"
    with open_npz(path) as archive:
        return {"mu.npy", "sigma.npy"} <= set(archive.namelist())


def read_moments(path: Path, network: Network) -> Moments:
    """Reads moments of features of one network.

    Args:
        path: npz with ``mu`` and ``sigma``, or torch-fidelity's ``.pt``.
        network: to which they must belong. An npz that does not say is ADM's or a fork's of
            torch-fidelity, and so Inception's.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no moments, pickled objects, another network's, or no covariance.
    """
    if not path.is_file():
        raise FileNotFoundError(f"statistics must be an existing file, got {str(path)!r}")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"statistics must be an npz or pt file, got {str(path)!r}")
    read = _from_npz if path.suffix == ".npz" else _from_cache
    mu, sigma, made = read(path, network)
    for key, value in made.items():
        expected = network.describe()[key]
        if value != expected:
            raise ValueError(
                f"statistics in {path} must be of {key} {expected!r} as the samples, got {value!r}"
            )
    shapes = [list(mu.shape), list(sigma.shape)]
    size = network.dimension
    if shapes != [[size], [size, size]]:
        raise ValueError(
            f"statistics in {path} must be of {network.name}, mu [{size}] and "
            f"sigma [{size}, {size}], got {shapes}"
        )
    mu, sigma = mu.astype(np.float64), sigma.astype(np.float64)
    scale = np.abs(sigma).max()
    if not (np.isfinite(mu).all() and np.isfinite(scale)):
        raise ValueError(f"statistics in {path} must be finite, got NaN or infinity")
    if np.abs(sigma - sigma.T).max() > 1e-4 * scale or (np.diag(sigma) < 0).any():
        raise ValueError(f"sigma in {path} must be a covariance, got one that is not symmetric")
    return Moments(mu, sigma, {"path": str(path), "sha256": file_sha256(path)})


def _from_npz(path: Path, network: Network) -> tuple[NDArray[Any], NDArray[Any], dict[str, str]]:
    """mu, sigma and the network that the file names."""
    with open_npz(path) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist()}
        if not {"mu", "sigma"} <= names:
            raise ValueError(f"statistics in {path} must hold mu and sigma, got {sorted(names)}")
        mu, sigma = (_array(archive, key, path) for key in ("mu", "sigma"))
        if "network" not in names:
            return mu, sigma, {"network": INCEPTION}
        return mu, sigma, {key: str(_array(archive, key, path)) for key in network.describe()}


def _array(archive: ZipFile, key: str, path: Path) -> NDArray[Any]:
    """An array of an npz, its header looked at first."""
    try:
        content = archive.read(f"{key}.npy")
    except KeyError:
        raise ValueError(f"statistics in {path} must hold {key}, got none") from None
    check_array(io.BytesIO(content), f"{key} of {path}")
    return np.load(io.BytesIO(content), allow_pickle=False)


def _from_cache(path: Path, network: Network) -> tuple[NDArray[Any], NDArray[Any], dict[str, str]]:
    """mu and sigma; torch-fidelity says in the name alone which network they are of."""
    ending = f"-{network.name}-stat-fid-{network.layer}.pt"
    if not path.name.endswith(ending):
        raise ValueError(
            f"statistics of torch-fidelity must be called NAME{ending} to be of the same "
            f"features as the samples, got {path.name!r}"
        )
    # What an array of numbers is pickled with; anything else is refused by torch.
    numbers = [np.ndarray, np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.float32))]
    rebuild = [np._core.multiarray._reconstruct, np._core.multiarray.scalar]  # type: ignore[attr-defined]
    try:
        with torch.serialization.safe_globals([*numbers, *rebuild]):
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"statistics in {path} must be arrays of numbers, got {reason}") from None
    if not isinstance(stored, dict) or not {"mu", "sigma"} <= set(stored):
        raise ValueError(f"statistics in {path} must hold mu and sigma, got something else")
    mu, sigma = (np.asarray(stored[key]) for key in ("mu", "sigma"))
    return mu, sigma, {}
