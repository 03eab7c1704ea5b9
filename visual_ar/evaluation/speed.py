"""Measures decoding methods side by side on one model in one run; knows no family and no method.

Methods take turns batch by batch of work, in an order that rotates from round to round, so that a
noisy machine hurts all alike, and every ratio is of two times from the same round. Counts, entropy
and the share of a pass spent outside the model are taken outside of the timed parts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from visual_ar import accel
from visual_ar.accel.decoding import Decoding
from visual_ar.accel.exact_match import ExactMatchJacobiDecoding
from visual_ar.accel.sequential import SequentialDecoding
from visual_ar.conditioning import Condition
from visual_ar.evaluation.speed_summary import Trial, identical, summarise
from visual_ar.layout import Layout
from visual_ar.models.base import TokenModel
from visual_ar.sampling import Sampling

BASELINE = "sequential"
DEFAULT_METHODS = (
    BASELINE,
    "jacobi-published",
    "jacobi:window=64,coupling=independent",
    "jacobi:window=64,coupling=maximal",
    "jacobi:window=64,coupling=gumbel",
    "exact-match:window=64",
    "jacobi:window=auto",
)

Clock = Callable[[], float]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Workload:
    """What is drawn, one function a stage.

    Attributes:
        model: the generator.
        layout: its decode order.
        condition: encodes the pictures of the given numbers, counted from 0 in every round.
        sampling: options of pictures with the given seeds.
        detokenise: int64 [B, N] in decode order to pixels [B, 3, H, W].
    """

    model: TokenModel
    layout: Layout
    condition: Callable[[Sequence[int]], Condition]
    sampling: Callable[[list[int]], Sampling]
    detokenise: Callable[[Tensor], Tensor]


class Schedule(NamedTuple):
    """How much is measured.

    Attributes:
        pictures: pictures of every round, at least 1.
        batches: batch sizes; each divides `pictures`.
        rounds: timed repetitions, at least 1, each with seeds of its own.
        warmup: untimed batches of every method and batch size, at least 0.
        seed: of the first picture; the others follow.
    """

    pictures: int = 4
    batches: tuple[int, ...] = (1, 4)
    rounds: int = 3
    warmup: int = 1
    seed: int = 0

    def check(self) -> None:
        """Raises ValueError when a value is outside its range."""
        for name, value, least in (
            ("pictures", self.pictures, 1),
            ("rounds", self.rounds, 1),
            ("warmup", self.warmup, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        for batch in self.batches:
            if batch < 1 or self.pictures % batch:
                raise ValueError(
                    f"batch must be at least 1 and divide the {self.pictures} pictures, got {batch}"
                )

    def parts(self, batch: int) -> list[list[int]]:
        """The numbers of the pictures, batch by batch."""
        return [list(range(at, at + batch)) for at in range(0, self.pictures, batch)]

    def seeds(self, numbers: Sequence[int], turn: int) -> list[int]:
        """Seeds of some pictures in the round `turn`."""
        return [self.seed + turn * self.pictures + number for number in numbers]


def parse_method(text: str) -> Decoding:
    """Builds a method from a specification such as "jacobi:window=64,coupling=gumbel".

    Args:
        text: a name of `visual_ar.accel.METHODS`, then a colon and options if any.

    Raises:
        ValueError: unknown name or option, or a value that the method refuses.
    """
    name, _, rest = text.partition(":")
    constructor = accel.method(name)
    options: dict[str, int | str] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"options of a method must read name=value, got {part!r} in {text!r}")
        options[key] = int(value) if value.lstrip("-").isdecimal() else value
    try:
        return constructor(**options)
    except TypeError:
        raise ValueError(f"method {name} does not take the options {rest!r}") from None


def bench(
    workload: Workload,
    methods: Sequence[str] = DEFAULT_METHODS,
    schedule: Schedule | None = None,
    clock: Clock = time.perf_counter,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measures methods side by side. The baseline, sequential decoding, is always among them.

    Args:
        workload: what is drawn.
        methods: specifications, see `parse_method`.
        schedule: how much is measured; by default what `Schedule` says.
        clock: seconds from any origin.
        progress: called as progress(done, total) after every batch drawn.

    Returns:
        a JSON-able document: the schedule, the order of the methods in every round, the mean
        entropy of the laws, and for every method and batch size what `summarise` returns.

    Raises:
        ValueError: an unknown method or option, a schedule outside its ranges, or a method that
            cannot serve the model; before anything is drawn.
    """
    schedule = schedule or Schedule()
    schedule.check()
    decodings = {name: parse_method(name) for name in dict.fromkeys((BASELINE, *methods))}
    for decoding in decodings.values():
        decoding.check(workload.model, workload.layout)
    fixed = {
        (name, batch): _with_window(decoding, workload, schedule, batch)
        for name, decoding in decodings.items()
        for batch in schedule.batches
    }
    order, trials = _measure(fixed, workload, schedule, clock, progress)
    first = schedule.batches[0]
    return {
        "baseline": BASELINE,
        **schedule._asdict(),
        "order": order,
        "tokens": workload.layout.length,
        "vocabulary": workload.model.vocab_size,
        "prefill_passes": int(workload.model.prefix_length > 1),
        "entropy_bits_per_token": _entropy(workload, schedule, trials[BASELINE, first]),
        "methods": [
            _describe(name, decoding, fixed, trials, workload, schedule, clock)
            for name, decoding in decodings.items()
        ],
    }


def _describe(
    name: str,
    decoding: Decoding,
    fixed: Mapping[tuple[str, int], tuple[Decoding, int]],
    trials: Mapping[tuple[str, int], list[list[Trial]]],
    workload: Workload,
    schedule: Schedule,
    clock: Clock,
) -> dict[str, Any]:
    batches = []
    for batch in schedule.batches:
        rounds, baseline = trials[name, batch], trials[BASELINE, batch]
        exact = isinstance(decoding, ExactMatchJacobiDecoding)
        batches.append(
            {
                "batch": batch,
                "window": fixed[name, batch][1],
                **summarise(rounds, baseline),
                "identical": identical(rounds, baseline) if exact else None,
            }
        )
    single = fixed[name, schedule.batches[0]][0]
    return {
        "name": name,
        "class": type(decoding).__name__,
        "options": {k: v for k, v in decoding.config.items() if not k.startswith("_")},
        "lossless": decoding.lossless,
        "outside_model_share": outside_model_share(single, workload, schedule, clock),
        "batches": batches,
    }


def _with_window(
    decoding: Decoding, workload: Workload, schedule: Schedule, batch: int
) -> tuple[Decoding, int]:
    """The method with its window settled, so that no timed batch includes the choice."""
    numbers = schedule.parts(batch)[0]
    sampling = workload.sampling(schedule.seeds(numbers, 0))
    condition = workload.condition(numbers)
    window = decoding.choose_window(workload.model, workload.layout, condition, sampling)
    if decoding.config.get("window") == "auto":
        decoding = type(decoding).from_config(decoding.config, window=window)
    return decoding, window


def _measure(
    fixed: Mapping[tuple[str, int], tuple[Decoding, int]],
    workload: Workload,
    schedule: Schedule,
    clock: Clock,
    progress: Progress | None,
) -> tuple[list[list[str]], dict[tuple[str, int], list[list[Trial]]]]:
    """Draws everything. Returns the order of the methods by round, and trials by round."""
    names = list(dict.fromkeys(name for name, _ in fixed))
    parts = {batch: schedule.parts(batch) for batch in schedule.batches}
    warm = {batch: parts[batch][: schedule.warmup] for batch in parts}
    of_a_method = sum(len(warm[batch]) + schedule.rounds * len(parts[batch]) for batch in parts)
    drawn, total = 0, of_a_method * len(names)

    def trial(name: str, batch: int, numbers: list[int], turn: int) -> Trial:
        nonlocal drawn
        seeds = schedule.seeds(numbers, turn)
        result = draw(fixed[name, batch][0], workload, numbers, seeds, clock)
        drawn += 1
        if progress is not None:
            progress(drawn, total)
        return result

    for name, batch in fixed:
        for numbers in warm[batch]:
            trial(name, batch, numbers, 0)
    trials: dict[tuple[str, int], list[list[Trial]]] = {key: [] for key in fixed}
    order = [_rotated(names, turn) for turn in range(schedule.rounds)]
    for turn, turn_names in enumerate(order):
        for batch in schedule.batches:
            for name in turn_names:
                trials[name, batch].append([])
            for numbers in parts[batch]:
                for name in turn_names:
                    trials[name, batch][turn].append(trial(name, batch, numbers, turn))
    return order, trials


def _rotated(names: list[str], turn: int) -> list[str]:
    first = turn % len(names)
    return names[first:] + names[:first]


@torch.inference_mode()
def draw(
    method: Decoding,
    workload: Workload,
    numbers: Sequence[int],
    seeds: list[int],
    clock: Clock = time.perf_counter,
) -> Trial:
    """Draws and times one batch.

    Args:
        method: how to decode.
        workload: what is drawn.
        numbers: of the B pictures.
        seeds: one a picture.
        clock: seconds from any origin.
    """
    device = workload.model.device
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    times = [_now(device, clock)]
    condition = workload.condition(numbers)
    times.append(_now(device, clock))
    committed, head_evaluations = [], 0
    steps = method.decode(workload.model, workload.layout, condition, workload.sampling(seeds))
    for step in steps:
        committed.append(step.committed)
        head_evaluations += step.head_evaluations
        tokens = step.tokens
    times.append(_now(device, clock))
    workload.detokenise(tokens)
    times.append(_now(device, clock))
    return Trial(
        condition=times[1] - times[0],
        decode=times[2] - times[1],
        detokenise=times[3] - times[2],
        committed=torch.stack(committed).cpu(),
        head_evaluations=head_evaluations,
        tokens=tokens.cpu(),
        peak_memory=torch.cuda.max_memory_allocated(device) if cuda else None,
    )


@torch.inference_mode()
def law_entropy(
    workload: Workload, numbers: Sequence[int], seeds: list[int], tokens: Tensor
) -> Tensor:
    """Entropy of the guided, warped law of every token, given the tokens before it, in one pass.

    Args:
        workload: what was drawn.
        numbers: of the B pictures.
        seeds: one a picture.
        tokens: int64 [B, N] in decode order.

    Returns:
        fp32 [B, N], in bits.
    """
    model, layout, sampling = workload.model, workload.layout, workload.sampling(seeds)
    condition = workload.condition(numbers)
    batch, length = tokens.shape
    method = SequentialDecoding()
    guided = len(condition.prefix) == 2 * batch
    state = method.init(model, layout, batch, guided, window=length)
    method.admit(state, torch.arange(batch, device=model.device), condition, sampling)
    ranks = torch.arange(length, device=model.device).expand(batch, -1)
    feed = tokens.to(model.device).roll(1, dims=1)  # rank -1 is fed the prefix, not a token
    return state.law(state.forward(feed, ranks - 1), ranks).entropy()


def _entropy(workload: Workload, schedule: Schedule, rounds: list[list[Trial]]) -> float:
    """Mean over all pictures of a method, one at a time to keep the logits small."""
    means = []
    batch = schedule.batches[0]
    for turn, trials in enumerate(rounds):
        for numbers, trial in zip(schedule.parts(batch), trials, strict=True):
            for number, tokens in zip(numbers, trial.tokens, strict=True):
                seeds = schedule.seeds([number], turn)
                means.append(law_entropy(workload, [number], seeds, tokens[None]).mean())
    return float(torch.stack(means).mean())


@torch.inference_mode()
def outside_model_share(
    method: Decoding, workload: Workload, schedule: Schedule, clock: Clock = time.perf_counter
) -> float | None:
    """Share of a pass that is neither the model's trunk nor its head, for one batch.

    The first pass, which includes the prefill, is left out. On a GPU every call waits for its end,
    so the share says what the kernels cost, not what overlaps.

    Returns:
        in [0, 1]; None when one pass drew everything.
    """
    numbers = schedule.parts(schedule.batches[0])[0]
    condition = workload.condition(numbers)
    sampling = workload.sampling(schedule.seeds(numbers, 0))
    device = workload.model.device
    with _timed(workload.model, clock) as inside:
        steps = method.decode(workload.model, workload.layout, condition, sampling)
        next(steps)
        inside.clear()
        start = _now(device, clock)
        passes = sum(1 for _ in steps)
        total = _now(device, clock) - start
    return 1.0 - sum(inside) / total if passes else None


@contextmanager
def _timed(model: TokenModel, clock: Clock) -> Iterator[list[float]]:
    """Collects the seconds of every call of the model's trunk and head."""
    seconds: list[float] = []

    def timed(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Any, **kwargs: Any) -> Tensor:
            start = _now(model.device, clock)
            result = function(*args, **kwargs)
            seconds.append(_now(model.device, clock) - start)
            return result

        return call

    parts = ("forward", "predict")
    for part in parts:
        setattr(model, part, timed(getattr(model, part)))
    try:
        yield seconds
    finally:
        for part in parts:
            delattr(model, part)


def _now(device: torch.device, clock: Clock) -> float:
    """The time once the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock()
