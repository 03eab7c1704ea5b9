"""Fast visual autoregressive generation; this file knows only the public names and their homes."""

from importlib import import_module, metadata
from typing import Any

try:
    __version__ = metadata.version("visual-ar")
except metadata.PackageNotFoundError:  # imported from a checkout that was never installed
    __version__ = "0+unknown"

_HOMES = {  # public name -> module; imported on first use, so that the command line starts at once
    "VisualARPipeline": "visual_ar.pipeline",
    "VQTokenizer": "visual_ar.tokenizers.vq",
    "SequentialDecoding": "visual_ar.accel.sequential",
    "SpeculativeJacobiDecoding": "visual_ar.accel.jacobi",
    "ExactMatchJacobiDecoding": "visual_ar.accel.exact_match",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
