"""How long a function takes on a device, and what the device can do at best; knows no function."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from visual_ar.evaluation.probes import Clock, now

_COPY_BYTES = 2**28


def seconds_a_call(
    functions: Sequence[Callable[[], Any]],
    device: torch.device,
    captured: bool = True,
    calls: int = 32,
    rounds: int = 5,
    clock: Clock = time.perf_counter,
) -> float:
    """Median over rounds of the mean time of a call, without the calls that warm up.

    Args:
        functions: called in turn. Several that do the same with other memory keep a small problem
            out of the device's cache.
        device: where they work.
        captured: on CUDA, whether the calls of a round are one captured graph, which leaves out
            what the host costs. Elsewhere it means nothing.
        calls: of a round, rounded up to a multiple of the functions.
        rounds: repetitions.
        clock: seconds from any origin.
    """
    turns = math.ceil(calls / len(functions))

    def work() -> None:
        for _ in range(turns):
            for function in functions:
                function()

    for function in functions:
        function()
    if captured and captures(device):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device), torch.cuda.graph(graph):
            work()
        work = graph.replay
    work()
    seconds = []
    for _ in range(rounds):
        start = now(device, clock)
        work()
        seconds.append(now(device, clock) - start)
    return statistics.median(seconds) / (turns * len(functions))


def captures(device: torch.device) -> bool:
    """Whether calls on a device can be one captured graph."""
    return device.type == "cuda"


def copy_bandwidth(
    device: torch.device, size: int = _COPY_BYTES, clock: Clock = time.perf_counter
) -> float:
    """Bytes read and written a second by a copy from one part of the memory to another.

    Args:
        device: whose memory.
        size: bytes copied, more than fits into caches.
        clock: seconds from any origin.
    """
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = seconds_a_call([lambda: target.copy_(source)], device, calls=4, clock=clock)
    return 2 * size / seconds


def launch_seconds(device: torch.device, clock: Clock = time.perf_counter) -> float:
    """Time of the smallest operation: what one launch costs."""
    number = torch.zeros(1, device=device)
    return seconds_a_call([lambda: number.add_(1)], device, clock=clock)
