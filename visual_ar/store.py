"""Where measured windows and compiled kernels are kept; knows nothing about either."""

from __future__ import annotations

import os
from pathlib import Path


def store_folder() -> Path:
    """VISUAL_AR_CACHE, else the user's cache directory, and in it our own folder."""
    base = os.environ.get("VISUAL_AR_CACHE") or os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(base).expanduser() / "visual_ar"
