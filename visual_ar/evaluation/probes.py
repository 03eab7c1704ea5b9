"""What is measured outside of the timed parts: entropy of the laws, share spent outside the model.

Knows methods and models by their contracts only.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from visual_ar.accel.loop.contract import Decoding
from visual_ar.accel.sequential import SequentialDecoding
from visual_ar.cast import Cast
from visual_ar.evaluation.workload import Workload

Clock = Callable[[], float]


@torch.inference_mode()
def law_entropy(
    workload: Workload, numbers: Sequence[int], seeds: list[int], tokens: Tensor
) -> Tensor:
    """Entropy of the guided, warped law of every token, given the tokens before it, in one pass.

    Args:
        workload: what was drawn.
        numbers: of the B pictures.
        seeds: one a picture.
        tokens: [B, N, *] in decode order.

    Returns:
        fp32 [B, N], in bits. Of sub-codes, whose entropy has no closed form, how surprising the
        token is that was drawn, which is the entropy on average.
    """
    model, sampling = workload.cast.model, workload.sampling(seeds)
    condition = workload.condition(numbers)
    batch, length = tokens.shape[:2]
    method = SequentialDecoding()
    guided = len(condition.prefix) == 2 * batch
    state = method.init(workload.cast, batch, guided, window=length)
    method.admit(state, torch.arange(batch, device=model.device), condition, sampling)
    ranks = torch.arange(length, device=model.device).expand(batch, -1)
    feed = tokens.to(model.device).roll(1, dims=1)  # rank -1 is fed the prefix, not a token
    law = state.law(state.forward(feed, ranks - 1), ranks)
    return law.uncertainty(tokens.to(model.device))


@torch.inference_mode()
def outside_model_share(
    method: Decoding,
    window: int,
    workload: Workload,
    numbers: Sequence[int],
    seeds: list[int],
    clock: Clock = time.perf_counter,
) -> float | None:
    """Share of a pass that is neither the model's trunk nor its head nor its draft head's trunk.

    The first pass, which includes the prefill, is left out. On a GPU every call waits for its end,
    so the share says what the kernels cost, not what overlaps.

    Args:
        method: how to decode.
        window: ranks that a pass predicts.
        workload: what is drawn.
        numbers: of the B pictures.
        seeds: one a picture.
        clock: seconds from any origin.

    Returns:
        in [0, 1]; None when one pass drew everything.
    """
    condition = workload.condition(numbers)
    sampling = workload.sampling(seeds)
    cast, device = workload.cast, workload.cast.model.device
    method = copy.copy(method)
    method.capturable = False  # a graph does not come back between its parts
    with _timed(cast, clock) as inside:
        steps = method.decode(cast, condition, sampling, window)
        next(steps)
        inside.clear()
        start = now(device, clock)
        passes = sum(1 for _ in steps)
        total = now(device, clock) - start
    return 1.0 - sum(inside) / total if passes else None


@contextmanager
def _timed(cast: Cast, clock: Clock) -> Iterator[list[float]]:
    """Collects the seconds of every call of the model's trunk and head, and of its draft head."""
    seconds: list[float] = []
    model = cast.model

    def timed(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Any, **kwargs: Any) -> Tensor:
            start = now(model.device, clock)
            result = function(*args, **kwargs)
            seconds.append(now(model.device, clock) - start)
            return result

        return call

    parts: list[tuple[torch.nn.Module, str]] = [(model, "forward"), (model, "predict")]
    if cast.draft_head is not None:
        parts.append((cast.draft_head, "forward"))
    for owner, part in parts:
        setattr(owner, part, timed(getattr(owner, part)))
    try:
        yield seconds
    finally:
        for owner, part in parts:
            delattr(owner, part)


def now(device: torch.device, clock: Clock) -> float:
    """The time once the device has finished what it was given. clock: seconds from any origin."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock()
