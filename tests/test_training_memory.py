"""Memory that a training process frees is used again."""

import platform
import subprocess
import sys

import pytest

MEASURE = """
import resource, torch
from visual_ar.training.memory import keep_freed_memory
{first}
torch.ones(24_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(24_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_used_again() -> None:
    faults = [
        int(subprocess.check_output([sys.executable, "-c", MEASURE.format(first=first)]))
        for first in ("", "keep_freed_memory()")
    ]
    assert faults[1] * 3 < faults[0]
