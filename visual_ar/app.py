"""Plays the part of an `__init__` for the top-level `app/`; knows nothing but where it lies."""

from pathlib import Path

_inside = Path(__file__).with_suffix("")  # exists in wheels
__path__ = [str(_inside if _inside.is_dir() else _inside.parent.parent / _inside.name)]
