"""Lists the files of a folder as people mean it; knows nothing of what they hold.

Links are followed, to folders too. A folder is read once, however many paths lead to it, so that
no link leads in circles; a file counts under every name it has. What is hidden is passed over.
Numbers in names are in the order of numbers.
"""

from __future__ import annotations

import re
import stat
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HIDDEN = ("__MACOSX",)  # beside everything that begins with a dot
_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True)
class Listing:
    """Files of a folder.

    Attributes:
        files: in the order of `natural_key`.
        passed_over: why files or folders were passed over -> how many.
    """

    files: list[Path]
    passed_over: dict[str, int] = field(default_factory=dict)


def natural_key(path: str) -> tuple[Any, ...]:
    """What to sort names by so that ``frame2`` comes before ``frame10``, in every locale.

    Names that differ only in leading zeros or in the script of their digits are in the order of
    their characters. A slash separates folders, of which each is compared by itself.
    """
    parts = [_DIGITS.split(part) for part in path.split("/")]
    # Every other piece is a number, so that numbers are compared with numbers alone.
    return [[*_numbers(pieces)] for pieces in parts], path


def list_files(root: Path, endings: Collection[str] | None = None, below: bool = True) -> Listing:
    """The files of a folder.

    Args:
        root: the folder.
        endings: in lower case with their dots; files with others are passed over. None takes all.
        below: whether files of the folders within belong to it.

    Raises:
        OSError: the folder or one within cannot be read.
        ValueError: a link leads nowhere.
    """
    files: list[Path] = []
    passed: Counter[str] = Counter()
    seen = {_identity(root)}
    waiting = [root]
    while waiting:
        for path, is_folder in _inside(waiting.pop(0), passed):
            if is_folder:
                if not below:
                    passed["folders"] += 1
                elif _first(path, seen, passed):
                    waiting.append(path)
            elif endings is None or path.suffix.lower() in endings:
                files.append(path)
            else:
                passed[path.suffix.lower() or "without an ending"] += 1
    files.sort(key=lambda file: natural_key(file.relative_to(root).as_posix()))
    return Listing(files, dict(sorted(passed.items())))


def list_folders(root: Path) -> Listing:
    """The folders that lie directly in a folder, which are the `files` here; raises likewise."""
    passed: Counter[str] = Counter()
    seen = {_identity(root)}
    folders = []
    for path, is_folder in _inside(root, passed):
        if not is_folder:
            passed["files"] += 1
        elif _first(path, seen, passed):
            folders.append(path)
    return Listing(folders, dict(sorted(passed.items())))


def is_hidden(name: str) -> bool:
    """Whether systems hide a file of this name, as what they keep for themselves."""
    return name.startswith(".") or name in HIDDEN


def tell(passed_over: dict[str, int]) -> str:
    """What was passed over, in words."""
    return ", ".join(f"{count} {why}" for why, count in passed_over.items())


def _inside(folder: Path, passed: Counter[str]) -> Iterator[tuple[Path, bool]]:
    """What lies in a folder and is not hidden, in order, and whether it is a folder."""
    for path in sorted(folder.iterdir(), key=lambda path: natural_key(path.name)):
        if is_hidden(path.name):
            passed["hidden"] += 1
            continue
        try:
            yield path, _is_folder(path)
        except FileNotFoundError:
            raise ValueError(f"{path} must lead to a file or a folder, got a broken link") from None


def _is_folder(path: Path) -> bool:
    """Follows links, and raises an OSError where `Path.is_dir` would say no."""
    return stat.S_ISDIR(path.stat().st_mode)


def _first(folder: Path, seen: set[tuple[int, int]], passed: Counter[str]) -> bool:
    """Whether a folder is reached for the first time."""
    identity = _identity(folder)
    if identity in seen:
        passed["folders that were read already"] += 1
        return False
    seen.add(identity)
    return True


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def _numbers(pieces: list[str]) -> Iterator[str | int]:
    for index, piece in enumerate(pieces):
        yield int(piece) if index % 2 else piece
