"""Refuses what only looks like a file, before it is opened; knows nothing of what files hold.

To open a pipe waits for somebody who writes, and a device may never end.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


def check_regular(path: str | os.PathLike[str], name: str, pipes: bool = False) -> None:
    """Raises unless a path leads to a file.

    Args:
        path: of the file, links are followed.
        name: what the message calls it.
        pipes: whether a pipe will do, as shells make of ``<(command)``.

    Raises:
        FileNotFoundError: nothing is there.
        OSError: the path cannot be followed.
        ValueError: it is a folder, a pipe, a socket or a device.
    """
    mode = Path(path).stat().st_mode
    if stat.S_ISREG(mode) or (pipes and stat.S_ISFIFO(mode)):
        return
    found = next((kind for test, kind in _KINDS if test(mode)), "a device")
    raise ValueError(f"{name} must be a file, got {found}")
