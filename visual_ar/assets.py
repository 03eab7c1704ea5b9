"""Finds the bundled models in the top-level `assets/`; knows nothing about what is in them."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

_inside = Path(__file__).with_suffix("")  # exists in wheels
__path__ = [str(_inside if _inside.is_dir() else _inside.parent.parent / _inside.name)]


def bundled() -> dict[str, Path]:
    """Returns name -> folder of every bundled model, sorted by name."""
    indexes = sorted(Path(__path__[0]).glob("*/model_index.json"))
    return {index.parent.name: index.parent for index in indexes}


def local(name: str | PathLike[str], known: Mapping[str, Path]) -> Path:
    """Where a model lies on this machine, or would lie: a bundled one, or a folder.

    What is a path by its type or its spelling, as "./emoji" or "emoji/", is never a bundled name.

    Args:
        name: of the model, or its folder.
        known: name -> folder of every bundled model.

    Raises:
        ValueError: a bundled model and a model folder here both have the name.
    """
    path = Path(name).expanduser()
    if not isinstance(name, str) or name not in known:
        return path
    if (path / "model_index.json").is_file() and not path.samefile(known[name]):
        raise ValueError(
            f"model must say which is meant, got {name!r}, which is bundled and a folder here: "
            f"write './{name}' for the folder, or {str(known[name])!r} for the bundled one"
        )
    return known[name]
