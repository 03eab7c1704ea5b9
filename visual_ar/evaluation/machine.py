"""What a measurement ran on, as plain data; measures nothing."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import torch

import visual_ar
from visual_ar.processor import processor_name

ROOT = Path(visual_ar.__file__).resolve().parent.parent


def describe(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The machine, number format and versions; JSON-able, None where something cannot be told."""
    cuda = device.type == "cuda"
    return {
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if cuda else processor_name(),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "diffusers": diffusers.__version__,
        "visual_ar": visual_ar.__version__,
        "commit": commit(),
    }


def commit() -> str | None:
    """Commit of the checkout this package runs from, with "-dirty" when files were changed."""
    if not (ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def process_peak_memory() -> int | None:
    """Bytes this process ever had in memory at once, whoever needed them; None on Windows."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes except on macOS
