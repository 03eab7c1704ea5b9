"""Finds the bundled models in the top-level `assets/`; knows nothing about what is in them."""

from pathlib import Path

_inside = Path(__file__).with_suffix("")  # exists in wheels
__path__ = [str(_inside if _inside.is_dir() else _inside.parent.parent / _inside.name)]


def bundled() -> dict[str, Path]:
    """Returns name -> folder of every bundled model, sorted by name."""
    indexes = sorted(Path(__path__[0]).glob("*/model_index.json"))
    return {index.parent.name: index.parent for index in indexes}
