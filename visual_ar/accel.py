"""Registry of decoding methods; plays the part of an `__init__` for the top-level `accel/`.

Knows only names and where they live. A new method is one line in `METHODS`.
"""

from collections.abc import Callable
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

_inside = Path(__file__).with_suffix("")  # exists in wheels
__path__ = [str(_inside if _inside.is_dir() else _inside.parent.parent / _inside.name)]

METHODS = {  # command-line name -> module:class, or module:class.preset, a classmethod of it
    "sequential": "sequential:SequentialDecoding",
    "jacobi": "jacobi:SpeculativeJacobiDecoding",
    "jacobi-published": "jacobi:SpeculativeJacobiDecoding.published",
    "exact-match": "exact_match:ExactMatchJacobiDecoding",
    "tree": "tree_decoding:TreeDecoding",
    "tree-spatial": "tree_decoding:TreeDecoding.spatial",
    "tree-adaptive": "tree_decoding:TreeDecoding.adaptive",
    "draft-head": "draft_head:DraftHeadDecoding",
    "denoising": "denoising:SpeculativeDenoisingDecoding",
    "groups": "groups:GroupDecoding",
    "hybrid": "hybrid:HybridDecoding",
}


def _homes() -> dict[str, str]:
    """Public class names and their modules."""
    parts = [home.partition(":") for home in METHODS.values()]
    return {"Decoding": "decoding"} | {name.partition(".")[0]: home for home, _, name in parts}


CLASSES = _homes()

__all__ = ["CLASSES", "METHODS", "method", *CLASSES]


def method(name: str) -> Callable[..., Any]:
    """Returns the constructor (a class or one of its presets) of a command-line method name.

    Raises:
        ValueError: no method has this name.
    """
    if name not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {name!r}")
    module, _, path = METHODS[name].partition(":")
    constructor: Callable[..., Any] = attrgetter(path)(import_module(f"{__name__}.{module}"))
    return constructor


def __getattr__(name: str) -> Any:
    homes = _homes()
    if name in homes:
        return getattr(import_module(f"{__name__}.{homes[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
