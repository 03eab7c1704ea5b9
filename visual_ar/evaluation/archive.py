"""Writes pictures as the npz that ADM's evaluator reads; knows nothing of how they were made.

The layout of guided-diffusion's sampling scripts (Dhariwal and Nichol, 2021): ``arr_0`` is uint8
[N, H, W, 3] and ``arr_1``, if there are classes, int64 [N]. Rows are written as they are read, and
equal pictures give equal files.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any
from zipfile import ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

from visual_ar.data.dataset import write_file
from visual_ar.evaluation.pictures import KEY, Fingerprint, Pictures

LABELS = "arr_1"
_BATCH = 64


def write(pictures: Pictures, path: Path, subjects: Sequence[int] | None = None) -> dict[str, Any]:
    """Writes an npz; the file appears whole or not at all.

    Args:
        pictures: the N pictures, of one size.
        path: the npz.
        subjects: class numbers that the pictures take in turn, for `LABELS`; None writes none.

    Returns:
        hash, count and size of the pictures.

    Raises:
        ValueError: the pictures have different sizes, or a file is damaged.
    """
    fingerprint = Fingerprint()

    def fill(file: IO[bytes]) -> None:
        with ZipFile(file, "w") as archive:  # dates are fixed, so that equal content is equal bytes
            with archive.open(_entry(KEY), "w", force_zip64=True) as member:
                _write_rows(member, pictures, fingerprint)
            if subjects is not None:
                labels = np.resize(np.asarray(subjects, np.int64), pictures.count)
                archive.writestr(_entry(LABELS), _npy(labels))

    write_file(path, fill)
    return fingerprint.describe(pictures)


def _write_rows(member: IO[bytes], pictures: Pictures, fingerprint: Fingerprint) -> None:
    batches = pictures.batches(_BATCH)
    first = next(batches)
    header = {"descr": "|u1", "fortran_order": False, "shape": (pictures.count, *first.shape[1:])}
    np.lib.format.write_array_header_1_0(member, header)
    for batch in chain([first], batches):
        fingerprint.add(batch)
        member.write(batch.tobytes())


def _entry(key: str) -> ZipInfo:
    return ZipInfo(f"{key}.npy")


def _npy(array: NDArray[np.int64]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()
