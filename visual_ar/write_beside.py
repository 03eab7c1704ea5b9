"""Writes files whole or not at all, and names the one that no disk took; knows no format."""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

_PART = re.compile(r"\.[0-9a-f]{16}\.part")


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Gives a name beside a file to write to, which takes the file's place at the end.

    Args:
        path: What is to be written, replaced when it exists. Its folder must exist.

    Yields:
        The file to write. It is removed when anything goes wrong.

    Raises:
        OSError: The file cannot be written; names `path` and the reason.
    """
    # Without the file's name, which may be as long as a name can be.
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with naming(path, part):
            yield part
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def clear_parts(folder: Path) -> None:
    """Removes what processes that were killed while they wrote have left in a folder.

    Args:
        folder: In which nobody else writes now. Files with other names stay, `a.part` among them.
    """
    for path in folder.iterdir():
        if _PART.fullmatch(path.name) and path.is_file():
            path.unlink()


@contextmanager
def naming(target: Path, part: Path | None = None) -> Iterator[None]:
    """Names what is written in the errors of writing it, as a full disk names no file.

    Errors that tell of a file other than the target and `part` stay what they are.

    Args:
        target: The file or folder that is written.
        part: The file that is written in its stead.

    Raises:
        OSError: What is inside raised one, or safetensors' own error of a disk.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(target), str(part)):
            raise
        raise _not_written(target, error.errno) from error
    except SafetensorError as error:
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code is None:
            raise
        raise _not_written(target, int(code[1])) from error


def _not_written(target: Path, code: int) -> OSError:
    return OSError(code, f"could not write {target}: {os.strerror(code)}")
