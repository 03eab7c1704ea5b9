"""Registry of decoding methods; plays the part of an `__init__` for the top-level `accel/`.

Knows only names and where they live. A new method is one line in `CLASSES` and one in `METHODS`.
"""

from collections.abc import Callable
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

_inside = Path(__file__).with_suffix("")  # exists in wheels
__path__ = [str(_inside if _inside.is_dir() else _inside.parent.parent / _inside.name)]

CLASSES = {  # public name -> module
    "Decoding": "decoding",
    "SequentialDecoding": "sequential",
    "SpeculativeJacobiDecoding": "jacobi",
    "ExactMatchJacobiDecoding": "exact_match",
    "TreeDecoding": "tree_decoding",
    "DraftHeadDecoding": "draft_head",
    "SpeculativeDenoisingDecoding": "denoising",
    "GroupDecoding": "groups",
    "HybridDecoding": "hybrid",
}

METHODS = {  # command-line name -> class, or class.preset for a classmethod that returns one
    "sequential": "SequentialDecoding",
    "jacobi": "SpeculativeJacobiDecoding",
    "jacobi-published": "SpeculativeJacobiDecoding.published",
    "exact-match": "ExactMatchJacobiDecoding",
    "tree": "TreeDecoding",
    "tree-spatial": "TreeDecoding.spatial",
    "tree-adaptive": "TreeDecoding.adaptive",
    "draft-head": "DraftHeadDecoding",
    "denoising": "SpeculativeDenoisingDecoding",
    "groups": "GroupDecoding",
    "hybrid": "HybridDecoding",
}

__all__ = ["CLASSES", "METHODS", "method", *CLASSES]


def method(name: str) -> Callable[..., Any]:
    """Returns the constructor (a class or one of its presets) of a command-line method name.

    Raises:
        ValueError: no method has this name.
    """
    if name not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {name!r}")
    owner, _, preset = METHODS[name].partition(".")
    constructor = __getattr__(owner)
    return attrgetter(preset)(constructor) if preset else constructor


def __getattr__(name: str) -> Any:
    if name in CLASSES:
        return getattr(import_module(f"{__name__}.{CLASSES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
