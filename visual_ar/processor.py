"""Name of the processor that a program runs on; knows nothing of what runs there."""

from __future__ import annotations

import platform
from pathlib import Path


def processor_name() -> str:
    """Name of the processor, as the operating system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
