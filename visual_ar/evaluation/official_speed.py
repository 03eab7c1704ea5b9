"""Times LlamaGen's official code and ours in turn on the same weights; knows no other repository.

    python -m visual_ar.evaluation.official_speed PATH_OF_THE_CHECKOUT

The checkout is https://github.com/FoundationVision/LlamaGen (MIT) at commit
ce98ec41803a74a90ce68c40ababa9eaeffeb4ec, whose `autoregressive/models/generate.py` draws whole
pictures with guidance and top-k. Weights are random, which changes no speed of next-token sampling;
Jacobi decoding is timed by the pass, because what it keeps of a random law says nothing.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from visual_ar.cast import Cast
from visual_ar.eight_bit_linear import compute_in_8_bits
from visual_ar.evaluation.probes import Clock
from visual_ar.method_options import parse_method
from visual_ar.models.llamagen import SIZES, LlamaGen, convert_official
from visual_ar.sampling import Sampling

OFFICIAL, FP32, INT8 = "official, float32", "ours, float32", "ours, int8"
WINDOW = 16
_TOP_K, _GUIDANCE, _LABEL = 2000, 2.0, 207
_CLOSE = 1e-3  # of the logits, which are about 1


class Timed(NamedTuple):
    """What was measured of one contender.

    Attributes:
        name: whose code, and in which numbers.
        what: is timed.
        milliseconds: median over the rounds.
        ratio: the milliseconds of what it is compared with over these.
    """

    name: str
    what: str
    milliseconds: float
    ratio: float


def official_model(checkout: Path, size: str, grid: int) -> Any:
    """The official class-conditional transformer with random weights that make no law flat.

    Args:
        checkout: its repository.
        size: one of `visual_ar.models.llamagen.SIZES`.
        grid: rows and columns.

    Raises:
        ValueError: unknown size, or no such repository there.
    """
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
    if not (checkout / "autoregressive" / "models" / "generate.py").is_file():
        raise ValueError(f"checkout must be a copy of LlamaGen's repository, got {str(checkout)!r}")
    sys.path.insert(0, str(checkout))
    build = import_module("autoregressive.models.gpt").GPT_models[size]
    torch.manual_seed(0)
    model: Any = build(vocab_size=16_384, block_size=grid**2).eval()
    nn.init.normal_(model.output.weight, std=0.05)
    return model


@torch.inference_mode()
def compare(
    official: Any,
    grid: int,
    rounds: int = 2,
    passes: int = 32,
    clock: Clock = time.perf_counter,
) -> list[Timed]:
    """Times all contenders in turn, batch 1.

    Args:
        official: see `official_model`.
        grid: rows and columns of a picture.
        rounds: repetitions.
        passes: of Jacobi decoding that are timed a round.
        clock: seconds from any origin.

    Raises:
        ValueError: the two models do not have the same laws.
    """
    config, state = convert_official(official.state_dict(), grid=grid)
    with torch.inference_mode(False):
        ours = LlamaGen(grid_size=grid, **{k: v for k, v in config.items() if k != "grid_size"})
        ours.load_state_dict(state)
        ours.eval()
        small = copy.deepcopy(ours)
        compute_in_8_bits(small)
    _check_same(official, ours)
    pictures = {
        OFFICIAL: lambda: _draw_official(official, grid**2),
        FP32: lambda: _draw(ours),
        INT8: lambda: _draw(small),
    }
    windows = {FP32: lambda: _passes(ours, passes), INT8: lambda: _passes(small, passes)}
    found = []
    for what, contenders, share in (
        ("a picture, next-token sampling", pictures, 1),
        (f"a pass, jacobi:window={WINDOW}", windows, passes),
    ):
        times = _in_turn(contenders, rounds, clock)
        baseline = next(iter(times.values()))
        found += [
            Timed(name, what, 1e3 * taken / share, baseline / taken)
            for name, taken in times.items()
        ]
    return found


def _in_turn(
    contenders: Mapping[str, Callable[[], object]], rounds: int, clock: Clock
) -> dict[str, float]:
    """Median seconds of each, after one call of each that is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, work in contenders.items():
            start = clock()
            work()
            if turn:
                taken[name].append(clock() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def _draw_official(model: Any, tokens: int) -> Tensor:
    generate = import_module("autoregressive.models.generate").generate
    options = {"temperature": 1.0, "top_k": _TOP_K, "top_p": 1.0, "sample_logits": True}
    drawn: Tensor = generate(
        model, torch.tensor([_LABEL]), tokens, cfg_scale=_GUIDANCE, cfg_interval=-1, **options
    )
    return drawn


def _draw(model: LlamaGen) -> None:
    for _ in _steps(model, "sequential", 1):
        pass


def _passes(model: LlamaGen, count: int) -> None:
    for done, _ in enumerate(_steps(model, f"jacobi:window={WINDOW}", WINDOW), start=1):
        if done == count:
            return


def _steps(model: LlamaGen, method: str, window: int) -> Any:
    side = model.config.grid_size
    cast = Cast(model, model.layout((side, side)))
    sampling = Sampling.create([0], _GUIDANCE, top_k=_TOP_K)
    condition = model.condition(torch.tensor([_LABEL]))
    return parse_method(method).decode(cast, condition, sampling, window)


def _check_same(official: Any, ours: LlamaGen) -> None:
    """Raises ValueError unless both give the first token the same law."""
    label = torch.tensor([_LABEL])
    official.setup_caches(max_batch_size=1, max_seq_length=8, dtype=torch.float32)
    theirs, _ = official(None, label, torch.arange(1))
    condition = ours.condition(label, guided=False)
    tokens = torch.zeros(1, ours.config.grid_size**2, dtype=torch.int64)
    logits = ours.logits(tokens, condition)
    apart = float((logits[0, 0] - theirs[0, -1]).abs().max())
    if not apart < _CLOSE:
        raise ValueError(f"both models must have the same logits, got {apart:g} apart")


def table(rows: Sequence[Timed], title: str) -> Table:
    """The measurements for a terminal."""
    shown = Table("whose", "what", "ms", "times as fast", title=title)
    for row in rows:
        shown.add_row(row.name, row.what, f"{row.milliseconds:.1f}", f"{row.ratio:.2f}")
    return shown


def main(arguments: list[str] | None = None) -> None:
    """Prints the table for a checkout."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="folder of LlamaGen's repository")
    parser.add_argument("--size", default="GPT-B", choices=SIZES, help="of the model")
    parser.add_argument("--grid", type=int, default=16, help="rows and columns of tokens")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions")
    parser.add_argument("--threads", type=int, help="CPU threads; all cores by default")
    given = parser.parse_args(arguments)
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    rows = compare(official_model(given.checkout, given.size, given.grid), given.grid, given.rounds)
    title = f"{given.size}, batch 1, guided, top-k {_TOP_K}, {torch.get_num_threads()} threads"
    Console().print(table(rows, title))


if __name__ == "__main__":
    main()
