"""Downloads repositories of the Hugging Face hub that may hold a model; knows no file's content.

Whoever opens the demo may name one, so it is asked what there is before anything is downloaded.
"""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import model_info, snapshot_download
from huggingface_hub.utils import filter_repo_objects

MOST_BYTES, MOST_FILES = 64 * 10**9, 1000
"""Of a repository; no open model for pictures is larger."""
_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]  # never pickles, never code
_MARKS = ("model_index.json", "config.json")  # one of them describes what is there
_SECONDS = 10.0


class Hub(NamedTuple):
    """How the Hugging Face hub is asked.

    Attributes:
        token: for repositories that are not public.
        offline: use only what the cache holds.
        cache: folder of the cache; None is the hub's own.
        anew: download again what the cache holds.
    """

    token: str | None = None
    offline: bool = False
    cache: str | PathLike[str] | None = None
    anew: bool = False


def is_hub_name(name: str) -> bool:
    """Whether a name is OWNER/NAME and no path."""
    return _ID.fullmatch(name) is not None and not name.startswith(".")


def download(name: str, revision: str | None, hub: Hub) -> Path:
    """The folder of a repository in the cache, downloaded as far as it is not there.

    Args:
        name: OWNER/NAME.
        revision: branch, tag or commit.
        hub: how it is asked.

    Raises:
        ValueError: the repository holds no model, or one that is far too large.
        OSError: the hub cannot be reached, or has no such repository.
    """
    if not hub.offline:
        _check_size(name, revision, hub)
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            token=hub.token,
            cache_dir=None if hub.cache is None else Path(hub.cache),
            force_download=hub.anew,
            local_files_only=hub.offline,
            allow_patterns=_FILES,
        )
    except Exception as error:  # errors of its HTTP library are of no common kind
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise OSError(
            f"model must be an existing folder or a repository that the Hugging Face hub gives, "
            f"got {name!r}: {reason}"
        ) from error
    return Path(folder)


def _check_size(name: str, revision: str | None, hub: Hub) -> None:
    """Raises ValueError for what is not worth a download, as far as the hub tells."""
    try:
        told = model_info(
            name, revision=revision, token=hub.token, files_metadata=True, timeout=_SECONDS
        )
    except Exception:  # as below
        return  # the cache may hold it; if not, the download says why
    sizes = {file.rfilename: file.size or 0 for file in told.siblings or []}
    if not any(mark in sizes for mark in _MARKS):
        raise ValueError(f"model must be a repository with {_MARKS[0]}, got {name!r} without it")
    wanted = list(filter_repo_objects(sizes, allow_patterns=_FILES))
    size = sum(sizes[file] for file in wanted)
    if size > MOST_BYTES or len(wanted) > MOST_FILES:
        raise ValueError(
            f"model must be a repository of at most {MOST_FILES} files and {MOST_BYTES / 1e9:g} "
            f"GB, got {name!r} of {len(wanted)} files and {size / 1e9:.1f} GB"
        )
