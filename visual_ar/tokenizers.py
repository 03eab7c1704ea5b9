"""Registry of image tokenizers; plays the part of an `__init__` for the top-level `tokenizers/`.

Knows only names and where they live. A new tokenizer is one line in `CLASSES`.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

_inside = Path(__file__).with_suffix("")  # exists in wheels
__path__ = [str(_inside if _inside.is_dir() else _inside.parent.parent / _inside.name)]

CLASSES = {  # public name -> module
    "VisualTokenizer": "visual_tokenizer",
    "VQTokenizer": "vq",
    "BinaryTokenizer": "binary",
    "BSQTokenizer": "bsq",
}

__all__ = ["CLASSES", *CLASSES]


def __getattr__(name: str) -> Any:
    if name in CLASSES:
        return getattr(import_module(f"{__name__}.{CLASSES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
