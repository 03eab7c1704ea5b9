"""Measures model families side by side, each with its methods; knows no family and no method.

Families are compared that draw the same subjects as the same tokens. They take turns batch by
batch, and ratios are of times from the same round, as in `speed`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from visual_ar.accel.hybrid import HybridDecoding
from visual_ar.accel.loop.contract import Decoding
from visual_ar.accel.sequential import SequentialDecoding
from visual_ar.companions import same_tokenizer
from visual_ar.data.dataset import Dataset
from visual_ar.eight_bit_linear import number_format
from visual_ar.evaluation import machine
from visual_ar.evaluation.probes import Clock
from visual_ar.evaluation.quality import (
    DISTANCE,
    TOP,
    Features,
    check_count,
    cifar_frechet,
    emoji_retrieval,
)
from visual_ar.evaluation.speed import Contender, Progress, Schedule, draw
from visual_ar.evaluation.speed_summary import Trial, summarise
from visual_ar.evaluation.workload import DEFAULTS, Options, Workload, from_pipeline, source

if TYPE_CHECKING:
    from visual_ar.pipeline import VisualARPipeline

Quality = Callable[["VisualARPipeline"], dict[str, float] | None]


class Entrant(NamedTuple):
    """One model with one method.

    Attributes:
        model: its name, and the drafter's behind a plus sign.
        method: how it decodes.
        pipe: what draws.
        workload: the same as stages.
    """

    model: str
    method: Decoding
    pipe: VisualARPipeline
    workload: Workload


def bench_families(
    pipes: Mapping[str, VisualARPipeline],
    subjects: Callable[[VisualARPipeline], Sequence[str]],
    options: Options = DEFAULTS,
    schedule: Schedule | None = None,
    quality: Quality | None = None,
    clock: Clock = time.perf_counter,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Draws the same pictures with every family and method that can.

    Next-token models decode sequentially, by their own method, and by hybrid decoding with every
    parallel model of the same tokenizer; parallel models by their own method.

    Args:
        pipes: by name; at least one.
        subjects: what each of them draws.
        options: of sampling; None is each pipeline's own.
        schedule: how much is measured; by default what `Schedule` says.
        quality: measures a model's pictures by its own method, once a model; the rows of other
            methods have none. None leaves quality out.
        clock: seconds from any origin.
        progress: called as progress(done, total) after every batch drawn.

    Returns:
        a JSON-able document: the machine, the schedule, and for every set of comparable models a
        row for each entrant with what `summarise` returns at every batch size.

    Raises:
        ValueError: no model, a schedule outside its ranges, or an option that a model refuses.
    """
    schedule = schedule or Schedule()
    schedule.check()
    if not pipes:
        raise ValueError("models must name at least one model, got none")
    sets = [_entrants(some, subjects, options) for some in comparable(pipes)]
    batches = sum(
        schedule.rounds * len(schedule.parts(batch)) + len(schedule.parts(batch)[: schedule.warmup])
        for batch in schedule.batches
    )
    total, drawn = batches * sum(map(len, sets)), 0

    def count() -> None:
        nonlocal drawn
        drawn += 1
        if progress is not None:
            progress(drawn, total)

    # First, because it may refuse what it is asked for.
    found = {name: quality(pipe) for name, pipe in pipes.items()} if quality else {}
    families = [_measure(entrants, schedule, clock, count) for entrants in sets]
    for rows in families:
        for row in rows:
            pipe = pipes.get(row["model"])
            own = pipe is not None and row["method"] == type(pipe.scheduler).__name__
            row["quality"] = found.get(row["model"]) if own else None
    first = next(iter(pipes.values()))
    return {
        "machine": machine.describe(first.model.device, number_format(first.model)),
        **schedule._asdict(),
        "sampling": {name: options.filled(pipe) for name, pipe in pipes.items()},
        "families": families,
    }


def comparable(pipes: Mapping[str, VisualARPipeline]) -> list[dict[str, VisualARPipeline]]:
    """Sets of models with one tokenizer and one kind of subject, next-token models first."""
    sets: list[dict[str, VisualARPipeline]] = []
    for name, pipe in sorted(pipes.items(), key=lambda item: not _is_chain(item[1])):
        for some in sets:
            other = next(iter(some.values()))
            alike = other.config.class_names == pipe.config.class_names
            if alike and same_tokenizer(other.image_tokenizer, pipe.image_tokenizer):
                some[name] = pipe
                break
        else:
            sets.append({name: pipe})
    return sets


def measured_quality(
    pipe: VisualARPipeline, datasets: Sequence[Dataset], features: Features, count: int, seed: int
) -> dict[str, float] | None:
    """What the dataset that a model draws tells about its pictures; None if it is not given.

    Args:
        pipe: a model with its own method.
        datasets: the prepared ones.
        features: how pictures are compared.
        count: pictures to draw.
        seed: of the first picture.

    Raises:
        ValueError: one of the datasets has not that many prompts; before anything is drawn.
    """
    for dataset in datasets:
        check_count(dataset, count)
    drawn = source(pipe, pipe.scheduler)
    for dataset in datasets:
        if not pipe.conditioner.known and dataset.items:
            found = emoji_retrieval(drawn, dataset, features, count, seed)["train"]
            hits = {f"hits in top {TOP}": found[f"hit_rate_top_{TOP}"]}
            return hits | {DISTANCE: found["distance_to_data"]}
        if pipe.config.class_names is not None and pipe.config.class_names == dataset.classes:
            found = cifar_frechet({"own": drawn}, dataset, features, count, seed, permutations=1)
            return {DISTANCE: found["methods"]["own"]}
    return None


def _entrants(
    pipes: Mapping[str, VisualARPipeline],
    subjects: Callable[[VisualARPipeline], Sequence[str]],
    options: Options,
) -> list[Entrant]:
    """Every way in which a set of comparable models can draw."""
    chains = {name: pipe for name, pipe in pipes.items() if _is_chain(pipe)}
    ways: list[tuple[str, Decoding, VisualARPipeline]] = []
    for name, pipe in chains.items():
        ways.append((name, SequentialDecoding(), pipe))
        if not isinstance(pipe.scheduler, SequentialDecoding):
            ways.append((name, pipe.scheduler, pipe))
    for name, pipe in pipes.items():
        if name not in chains:
            ways.append((name, pipe.scheduler, pipe))
            for verifier, other in chains.items():
                # The model alone must not pay for the drafter's prefix, and a model knows one
                # drafter: every pair has a copy, of the same weights.
                both = copy.copy(other)
                both.register_modules(model=copy.copy(other.model))
                both.draft_with(pipe)
                ways.append((f"{verifier}+{name}", HybridDecoding(), both))
    return [
        Entrant(name, method, pipe, from_pipeline(pipe, subjects(pipe), options))
        for name, method, pipe in ways
    ]


def _is_chain(pipe: VisualARPipeline) -> bool:
    grid = pipe.image_tokenizer.grid(pipe.size)
    return pipe.model.layout(grid).is_chain


def _measure(
    entrants: Sequence[Entrant], schedule: Schedule, clock: Clock, count: Callable[[], None]
) -> list[dict[str, Any]]:
    """Draws with all entrants in turn, the first being the baseline. One row an entrant."""
    trials: dict[tuple[int, int], list[list[Trial]]] = {}
    for batch in schedule.batches:
        contenders = [_settled(entrant, schedule, batch) for entrant in entrants]

        def trial(number: int, pictures: list[int], turn: int, *, of: list[Contender]) -> Trial:
            seeds = schedule.seeds(pictures, turn)
            found = draw(of[number], entrants[number].workload, pictures, seeds, clock)
            count()
            return found

        for number in range(len(entrants)):
            for pictures in schedule.parts(batch)[: schedule.warmup]:
                trial(number, pictures, 0, of=contenders)
            trials[number, batch] = [[] for _ in range(schedule.rounds)]
        for turn in range(schedule.rounds):
            for pictures in schedule.parts(batch):
                for step in range(len(entrants)):
                    number = (turn + step) % len(entrants)
                    found = trial(number, pictures, turn, of=contenders)
                    trials[number, batch][turn].append(found)
    return [
        _row(entrant, {b: summarise(trials[n, b], trials[0, b]) for b in schedule.batches})
        for n, entrant in enumerate(entrants)
    ]


def _row(entrant: Entrant, batches: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    models = [entrant.pipe.model, entrant.pipe.draft_model if "+" in entrant.model else None]
    return {
        "model": entrant.model,
        "method": type(entrant.method).__name__,
        "lossless": entrant.method.lossless,
        "parameters": sum(p.numel() for m in models if m is not None for p in m.parameters()),
        "batches": [{"batch": batch, **numbers} for batch, numbers in batches.items()],
    }


@torch.inference_mode()
def _settled(entrant: Entrant, schedule: Schedule, batch: int) -> Contender:
    """The method with its window chosen, before anything is timed."""
    work, numbers = entrant.workload, schedule.parts(batch)[0]
    sampling = work.sampling(schedule.seeds(numbers, 0))
    entrant.method.check(work.cast)
    window = entrant.method.choose_window(work.cast, work.condition(numbers), sampling)
    return Contender(entrant.method, window)
