"""Lets two methods draw one picture in turns, and says what came of it; knows no page.

Both share one device, so each has a clock of its own that runs only during its passes: whoever has
used less time goes next, and at any moment both pictures are as far as that time brings them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from visual_ar.accel.loop.contract import Decoding
from visual_ar.app.methods import with_method
from visual_ar.app.settings import Settings
from visual_ar.output import Preview, Stats
from visual_ar.pipeline import VisualARPipeline

STAGES = ("condition", "decode")


@dataclass
class Lane:
    """One method in the race.

    Attributes:
        name: of the method.
        method: how it decodes.
        previews: its passes.
        latest: its last pass, None before the first.
        over: whether there are no more.
    """

    name: str
    method: Decoding
    previews: Iterator[Preview]
    latest: Preview | None = None
    over: bool = False

    @property
    def seconds(self) -> float:
        """Time used for the prompt and for passes, without previews or the choice of a window."""
        spent = {} if self.latest is None else self.latest.seconds
        return sum(spent.get(stage, 0.0) for stage in STAGES)

    def advance(self) -> None:
        """One more pass."""
        preview = next(self.previews, None)
        if preview is None:
            self.over = True
        else:
            self.latest = preview


def lanes(pipe: VisualARPipeline, methods: dict[str, Decoding], settings: Settings) -> list[Lane]:
    """The methods at the start.

    Args:
        pipe: draws.
        methods: by the name they have on the page.
        settings: what both draw.

    Raises:
        ValueError: the pipeline or a method refuses.
    """
    call = settings.call(pipe)
    return [
        Lane(name, method, with_method(pipe, method).stream(**call))
        for name, method in methods.items()
    ]


def race(
    field: list[Lane], every: float, clock: Callable[[], float] = time.monotonic
) -> Iterator[None]:
    """Runs the lanes to their ends; yields when a preview is due, and once at the end.

    Args:
        field: from `lanes`, changed in place.
        every: seconds between two previews.
        clock: seconds from any origin.
    """
    due = clock()
    while not all(lane.over for lane in field):
        min((lane for lane in field if not lane.over), key=lambda lane: lane.seconds).advance()
        if clock() >= due and all(lane.latest is not None for lane in field):
            yield
            due = clock() + every
    yield


def table(first: Lane, second: Lane) -> list[list[str]]:
    """What two lanes took that have made a pass: rows of a measure and a value of each."""
    columns = [_column(lane) for lane in (first, second)]
    return [[row, columns[0][row], columns[1][row]] for row in columns[0]]


def _column(lane: Lane) -> dict[str, str]:
    assert lane.latest is not None
    stats = lane.latest.stats
    spent = stats.total_variation
    return {
        "seconds": f"{lane.seconds:.2f}",
        "passes": str(max(stats.passes)),
        "tokens a pass": f"{stats.mean_accepted_length:.2f}",
        "window": str(stats.window),
        "lossless": str(stats.lossless),
        "total variation a token": "0" if spent is None else f"{spent:.3f}",
    }


def conclusion(first: Lane, second: Lane) -> str:
    """Says whether two complete pictures are identical, and why."""
    assert first.latest is not None and second.latest is not None
    apart = ~first.latest.run.kind.same(first.latest.tokens, second.latest.tokens)
    differing = int(apart.sum())
    counted = f"Different in {differing} of {apart.numel()} tokens"
    stats = (first.latest.stats, second.latest.stats)
    same_noise = first.method.needs_noise and second.method.needs_noise
    fixed = same_noise and not any("coupling" in one.options for one in stats)
    if differing == 0:
        return f"Identical: {_why_identical(fixed, stats)}"
    lossy = [
        lane.name for lane, one in zip((first, second), stats, strict=True) if not one.lossless
    ]
    if lossy:
        return f"{counted}: {' and '.join(lossy)} does not follow the model's law."
    if fixed:
        return (
            f"{counted}: both read the same noise, but matrix products of other shapes round "
            "differently, and a near tie went the other way."
        )
    return (
        f"{counted}: both follow the model's law, but spend the random numbers of the seed "
        "differently. They are two draws from one law."
    )


def _why_identical(fixed: bool, stats: tuple[Stats, Stats]) -> str:
    if stats[0].method == stats[1].method and stats[0].options == stats[1].options:
        return "it is one method with one seed."
    if fixed:
        return "both give every token the noise that the seed fixes for it, at another speed."
    return "the laws are so sharp here that other random numbers led to the same tokens."


def faster(first: Lane, second: Lane) -> str:
    """Says who needed less time."""
    slow, fast = sorted((first, second), key=lambda lane: lane.seconds, reverse=True)
    if fast.seconds <= 0:
        return ""
    return f"{fast.name} was {slow.seconds / fast.seconds:.2f} times as fast as {slow.name}."
