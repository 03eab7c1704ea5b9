"""Splits a pass of the decoding loop into forward, verification and the rest; judges no picture.

Tokens a second stand beside the limit that no batch of one passes without drafts: all weights read
once a token, at the measured bandwidth of a copy.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.accel.loop.contract import Decoding
from visual_ar.accel.loop.fused import draw_window, verify_window
from visual_ar.accel.loop.graphs import extent_for
from visual_ar.accel.loop.state import DecodeState
from visual_ar.cast import Cast
from visual_ar.evaluation import machine, timing
from visual_ar.evaluation.probes import Clock, now
from visual_ar.method_options import parse_method
from visual_ar.models.llamagen import SIZES, LlamaGen
from visual_ar.sampling import Sampling

_WARM_PASSES = 3  # the first finds memory, the second captures, the third is what is measured


def random_model(size: str, device: torch.device, dtype: torch.dtype, grid: int = 24) -> LlamaGen:
    """A class-conditional LlamaGen of a published size with random weights: speed needs no others.

    Args:
        size: one of `visual_ar.models.llamagen.SIZES`.
        device: where.
        dtype: of the weights.
        grid: rows and columns.

    Raises:
        ValueError: unknown size.
    """
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
    layers, heads, dim = SIZES[size]
    with torch.device(device):
        model = LlamaGen(dim=dim, n_layer=layers, n_head=heads, grid_size=grid, num_classes=1000)
    nn.init.normal_(model.output.weight, std=0.05)  # it starts at zero, where all laws are flat
    return model.to(dtype).eval()


def bench_loop(
    model: LlamaGen,
    name: str,
    methods: Sequence[str],
    batch: int = 1,
    passes: int = 32,
    clock: Clock = time.perf_counter,
    copied: int = 2**28,
) -> dict[str, Any]:
    """Times the loop of some methods in the middle of a picture, with guidance and top-k.

    Args:
        model: class-conditional.
        name: of the model, for the report.
        methods: see `method_options.parse_method`, with a window where they have one.
        batch: pictures B.
        passes: timed at most.
        clock: seconds from any origin.
        copied: bytes of the copy whose bandwidth the limit takes.

    Returns:
        a JSON-able document: the machine, the weights read a pass, the limit in tokens a second,
        and for every method the seconds of a pass and of its parts, and tokens a second.

    Raises:
        ValueError: batch or passes below 1, or a method without a window of its own.
    """
    for option, value in (("batch", batch), ("passes", passes)):
        if value < 1:
            raise ValueError(f"{option} must be at least 1, got {value}")
    decodings = {text: parse_method(text) for text in methods}
    for text, method in decodings.items():
        if method.config.get("window") == "auto":
            raise ValueError(f"window must be a number in the loop that is timed, got {text!r}")
    bandwidth = timing.copy_bandwidth(model.device, copied, clock)
    weights = weight_bytes(model)
    limit = batch * bandwidth / weights
    rows = [
        {"method": text, **_split(model, method, batch, passes, clock)}
        for text, method in decodings.items()
    ]
    for row in rows:
        row["share_of_limit"] = row["tokens_per_second"] / limit
    return {
        "machine": machine.describe(model.device, model.dtype),
        "model": name,
        "batch": batch,
        "copy_bytes_per_second": bandwidth,
        "weight_bytes": weights,
        "limit_tokens_per_second": limit,
        "rows": rows,
    }


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the weights that a pass reads whole: all but tables that are looked up."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return sum(p.nbytes for p in model.parameters() if id(p) not in tables)


@torch.inference_mode()
def _split(
    model: LlamaGen, method: Decoding, batch: int, passes: int, clock: Clock
) -> dict[str, Any]:
    window = int(method.config.get("window", 1))
    state = _halfway(model, method, batch, window)
    left = model.config.grid_size**2 - int(state.length.max())
    passes = max(min(passes, left // window - _WARM_PASSES), 1)
    reach = int(state.length.max()) + (passes + _WARM_PASSES + 1) * window
    limit = state.cache.slots
    # One shape for all that is timed.
    extent = extent_for(state.cache.prefix + reach, limit, state.captured is not None)
    state.cache.extent = extent
    for _ in range(_WARM_PASSES):
        method.run(state)
    device, committed = model.device, torch.zeros_like(state.length)
    start = now(device, clock)
    for _ in range(passes):
        committed += method.run(state).committed
    total = (now(device, clock) - start) / passes
    forward, verify = _parts(method, state, window, clock)
    tokens = float(committed.sum()) / passes
    return {
        "window": window,
        "passes": passes,
        "extent": extent,
        "captured": state.captured is not None,
        "seconds": total,
        "forward_seconds": forward,
        "verify_seconds": verify,
        "rest_seconds": total - forward - (verify or 0.0),
        "tokens_per_pass": tokens,
        "tokens_per_second": tokens / total,
    }


def _halfway(model: LlamaGen, method: Decoding, batch: int, window: int) -> DecodeState:
    """A state whose slowest picture is half done."""
    device, side = model.device, model.config.grid_size
    layout = model.layout((side, side))
    labels = torch.arange(batch, device=device) % model.config.num_classes
    state = method.init(Cast(model, layout), batch, True, window)
    sampling = Sampling.create(list(range(batch)), 2.0, top_k=min(2000, model.vocab_size))
    slots = torch.arange(batch, device=device)
    method.admit(state, slots, model.condition(labels), sampling)
    while int(state.length.min()) < layout.length // 2:
        method.advance(state)
    return state


def _parts(
    method: Decoding, state: DecodeState, window: int, clock: Clock
) -> tuple[float, float | None]:
    """Seconds of the trunk with the head, and of the kernel; None where torch verifies."""
    model, device = state.model, state.model.device
    ranks = state.length[:, None] + torch.arange(window, device=device)
    feed = state.tokens.gather(1, (ranks - 1).clamp(min=0))
    row_ranks = state.twice(ranks)
    hidden = state.forward(feed, ranks - 1)

    def forward() -> Tensor:
        return model.predict(state.forward(feed, ranks - 1), row_ranks)

    def seconds(function: Any) -> float:
        return timing.seconds_a_call([function], device, state.captured is not None, 4, clock=clock)

    if not state.fused:
        return seconds(forward), None
    head = seconds(lambda: model.predict(hidden, row_ranks))
    judged = seconds(lambda: _judge(method, state, hidden, ranks))
    return seconds(forward), judged - head


def _judge(method: Decoding, state: DecodeState, hidden: Tensor, ranks: Tensor) -> object:
    if not isinstance(method, SpeculativeJacobiDecoding):
        return draw_window(state, hidden, ranks)
    drafts, buffers = state.tokens.gather(1, ranks[:, :-1]), state.method
    form = buffers.rule.kernel_form()
    codes = None if form is None else form.codes
    options = (method.config.rule, method.config.coupling, codes)
    return verify_window(state, hidden, ranks, drafts, buffers.q, *options)
