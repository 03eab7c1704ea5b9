"""Times who can verify a window: the kernel, torch, compiled torch, FlashInfer; draws no picture.

Every time stands beside the floor: the logits read once and the laws written once at the measured
bandwidth of a copy, and one launch.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from visual_ar.accel.kernels import dispatch, reference
from visual_ar.accel.kernels.inputs import random_codes, random_window
from visual_ar.accel.kernels.specialise import bound_rule
from visual_ar.evaluation import machine, timing
from visual_ar.evaluation.probes import Clock
from visual_ar.sampling import Sampling, Warps, guide, warp

Window = dict[str, Any]
Verify = Callable[[], object]

_OUT_OF_CACHE = 2**27  # bytes that a device's cache does not hold
_MOST_COPIES = 32


class Grid(NamedTuple):
    """The windows that are measured, every combination of these.

    Attributes:
        pictures: B, each at least 1.
        windows: W, each at least 2.
        vocabularies: V.
        rules: as for `rules.parse_rule`, of those the kernel has.
        dtype: of the logits.
        top_k: 0 is off.
        coupling: of the tail.
    """

    pictures: tuple[int, ...] = (1, 8, 64)
    windows: tuple[int, ...] = (16, 32)
    vocabularies: tuple[int, ...] = (16_384,)
    rules: tuple[str, ...] = ("exact",)
    dtype: torch.dtype = torch.bfloat16
    top_k: int = 2000
    coupling: str = "maximal"

    def check(self) -> None:
        """Raises ValueError when a value is outside its range."""
        for name, values, least in (
            ("pictures", self.pictures, 1),
            ("window", self.windows, 2),
            ("vocabulary", self.vocabularies, 2),
        ):
            for value in values:
                if value < least:
                    raise ValueError(f"{name} must be at least {least}, got {value}")
        for rule in self.rules:
            bound_rule(rule, random_codes(rule, 8), 8, torch.device("cpu"))
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0 (0 is off), got {self.top_k}")
        if self.coupling not in reference.COUPLINGS:
            known = ", ".join(reference.COUPLINGS)
            raise ValueError(f"coupling must be one of {known}, got {self.coupling!r}")


class Contender(NamedTuple):
    """Someone who verifies.

    Attributes:
        prepare: (window, rule, coupling) -> what does it once.
        captured: whether it is timed inside a captured graph, as the library runs it. Torch
            without a graph is timed with what its launches cost.
        missing: why it cannot take part, None when it can.
        falls_back: whether it is timed without a graph where it cannot be captured; everyone else
            has then failed.
    """

    prepare: Callable[[Window, str, str], Verify]
    captured: bool
    missing: Callable[[torch.device], str | None]
    falls_back: bool = False


def _by_kernel(window: Window, rule: str, coupling: str) -> Verify:
    return lambda: dispatch.verify(**window, rule=rule, coupling=coupling)


def _by_torch(window: Window, rule: str, coupling: str) -> Verify:
    return _by(reference.verify, window, rule, coupling)


def _by_compiled_torch(window: Window, rule: str, coupling: str) -> Verify:
    return _by(torch.compile(reference.verify), window, rule, coupling)


def _by(verify: Callable[..., object], window: Window, rule: str, coupling: str) -> Verify:
    logits = window["conditional"]
    bound = bound_rule(rule, window["codes"], logits.shape[-1], logits.device)
    given = {name: value for name, value in window.items() if name != "codes"}
    return lambda: verify(**given, rule=bound, coupling=coupling)


def _by_flashinfer(window: Window, rule: str, coupling: str) -> Verify:
    """Chain speculative sampling with the guidance, softmax and top-k it needs before."""
    from flashinfer import sampling as kernels

    options: Sampling = window["sampling"]
    drafts, top_k = window["drafts"].int(), options.top_k.int()
    vocabulary, width = window["conditional"].shape[-1], window["conditional"].shape[1]

    def verify() -> object:
        logits = guide(
            window["conditional"].float(), window["unconditional"].float(), options.guidance
        )
        logits = warp(
            logits, options.temperature, options.top_k, options.top_p, Warps(temperature=True)
        )
        p = logits.softmax(-1)
        if window["warps"].top_k:
            flat = p.view(-1, vocabulary)
            p = kernels.top_k_renorm_probs(flat, top_k.repeat_interleave(width)).view_as(p)
        return kernels.chain_speculative_sampling(window["q"], drafts, p)

    return verify


def _no_kernel(device: torch.device) -> str | None:
    try:
        choice = dispatch.choose(device)
    except RuntimeError as error:  # it is asked for where it cannot run
        return str(error)
    return None if choice.backend == "cuda" else choice.reason


def _no_flashinfer(device: torch.device) -> str | None:
    if find_spec("flashinfer") is None:
        return "flashinfer is not installed"
    return None if device.type == "cuda" else "flashinfer needs a CUDA GPU"


CONTENDERS = {
    "kernel": Contender(_by_kernel, True, _no_kernel),
    "torch": Contender(_by_torch, False, lambda device: None),
    "torch.compile": Contender(_by_compiled_torch, True, lambda device: None),
    "flashinfer": Contender(_by_flashinfer, True, _no_flashinfer, falls_back=True),
}


def bench_kernels(
    grid: Grid,
    device: torch.device,
    contenders: Sequence[str] = tuple(CONTENDERS),
    clock: Clock = time.perf_counter,
    copied: int = 2**28,
) -> dict[str, Any]:
    """Times all contenders on all windows of a grid.

    Args:
        grid: the windows.
        device: where.
        contenders: names of `CONTENDERS`; those that cannot take part are listed with the reason.
        clock: seconds from any origin.
        copied: bytes of the copy whose bandwidth is the floor's.

    Returns:
        a JSON-able document: the machine, copy bandwidth and launch time, who is missing and why,
        and a row a window with its bytes, its floor and, for everyone who took part, seconds, bytes
        a second, the ratio to the floor and whether it ran as a captured graph, or the error that
        ended it.

    Raises:
        ValueError: an unknown contender or a grid outside its ranges.
    """
    grid.check()
    for name in contenders:
        if name not in CONTENDERS:
            known = ", ".join(CONTENDERS)
            raise ValueError(f"contender must be one of {known}, got {name!r}")
    reasons = {name: CONTENDERS[name].missing(device) for name in contenders}
    bandwidth = timing.copy_bandwidth(device, copied, clock)
    launch = timing.launch_seconds(device, clock)
    taking_part = [name for name in contenders if reasons[name] is None]
    shapes = itertools.product(grid.pictures, grid.windows, grid.vocabularies, grid.rules)
    return {
        "machine": machine.describe(device, grid.dtype),
        "copy_bytes_per_second": bandwidth,
        "launch_seconds": launch,
        "missing": {name: reason for name, reason in reasons.items() if reason is not None},
        "rows": [
            _row(grid, shape, device, taking_part, bandwidth, launch, clock) for shape in shapes
        ],
    }


@torch.inference_mode()
def _row(
    grid: Grid,
    shape: tuple[int, int, int, str],
    device: torch.device,
    contenders: Sequence[str],
    bandwidth: float,
    launch: float,
    clock: Clock,
) -> dict[str, Any]:
    pictures, width, vocabulary, rule = shape
    window = make_window(grid, shape, device)
    logits = 2 * window["conditional"].nbytes
    size = logits + 4 * pictures * width * vocabulary
    floor = size / bandwidth + launch
    results: dict[str, dict[str, Any]] = {}
    for name in contenders:
        contender = CONTENDERS[name]
        count = 1
        if device.type == "cuda":
            count = min(math.ceil(_OUT_OF_CACHE / size), _MOST_COPIES)
        try:
            calls = [contender.prepare(_copied(window), rule, grid.coupling) for _ in range(count)]
            seconds, captured = _timed(contender, calls, device, clock)
        except (ImportError, RuntimeError, TypeError) as error:  # of another's library
            results[name] = {"error": " ".join(str(error).split())[:200]}
            continue
        results[name] = {
            "seconds": seconds,
            "bytes_per_second": size / seconds,
            "floor_ratio": seconds / floor,
            "captured": captured,
        }
    return {
        "pictures": pictures,
        "window": width,
        "vocabulary": vocabulary,
        "rule": rule,
        "coupling": grid.coupling,
        "bytes": size,
        "floor_seconds": floor,
        "results": results,
    }


def _timed(
    contender: Contender, calls: Sequence[Verify], device: torch.device, clock: Clock
) -> tuple[float, bool]:
    """Seconds of a call, and whether calls were one captured graph."""
    wanted = contender.captured and timing.captures(device)
    if not (wanted and contender.falls_back):
        return timing.seconds_a_call(calls, device, wanted, clock=clock), wanted
    # Eager first: what a capture that broke off leaves behind must not reach it.
    eager = timing.seconds_a_call(calls, device, False, clock=clock)
    try:
        return timing.seconds_a_call(calls, device, True, clock=clock), True
    except RuntimeError:
        return eager, False


def make_window(
    grid: Grid, shape: tuple[int, int, int, str], device: torch.device
) -> dict[str, Any]:
    """Random arguments of `dispatch.verify` but for rule and coupling, on a device.

    Args:
        grid: number format and options.
        shape: B, W, V and the rule.
        device: where.
    """
    pictures, width, vocabulary, rule = shape
    given = random_window(0, pictures, width, vocabulary, grid.dtype)
    options = Sampling.create(list(range(pictures)), top_k=grid.top_k)
    given["sampling"] = options._replace(guidance=torch.full((pictures, width), 1.5))
    given["warps"] = Warps.of(options)
    given |= {"numbers": None, "codes": random_codes(rule, vocabulary)}
    return {name: _on(value, device) for name, value in given.items()}


def _on(value: Any, device: torch.device) -> Any:
    if isinstance(value, Sampling):
        return Sampling(*(option.to(device) for option in value))
    return value.to(device) if isinstance(value, Tensor) else value


def _copied(window: Window) -> Window:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in window.items()}
