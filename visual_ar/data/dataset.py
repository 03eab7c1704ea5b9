"""Reads and writes prepared datasets; knows their files, knows nothing of where they come from."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, is_zipfile

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visual_ar.folder import natural_key
from visual_ar.picture_file import read_picture
from visual_ar.write_beside import written_beside

SHEET_COLUMNS = 64
SHEET_ROWS = 64
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Dataset:
    """Pictures with what is said about them; all lists have one entry a picture.

    Attributes:
        name: ``"emoji"`` or ``"cifar10"``.
        pictures: uint8 [N, H, W, 3], RGB in 0..255.
        splits: Name of the split that each picture belongs to.
        items: Names, tones, prompts and so on of a captioned set; empty otherwise.
        labels: int64 [N] class of each picture, or None for a captioned set.
        classes: Class names in label order; empty for a captioned set.
        manifest: Source, version, hashes, counts and licence.
    """

    name: str
    pictures: NDArray[np.uint8]
    splits: list[str]
    items: list[dict[str, Any]] = field(default_factory=list)
    labels: NDArray[np.int64] | None = None
    classes: list[str] = field(default_factory=list)
    manifest: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def prompts(self) -> list[str]:
        """What a person would type for each picture: its prompt, or the name of its class."""
        if self.labels is None:
            return [item["prompt"] for item in self.items]
        return [self.classes[label] for label in self.labels]

    @property
    def groups(self) -> list[str]:
        """Names that count as one in retrieval: variants of one emoji, or one class."""
        return self.prompts if self.labels is not None else [item["group"] for item in self.items]

    def indices(self, *splits: str) -> NDArray[np.int64]:
        """Positions of the pictures of the given splits, in order: int64 [n].

        Raises:
            ValueError: A split that this dataset does not have.
        """
        known = set(self.splits)
        for split in splits:
            if split not in known:
                raise ValueError(f"split must be one of {sorted(known)}, got {split!r}")
        return np.flatnonzero(np.isin(np.array(self.splits), splits)).astype(np.int64)


class Lossy(NamedTuple):
    """WebP settings of a pack that may lose a little: quality in 0..100."""

    quality: int


def digest(pictures: NDArray[np.uint8]) -> str:
    """SHA-256 of the pixels, whatever file holds them; pictures are uint8 [N, H, W, 3]."""
    return hashlib.sha256(np.ascontiguousarray(pictures).data).hexdigest()


def write_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file beside its place and moves it there once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Opened for reading too: into a file for writing alone, NumPy writes without telling why it
    # cannot.
    with written_beside(path) as part, part.open("w+b") as file:
        write(file)


def reusable(output: Path, name: str, sources: list[dict[str, str]]) -> Dataset | None:
    """The dataset that an earlier run left in a folder, or None when it must be prepared.

    Args:
        output: Folder that is to hold the dataset.
        name: Name of the dataset.
        sources: What it is made of; a dataset made of anything else is not reused.

    Raises:
        ValueError: The folder is a file, or holds another dataset.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"output must be a folder, got the file {output}")
    if not (output / MANIFEST).is_file():
        return None
    try:
        dataset = load(output)
    except (FileNotFoundError, ValueError):
        return None
    if dataset.name != name:
        raise ValueError(f"output must be empty or hold {name}, found {dataset.name} in {output}")
    intact = digest(dataset.pictures) == dataset.manifest["pictures_sha256"]
    return dataset if intact and dataset.manifest["sources"] == sources else None


def save(dataset: Dataset, output: Path) -> None:
    """Writes the files of a prepared dataset; the manifest comes last and marks it as whole."""
    (output / MANIFEST).unlink(missing_ok=True)
    write_file(output / "pictures.npy", lambda file: np.save(file, dataset.pictures))
    if dataset.labels is not None:
        labels = dataset.labels
        write_file(output / "labels.npy", lambda file: np.save(file, labels))
    write_file(output / "items.json", lambda file: file.write(_json(_items(dataset))))
    write_file(output / MANIFEST, lambda file: file.write(_json(dataset.manifest)))


def save_pack(dataset: Dataset, path: Path, lossy: Lossy | None = None) -> None:
    """Writes the dataset as one small zip file of WebP sheets.

    Args:
        dataset: What to write.
        path: The zip file.
        lossy: Quality of the sheets; lossless when None. The loss, as the PSNR in dB over all
            pictures (null when nothing was lost), is written into the pack's manifest.
    """
    sheets = [_encode(sheet, lossy) for sheet in _sheets(dataset.pictures)]
    manifest = dict(dataset.manifest)
    if lossy is not None:
        decoded = _cut(map(_decode, sheets), dataset.pictures.shape)
        manifest["pack"] = {
            "format": f"WebP, quality {lossy.quality}",
            "psnr_db": _psnr(dataset.pictures, decoded),
            "pictures_sha256": digest(decoded),
        }
    else:
        manifest["pack"] = {"format": "WebP, lossless"}

    def write(file: IO[bytes]) -> None:
        with ZipFile(file, "w", ZIP_DEFLATED) as archive:
            archive.writestr(MANIFEST, _json(manifest))
            archive.writestr("items.json", _json(_items(dataset)))
            if dataset.labels is not None:
                archive.writestr("labels.npy", _npy(dataset.labels))
            for number, sheet in enumerate(sheets):
                archive.writestr(f"sheet-{number:03d}.webp", sheet, ZIP_STORED)

    write_file(path, write)


def load(path: str | os.PathLike[str]) -> Dataset:
    """Loads a prepared folder or a pack.

    Args:
        path: A folder written by `save`, or a zip file written by `save_pack`.

    Raises:
        FileNotFoundError: Nothing is there, or the folder was never completely prepared.
        ValueError: The files are damaged or do not belong together.
    """
    path = Path(path)
    if path.is_dir():
        return _load_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"data must be a prepared folder or pack, found nothing at {path}")
    if not is_zipfile(path):
        raise ValueError(f"data must be a prepared folder or an intact pack, got the file {path}")
    return _load_pack(path)


def _load_folder(path: Path) -> Dataset:
    if not (path / MANIFEST).is_file():
        raise FileNotFoundError(f"data must be a prepared folder, found no {MANIFEST} in {path}")
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        items = json.loads((path / "items.json").read_bytes())
        pictures = np.load(path / "pictures.npy")
        labels = np.load(path / "labels.npy") if (path / "labels.npy").is_file() else None
        return _assemble(manifest, items, pictures, labels)
    except (EOFError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the data in {path} is damaged ({error}); prepare it again") from error


def _load_pack(path: Path) -> Dataset:
    damage = (EOFError, ValueError, KeyError, TypeError, OSError, BadZipFile, zlib.error)
    try:
        with ZipFile(path) as archive:
            manifest = json.loads(archive.read(MANIFEST))
            items = json.loads(archive.read("items.json"))
            names = archive.namelist()
            found = (name for name in names if name.endswith(".webp"))
            sheets = sorted(found, key=natural_key)  # sheet-1000 has no digit to spare
            pictures = _cut((_decode(archive.read(name)) for name in sheets), manifest["shape"])
            labels = None
            if "labels.npy" in names:
                labels = np.load(io.BytesIO(archive.read("labels.npy")))
        return _assemble(manifest, items, pictures, labels)
    except damage as error:
        raise ValueError(f"the pack {path} is damaged ({error}); prepare it again") from error


def _assemble(
    manifest: dict[str, Any],
    items: Any,
    pictures: NDArray[np.uint8],
    labels: NDArray[np.int64] | None,
) -> Dataset:
    """Joins the parts of a dataset after checking that they fit together."""
    name, shape = manifest["name"], tuple(manifest["shape"])
    if pictures.shape != shape:
        raise ValueError(f"pictures must have shape {shape}, got {pictures.shape}")
    if labels is None:
        splits = [item["split"] for item in items]
        dataset = Dataset(name, pictures, splits, items=items, manifest=manifest)
    else:
        bounds = items["splits"].items()
        splits = [split for split, (first, last) in bounds for _ in range(first, last)]
        dataset = Dataset(
            name, pictures, splits, labels=labels, classes=items["classes"], manifest=manifest
        )
    if len(splits) != shape[0] or (labels is not None and len(labels) != shape[0]):
        raise ValueError(
            f"every one of the {shape[0]} pictures must be described, got {len(splits)} items"
        )
    return dataset


def _items(dataset: Dataset) -> Any:
    """Content of items.json: one entry a picture, or class names and split boundaries."""
    if dataset.labels is None:
        return dataset.items
    bounds = {}
    for split in dict.fromkeys(dataset.splits):
        where = dataset.indices(split)
        bounds[split] = [int(where[0]), int(where[-1]) + 1]
    return {"classes": dataset.classes, "splits": bounds}


def _sheets(pictures: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Tiles pictures [N,H,W,3] into sheets of SHEET_ROWS x SHEET_COLUMNS, padded with white."""
    count, height, width, _ = pictures.shape
    size = SHEET_ROWS * SHEET_COLUMNS
    sheets = []
    for first in range(0, count, size):
        part = pictures[first : first + size]
        rows = -(-len(part) // SHEET_COLUMNS)
        tiles = np.full((rows * SHEET_COLUMNS, height, width, 3), 255, np.uint8)
        tiles[: len(part)] = part
        grid = tiles.reshape(rows, SHEET_COLUMNS, height, width, 3).swapaxes(1, 2)
        sheets.append(grid.reshape(rows * height, SHEET_COLUMNS * width, 3))
    return sheets


def _cut(sheets: Iterable[NDArray[np.uint8]], shape: Sequence[int]) -> NDArray[np.uint8]:
    """Cuts sheets back into pictures [N,H,W,3]; `shape` is that of the result."""
    count, height, width, _ = shape
    parts = []
    for sheet in sheets:
        grid = sheet.reshape(-1, height, SHEET_COLUMNS, width, 3).swapaxes(1, 2)
        parts.append(grid.reshape(-1, height, width, 3))
    return np.ascontiguousarray(np.concatenate(parts)[:count])


def _encode(sheet: NDArray[np.uint8], lossy: Lossy | None) -> bytes:
    file = io.BytesIO()
    if lossy is None:
        Image.fromarray(sheet).save(file, "WEBP", lossless=True, quality=100, method=4)
    else:
        Image.fromarray(sheet).save(file, "WEBP", quality=lossy.quality, method=4)
    return file.getvalue()


def _decode(content: bytes) -> NDArray[np.uint8]:
    return np.asarray(read_picture(content, "a sheet", formats=["WEBP"]))


def _psnr(pictures: NDArray[np.uint8], decoded: NDArray[np.uint8]) -> float | None:
    """Peak signal-to-noise ratio in dB over all pictures [N,H,W,3], peak 255; None if equal."""
    total = 0.0
    for first in range(0, len(pictures), 4096):  # bounds the float copy
        chunk = slice(first, first + 4096)
        total += float(np.square(pictures[chunk].astype(np.float64) - decoded[chunk]).sum())
    return round(float(10.0 * np.log10(255.0**2 * pictures.size / total)), 2) if total else None


def _npy(array: NDArray[np.int64]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _json(content: Any) -> bytes:
    return json.dumps(content, indent=1, ensure_ascii=False).encode()
