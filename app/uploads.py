"""Reads pictures that anyone may have uploaded, or says in a sentence why not; knows no page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from visual_ar.picture_file import check_header, read_picture

NAME = "the upload"  # what the path is called: visitors do not know where the server keeps it


def open_picture(path: str | Path) -> Image.Image:
    """Reads an upload as RGB on white, upright.

    Raises:
        ValueError: as `read_picture`, or it cannot be read.
    """
    with _nameless():
        return read_picture(path, NAME)


def check_picture(path: str | Path) -> None:
    """Raises ValueError as `open_picture`, as far as the header of the file tells."""
    with _nameless():
        check_header(path, NAME)


@contextmanager
def _nameless() -> Iterator[None]:
    """Errors of the file system without the path."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{NAME} must be a whole picture, got: {error.strerror}") from None
