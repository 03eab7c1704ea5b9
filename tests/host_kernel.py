"""The verification kernel as tests run it: built by g++ for the host, and on a GPU.

In the host build a block is one thread, so that the kernel's arithmetic, random numbers and laws
are proven where there is no GPU.
"""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch

from visual_ar.accel.kernels import device, dispatch
from visual_ar.accel.kernels.inputs import random_codes, random_window
from visual_ar.accel.kernels.reference import (
    BAD_LAW,
    BAD_LOGITS,
    BAD_TOKEN,
    Verdict,
    verify,
)
from visual_ar.accel.kernels.specialise import bound_rule, for_kernel
from visual_ar.sampling import Sampling, Warps

OMEGA = "omega/omega=1.5/decay=0.2"
RULES = (
    *("exact", OMEGA, "typical", "lantern/delta=0.3", "lantern++/factor=2.5"),
    "grouped/size=6/distance=0.6/gap=0.2",
)
NARROW = {torch.float32: 0, torch.float16: 0, torch.bfloat16: 1}
SCALES = (0.0, 1.0, 3.0)
IMPOSSIBLE = {
    "with the condition": ("conditional",),
    "without it": ("unconditional",),
    "in either": ("conditional", "unconditional"),
}
OPTIONS = (
    *("-xc++", "-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC"),
    *("-Wall", "-Wextra", "-Werror"),
)

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def bound(given, rule):
    """A rule with a random table for the code book of a window."""
    vocabulary = given["conditional"].shape[-1]
    return bound_rule(rule, random_codes(rule, vocabulary), vocabulary, torch.device("cpu"))


def by_reference(given, rule="exact", coupling="maximal"):
    """The torch reference on arguments of `verify`."""
    warps = Warps.of(given["sampling"])
    return verify(**given, warps=warps, rule=bound(given, rule), coupling=coupling)


@functools.cache
def library(structure="Exact"):
    """The kernel for a rule, built for the host once a process."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++ to build the kernel for the host")
    with tempfile.TemporaryDirectory() as folder:  # what is loaded may be deleted
        path, rule = Path(folder) / f"{structure}.so", f"-DRULE={structure}"
        subprocess.run([compiler, *OPTIONS, rule, device.SOURCE, "-o", path], check=True)
        loaded = ctypes.CDLL(str(path))
    for name in ("guide", "exponential", "logarithm", "race_time"):
        getattr(loaded, f"{name}_on_host").restype = ctypes.c_float
    return loaded


def by_kernel(given, rule="exact", coupling="maximal", on_chip=True):
    """The host build on arguments of `verify`."""
    return by_bound_kernel(given, bound(given, rule), coupling, on_chip)


def by_bound_kernel(given, rule, coupling="maximal", on_chip=True):
    """The host build with a rule that has its table."""
    form = for_kernel(rule)
    launch = device.pack(**given, rule=form, coupling=coupling, on_chip=on_chip)
    dtype = given["conditional"].dtype
    arguments = ctypes.byref(launch.arguments)
    library(form.structure).verify_on_host(arguments, dtype.itemsize, NARROW[dtype])
    return launch.verdict


def to_gpu(given):
    """Arguments of `verify` on the GPU."""

    def move(value):
        if isinstance(value, Sampling):
            return Sampling(*(option.cuda() for option in value))
        return value if value is None else value.cuda()

    return {name: move(value) for name, value in given.items()}


def by_gpu(given, rule="exact", coupling="maximal"):
    """The operator on the GPU, on arguments of `verify`; the result is on the CPU."""
    warps = Warps.of(given["sampling"])
    codes = random_codes(rule, given["conditional"].shape[-1])
    codes = None if codes is None else codes.cuda()
    verdict = dispatch.verify(
        **to_gpu(given), warps=warps, rule=rule, coupling=coupling, codes=codes
    )
    return Verdict(*(value.cpu() for value in verdict))


def same(one, other):
    """Whether two verdicts agree to the bit."""
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def damaged():
    """Every kind of bad input, each in a rank of its own, and the flags that it earns."""
    given = random_window(8, 4, 9, 30)
    given["conditional"][0, 0, 3] = torch.nan
    given["conditional"][0, 1] = -torch.inf
    given["unconditional"][0, 1] = 0
    given["conditional"][0, 2, 5] = torch.inf
    given["unconditional"][0, 2, 5] = 0
    given["drafts"][1, :2] = torch.tensor([-1, 30])
    given["drafts"][1, 2] = 2**40
    given["q"][2, 0] = 0
    given["q"][2, 1] = torch.nan
    given["q"][2, 2] = -given["q"][2, 2]
    given["forced"] = torch.full((4, 9), -1)
    given["forced"][2, 5] = 30
    given["sampling"].temperature[3] = 0
    flags = torch.zeros(4, 9, dtype=torch.int32)
    flags[0, :3] = BAD_LOGITS
    flags[1, :3] = BAD_TOKEN
    flags[2, :3] = BAD_LAW
    flags[2, 5] = BAD_TOKEN
    flags[3] = BAD_LOGITS
    return given, flags


def with_impossible_codes(seed, names, dtype=torch.float32):
    """A window in which some codes have no chance, and guidance is 0, 1 and 3 in one batch.

    Args:
        seed: of everything random.
        names: logits that are minus infinity at some codes, one of `IMPOSSIBLE`.
        dtype: of the logits.
    """
    given = random_window(seed, 6, 5, 40, dtype)
    draw = torch.Generator().manual_seed(seed)
    for name in names:
        gone = torch.rand(6, 5, 40, generator=draw) < 0.3
        given[name] = given[name].masked_fill(gone, -torch.inf)
    scales = torch.tensor(SCALES).repeat(10).view(6, 5)
    return given | {"sampling": given["sampling"]._replace(guidance=scales)}
