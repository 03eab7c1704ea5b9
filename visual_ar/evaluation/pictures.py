"""Reads sets of pictures batch by batch: folders, npz files, prepared datasets; measures nothing.

An npz is read as ADM's evaluator reads it (Dhariwal and Nichol, 2021: uint8 ``arr_0``), row by row,
and an array of pickled objects is refused before a byte of it is unpickled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visual_ar.data import dataset
from visual_ar.folder import list_files, tell
from visual_ar.picture_file import read_picture
from visual_ar.regular_file import check_regular

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
KEY = "arr_0"

Resample = Literal["bicubic", "lanczos"]
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}


@dataclass(frozen=True)
class Crop:
    """Short side resized to `side` with antialiasing, then the centre cut out.

    To the pixel what torchvision's Resize and CenterCrop, with which published figures are made, do
    to a PIL picture.

    Attributes:
        side: of the square in pixels, at least 1.
        resample: "bicubic" (as TiTok prepares ImageNet) or "lanczos" (as BSQ-ViT does).

    Raises:
        ValueError: a value outside its range.
    """

    side: int
    resample: Resample = "bicubic"

    def __post_init__(self) -> None:
        if self.side < 1:
            raise ValueError(f"side must be at least 1, got {self.side}")
        if self.resample not in _FILTERS:
            raise ValueError(f"resample must be bicubic or lanczos, got {self.resample!r}")

    def __call__(self, image: Image.Image) -> Image.Image:
        """The cropped picture; one of the right size stays as it is."""
        if image.size == (self.side, self.side):
            return image
        short = min(image.size)
        width, height = (int(self.side * length / short) for length in image.size)
        image = image.resize((width, height), _FILTERS[self.resample])
        # Halves go to the even neighbour, as torchvision has it.
        left, top = (round((length - self.side) / 2) for length in (width, height))
        return image.crop((left, top, left + self.side, top + self.side))

    def describe(self) -> dict[str, Any]:
        """What a result says about it."""
        return {"short_side": self.side, "resample": self.resample, "crop": "centre"}


@dataclass(frozen=True)
class Pictures:
    """A set of pictures in a fixed order.

    Attributes:
        name: where it comes from, as it was given.
        count: pictures N.
        rows: starts reading from the first picture: yields uint8 [H, W, 3].
        crop: what was done to every picture, if anything.
        passed_over: what else lies in a folder -> how often; None where nothing was looked through.
    """

    name: str
    count: int
    rows: Callable[[], Iterator[NDArray[np.uint8]]]
    crop: Crop | None = None
    passed_over: dict[str, int] | None = None

    def batches(self, size: int) -> Iterator[NDArray[np.uint8]]:
        """Yields uint8 [B, H, W, 3] with B = `size` but for the last.

        Raises:
            ValueError: size is below 1, or a picture has another size than the first.
        """
        if size < 1:
            raise ValueError(f"batch must be at least 1, got {size}")
        part: list[NDArray[np.uint8]] = []
        shape = None
        for row in self.rows():
            shape = shape or row.shape
            if row.shape != shape:
                raise ValueError(
                    f"pictures of {self.name} must have one size, {shape[1]}x{shape[0]}, "
                    f"got one of {row.shape[1]}x{row.shape[0]}"
                )
            part.append(row)
            if len(part) == size:
                yield np.stack(part)
                part = []
        if part:
            yield np.stack(part)

    def preprocessing(self) -> dict[str, Any] | None:
        """What was done to the pictures, for a result."""
        return self.crop.describe() if self.crop is not None else None


class Fingerprint:
    """SHA-256 of all pixels of a set, whatever files hold them, as batches [B, H, W, 3] go by."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._size: tuple[int, int] | None = None

    def add(self, batch: NDArray[np.uint8]) -> None:
        """Takes the next batch in order."""
        self._size = batch.shape[2], batch.shape[1]
        self._digest.update(np.ascontiguousarray(batch).data)

    def describe(self, pictures: Pictures) -> dict[str, Any]:
        """What a result says about the set."""
        looked = pictures.passed_over is not None
        return {
            "path": pictures.name,
            "pictures": pictures.count,
            **({"passed_over": pictures.passed_over} if looked else {}),
            "width_height": list(self._size or ()),
            "sha256": self._digest.hexdigest(),
        }


def open_pictures(path: Path, split: str | None = None, crop: Crop | None = None) -> Pictures:
    """A folder of pictures (all below it, see `list_files`), an npz, or a prepared dataset.

    Args:
        path: of the folder or file.
        split: of a prepared dataset; None is all of it.
        crop: applied to every picture.

    Raises:
        FileNotFoundError: nothing is there.
        OSError: a folder cannot be read.
        ValueError: there are no pictures, a link leads nowhere, the npz is none or holds something
            else, or a split is given for what has none. A file that is no picture is reported when
            it is read.
    """
    prepared = (path / dataset.MANIFEST).is_file() or path.suffix == ".zip"
    if split is not None and not prepared:
        raise ValueError(f"split must be left out for {path}, which has none, got {split!r}")
    if not path.exists():
        raise FileNotFoundError(f"pictures must be a folder or file, found nothing at {path}")
    if prepared:
        return _of_dataset(path, split, crop)
    if path.is_dir():
        return _of_folder(path, crop)
    return _of_npz(path, crop)


def holds_pictures(path: Path) -> bool:
    """Whether a file is an npz with pictures, whatever else it holds.

    Raises:
        ValueError: an npz that is none.
    """
    if path.suffix != ".npz" or not path.is_file():
        return False
    with open_npz(path) as archive:
        return f"{KEY}.npy" in archive.namelist()


def of_array(pictures: NDArray[np.uint8], name: str, crop: Crop | None = None) -> Pictures:
    """Pictures in memory. pictures: uint8 [N, H, W, 3]; name: for the result."""
    return Pictures(name, len(pictures), lambda: (_cropped(row, crop) for row in pictures), crop)


def of_files(
    files: Sequence[Path],
    name: str,
    crop: Crop | None = None,
    passed_over: dict[str, int] | None = None,
) -> Pictures:
    """Picture files in this order, read when their turn comes; transparent ones are refused."""

    def rows() -> Iterator[NDArray[np.uint8]]:
        for file in files:
            image = read_picture(file, ground=None)
            yield np.asarray(image if crop is None else crop(image))

    return Pictures(name, len(files), rows, crop, passed_over)


def check_array(file: IO[bytes], name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Reads the header of an npy stream: shape and type, the stream then stands at the values.

    Raises:
        ValueError: it is no npy, holds pickled objects, or is stored column by column.
    """
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        version = np.lib.format.read_magic(file)
        shape, by_column, kind = readers[version](file)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{name} must be an array in npy format, got {error}") from None
    if kind.hasobject:
        raise ValueError(
            f"{name} must hold numbers, got pickled objects, which are never unpickled"
        )
    if by_column and len(shape) > 1:
        raise ValueError(f"{name} must be stored row by row, got column by column")
    return shape, kind


def open_npz(path: Path) -> ZipFile:
    """An npz as the zip file that it is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no file, or no zip file.
    """
    check_regular(path, str(path))
    try:
        return ZipFile(path)
    except BadZipFile:
        raise ValueError(f"{path} must be an npz file, got something else") from None


def _of_dataset(path: Path, split: str | None, crop: Crop | None) -> Pictures:
    data = dataset.load(path)
    chosen = data.pictures if split is None else data.pictures[data.indices(split)]
    return of_array(chosen, f"{path}" if split is None else f"{path} ({split})", crop)


def _of_folder(path: Path, crop: Crop | None) -> Pictures:
    found = list_files(path, SUFFIXES)
    if not found.files:
        others = f", only {tell(found.passed_over)}" if found.passed_over else ""
        raise ValueError(f"{path} must hold pictures ({', '.join(SUFFIXES)}), found none{others}")
    return of_files(found.files, str(path), crop, found.passed_over)


def _of_npz(path: Path, crop: Crop | None) -> Pictures:
    count = _npz_shape(path)[0]

    def rows() -> Iterator[NDArray[np.uint8]]:
        shape = _npz_shape(path)[1:]
        size = int(np.prod(shape))
        with open_npz(path) as archive, archive.open(f"{KEY}.npy") as file:
            check_array(file, str(path))
            for _ in range(count):
                values = file.read(size)
                if len(values) != size:
                    raise ValueError(f"{path} must hold {count} pictures, got fewer")
                yield _cropped(np.frombuffer(values, np.uint8).reshape(shape), crop)

    return Pictures(str(path), count, rows, crop)


def _npz_shape(path: Path) -> tuple[int, ...]:
    with open_npz(path) as archive:
        if f"{KEY}.npy" not in archive.namelist():
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            raise ValueError(
                f"{path} must hold pictures as {KEY}, got {', '.join(names) or 'nothing'}"
            )
        with archive.open(f"{KEY}.npy") as file:
            shape, kind = check_array(file, f"{KEY} of {path}")
    if kind != np.uint8 or len(shape) != 4 or shape[3] != 3 or not all(shape):
        raise ValueError(f"{KEY} of {path} must be uint8 [N, H, W, 3], got {kind} {list(shape)}")
    return shape


def _cropped(row: NDArray[np.uint8], crop: Crop | None) -> NDArray[np.uint8]:
    return row if crop is None else np.asarray(crop(Image.fromarray(row)))
