"""Measures decoding methods side by side on one model in one run; knows no family and no method.

Methods take turns batch by batch of work, in an order that rotates from round to round, so that a
noisy machine hurts all alike, and every ratio is of two times from the same round. All rounds of a
batch size follow its warm-up: a method keeps the buffers and the captured passes of one size, which
are then never made anew in a timed part. Counts, entropy and the share of a pass spent outside the
model are taken outside of the timed parts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from visual_ar.accel.exact_match import ExactMatchJacobiDecoding
from visual_ar.accel.loop.contract import Decoding
from visual_ar.eight_bit_linear import number_format
from visual_ar.evaluation import machine
from visual_ar.evaluation.probes import Clock, law_entropy, now, outside_model_share
from visual_ar.evaluation.speed_summary import Trial, identical, summarise
from visual_ar.evaluation.workload import DEFAULTS, Options, Workload, from_pipeline
from visual_ar.method_options import parse_method

if TYPE_CHECKING:
    from visual_ar.pipeline import VisualARPipeline

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

Progress = Callable[[int, int], None]


class Contender(NamedTuple):
    """A method with its window settled, so that no timed batch includes the choice.

    Attributes:
        method: how to decode.
        window: ranks that a pass predicts.
    """

    method: Decoding
    window: int


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


def bench(
    workload: Workload,
    methods: Sequence[str] = DEFAULT_METHODS,
    schedule: Schedule | None = None,
    clock: Clock = time.perf_counter,
    progress: Progress | None = None,
    shipped: Decoding | None = None,
) -> dict[str, Any]:
    """Measures methods side by side. The baseline, sequential decoding, is always among them.

    Args:
        workload: what is drawn.
        methods: specifications, see `method_options.parse_method`.
        schedule: how much is measured; by default what `Schedule` says.
        clock: seconds from any origin.
        progress: called as progress(done, total) after every batch drawn.
        shipped: the model's own method, see `method_options`.

    Returns:
        a JSON-able document: the machine, the schedule, the order of the methods in every round,
        the mean entropy of the laws, for every method and batch size what `summarise` returns, and
        the peak memory of the process, which on a CPU is all that can be told.

    Raises:
        ValueError: an unknown method or option, a schedule outside its ranges, or a method that
            cannot serve the model; before anything is drawn.
    """
    schedule = schedule or Schedule()
    schedule.check()
    names = dict.fromkeys((BASELINE, *methods))
    decodings = {name: parse_method(name, shipped) for name in names}
    for decoding in decodings.values():
        decoding.check(workload.cast)
    contenders = {
        (name, batch): _settled(decoding, workload, schedule, batch)
        for name, decoding in decodings.items()
        for batch in schedule.batches
    }
    order, trials = _measure(contenders, workload, schedule, clock, progress)
    first, model = schedule.batches[0], workload.cast.model
    return {
        "machine": machine.describe(model.device, number_format(model)),
        "baseline": BASELINE,
        **schedule._asdict(),
        "order": order,
        "tokens": workload.cast.layout.length,
        "vocabulary": model.vocab_size,
        "prefill_passes": int(workload.cast.prefix > 1),
        "entropy_bits_per_token": _entropy(workload, schedule, trials[BASELINE, first]),
        "methods": [
            _describe(name, contenders, trials, workload, schedule, clock) for name in decodings
        ],
        "process_peak_memory_bytes": machine.process_peak_memory(),
    }


def bench_pipeline(
    pipe: VisualARPipeline,
    name: str,
    subjects: Sequence[str],
    options: Options = DEFAULTS,
    methods: Sequence[str] = DEFAULT_METHODS,
    schedule: Schedule | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """`bench` of what a pipeline draws.

    Args:
        pipe: draws text or classes.
        name: of the model, for the report.
        subjects: prompts or class names; pictures take them in turn.
        options: of sampling.
        methods: see `bench`, like the two below.
        schedule: how much is measured.
        progress: called after every batch drawn.

    Raises:
        ValueError: as `bench`, and for a subject or an option that the pipeline refuses.
    """
    workload = from_pipeline(pipe, subjects, options)
    report = bench(workload, methods, schedule, progress=progress, shipped=pipe.scheduler)
    return {"model": name, "sampling": options.filled(pipe), "subjects": list(subjects), **report}


def _describe(
    name: str,
    contenders: Mapping[tuple[str, int], Contender],
    trials: Mapping[tuple[str, int], list[list[Trial]]],
    workload: Workload,
    schedule: Schedule,
    clock: Clock,
) -> dict[str, Any]:
    first, numbers = contenders[name, schedule.batches[0]], schedule.parts(schedule.batches[0])[0]
    method = first.method
    exact = isinstance(method, ExactMatchJacobiDecoding)
    batches = []
    for batch in schedule.batches:
        rounds, baseline = trials[name, batch], trials[BASELINE, batch]
        batches.append(
            {
                "batch": batch,
                "window": contenders[name, batch].window,
                **summarise(rounds, baseline),
                "identical": identical(rounds, baseline) if exact else None,
            }
        )
    return {
        "name": name,
        "class": type(method).__name__,
        "options": {k: v for k, v in method.config.items() if not k.startswith("_")},
        "lossless": method.lossless,
        "outside_model_share": outside_model_share(
            *first, workload, numbers, schedule.seeds(numbers, 0), clock
        ),
        "batches": batches,
    }


@torch.inference_mode()
def _settled(method: Decoding, workload: Workload, schedule: Schedule, batch: int) -> Contender:
    numbers = schedule.parts(batch)[0]
    sampling = workload.sampling(schedule.seeds(numbers, 0))
    condition = workload.condition(numbers)
    return Contender(method, method.choose_window(workload.cast, condition, sampling))


def _measure(
    contenders: Mapping[tuple[str, int], Contender],
    workload: Workload,
    schedule: Schedule,
    clock: Clock,
    progress: Progress | None,
) -> tuple[list[list[str]], dict[tuple[str, int], list[list[Trial]]]]:
    """Draws everything. Returns the order of the methods by round, and trials by round."""
    names = list(dict.fromkeys(name for name, _ in contenders))
    parts = {batch: schedule.parts(batch) for batch in schedule.batches}
    warm = {batch: parts[batch][: schedule.warmup] for batch in parts}
    of_a_method = sum(len(warm[batch]) + schedule.rounds * len(parts[batch]) for batch in parts)
    drawn, total = 0, of_a_method * len(names)

    def trial(name: str, batch: int, numbers: list[int], turn: int) -> Trial:
        nonlocal drawn
        seeds = schedule.seeds(numbers, turn)
        result = draw(contenders[name, batch], workload, numbers, seeds, clock)
        drawn += 1
        if progress is not None:
            progress(drawn, total)
        return result

    trials: dict[tuple[str, int], list[list[Trial]]] = {key: [] for key in contenders}
    order = [_rotated(names, turn) for turn in range(schedule.rounds)]
    for batch in parts:
        for name in names:
            for numbers in warm[batch]:
                trial(name, batch, numbers, 0)
        for turn, turn_names in enumerate(order):
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
    contender: Contender,
    workload: Workload,
    numbers: Sequence[int],
    seeds: list[int],
    clock: Clock = time.perf_counter,
) -> Trial:
    """Draws and times one batch.

    Args:
        contender: how to decode.
        workload: what is drawn.
        numbers: of the B pictures.
        seeds: one a picture.
        clock: seconds from any origin.
    """
    method, window = contender
    device, sampling = workload.cast.model.device, workload.sampling(seeds)
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    times = [now(device, clock)]
    condition = workload.condition(numbers)
    times.append(now(device, clock))
    committed, spent, head_evaluations, draft_evaluations = [], [], 0, 0
    for step in method.decode(workload.cast, condition, sampling, window):
        committed.append(step.committed)
        if step.spent is not None:
            spent.append(step.spent)
        head_evaluations += step.head_evaluations
        draft_evaluations += step.draft_evaluations
        tokens = step.tokens
    times.append(now(device, clock))
    workload.detokenise(tokens)
    times.append(now(device, clock))
    return Trial(
        condition=times[1] - times[0],
        decode=times[2] - times[1],
        detokenise=times[3] - times[2],
        committed=torch.stack(committed).cpu(),
        head_evaluations=head_evaluations,
        tokens=tokens.cpu(),
        peak_memory=torch.cuda.max_memory_allocated(device) if cuda else None,
        spent=float(torch.stack(spent).sum()) if spent else None,
        draft_evaluations=draft_evaluations,
    )


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
