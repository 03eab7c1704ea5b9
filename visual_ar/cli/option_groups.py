"""Options that several commands share, as dataclasses; knows no command and nothing of models.

A command whose parameter is such a dataclass has an option for each of its fields.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

if TYPE_CHECKING:
    from visual_ar.evaluation.speed import Schedule
    from visual_ar.evaluation.workload import Options

MODEL, METHOD, SAMPLING, COMPLETION = "What draws", "How it decodes", "Sampling", "Completion"
AMOUNT = "How much is measured"
"""Headings of the help."""
MOST_THREADS = max(64, os.cpu_count() or 1)
"""Many more than there are cores help nobody, and no system starts them for one program."""

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="Bundled name, model folder or Hugging Face id.",
        rich_help_panel=MODEL,
    ),
]
Device = Annotated[
    str,
    typer.Option(help="Where to compute: auto (a GPU if there is one), cpu, cuda, cuda:1, mps."),
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "int8"],
    typer.Option(
        help="Number format; auto is bfloat16 on a GPU and float32 elsewhere. "
        "int8 multiplies with 8-bit weights, on a CPU only."
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1, max=MOST_THREADS, help="CPU threads to compute with. [dim]Default: all cores.[/dim]"
    ),
]
Retune = Annotated[
    bool,
    typer.Option(
        "--retune",
        help="Measure automatic windows again, as after a change of the machine; another window "
        "draws another picture of a seed.",
        rich_help_panel=METHOD,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Spec = Annotated[
    str | None,
    typer.Option(
        metavar="NAME[:OPTION=VALUE,...]",
        help="How to decode. [dim]Default: the model's own method.[/dim]",
    ),
]


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Decorates a command whose parameters may be groups, so that each field is an option."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {k: v for k, v in hints.items() if dataclasses.is_dataclass(v)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            parameters += _of_fields(groups[name])
        else:
            parameters.append(_keyword(name, hints[name], parameter.default))

    @wraps(command)
    def call(**values: Any) -> None:
        made = {
            name: kind(**{field.name: values.pop(field.name) for field in dataclasses.fields(kind)})
            for name, kind in groups.items()
        }
        command(**values, **made)

    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {one.name: one.annotation for one in parameters}
    return call


def _of_fields(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    missing = dataclasses.MISSING
    return [
        _keyword(
            field.name,
            hints[field.name],
            inspect.Parameter.empty if field.default is missing else field.default,
        )
        for field in dataclasses.fields(group)
    ]


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, annotation=annotation, default=default)


@dataclass(frozen=True)
class Computer:
    """Where to compute."""

    device: Device = "auto"
    threads: Threads = None


@dataclass(frozen=True)
class Machine(Computer):
    """Where to compute, and in which number format."""

    dtype: Dtype = "auto"


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn from the model's law; None is the model's own setting."""

    guidance: Annotated[
        float | None,
        typer.Option(
            help="Guidance scale, from 0; 1 is off, more follows the prompt more closely.",
            rich_help_panel=SAMPLING,
        ),
    ] = None
    temperature: Annotated[
        float | None,
        typer.Option(
            help="Above 0; 1 is the model's law, less is safer and duller.",
            rich_help_panel=SAMPLING,
        ),
    ] = None
    top_k: Annotated[
        int | None,
        typer.Option(
            max=2**31, help="Draw among the k likeliest tokens; 0 is all.", rich_help_panel=SAMPLING
        ),
    ] = None
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Draw among the likeliest tokens that sum to p, in (0, 1]; 1 is all.",
            rich_help_panel=SAMPLING,
        ),
    ] = None

    def options(self) -> Options:
        """The same as evaluations take it."""
        from visual_ar.evaluation.workload import Options

        return Options(self.guidance, self.temperature, self.top_k, self.top_p)


@dataclass(frozen=True)
class ScheduledSampling(Sampling):
    """The same, and where guidance acts."""

    guidance_schedule: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="constant, linear, or interval:FROM:TO (guides between two shares of the tokens).",
            rich_help_panel=SAMPLING,
        ),
    ] = None


@dataclass(frozen=True)
class SizeAsked:
    """How large; None is the model's own."""

    height: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65_536,
            help="Pixels; a size the model was trained for.",
            rich_help_panel=MODEL,
        ),
    ] = None
    width: Annotated[
        int | None, typer.Option(min=1, max=65_536, help="Pixels, likewise.", rich_help_panel=MODEL)
    ] = None
    frames: Annotated[
        int | None,
        typer.Option(
            min=1, max=65_536, help="Of a clip, for models that draw clips.", rich_help_panel=MODEL
        ),
    ] = None
    length: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65_536,
            help="Tokens to draw, for codes in an order from coarse to fine.",
            rich_help_panel=MODEL,
        ),
    ] = None


@dataclass(frozen=True)
class Completion:
    """What is kept of a given picture."""

    complete: Annotated[
        Path | None,
        typer.Option(help="Picture to complete, of the model's size.", rich_help_panel=COMPLETION),
    ] = None
    keep_rows: Annotated[
        str | None,
        typer.Option(
            metavar="FROM:TO",
            help="Rows of token cells to keep, counted from 0, TO excluded: 0:8.",
            rich_help_panel=COMPLETION,
        ),
    ] = None
    mask: Annotated[
        Path | None,
        typer.Option(
            help="Picture that is white where to keep, any size; what is transparent is drawn.",
            rich_help_panel=COMPLETION,
        ),
    ] = None

    def typed(self) -> dict[str, str | None]:
        """As a recipe repeats it."""
        given = dataclasses.asdict(self).items()
        return {name: None if value is None else str(value) for name, value in given}


@dataclass(frozen=True)
class Amount:
    """How much is measured."""

    pictures: Annotated[
        int, typer.Option(min=1, max=4096, help="Pictures of a round.", rich_help_panel=AMOUNT)
    ] = 4
    batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=4096,
            help="Batch size to measure beside 1. [dim]Default: all pictures at once.[/dim]",
            rich_help_panel=AMOUNT,
        ),
    ] = None
    rounds: Annotated[
        int, typer.Option(min=1, max=10_000, help="Timed rounds.", rich_help_panel=AMOUNT)
    ] = 3
    warmup: Annotated[
        int,
        typer.Option(
            min=0,
            max=1000,
            help="Untimed batches of every method and batch size.",
            rich_help_panel=AMOUNT,
        ),
    ] = 1
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            max=2**62,
            help="Seed of the first picture, the next has the next.",
            rich_help_panel=AMOUNT,
        ),
    ] = 0

    def schedule(self) -> Schedule:
        """The same as a bench takes it."""
        from visual_ar.evaluation.speed import Schedule

        other = self.pictures if self.batch is None else self.batch
        batches = tuple(dict.fromkeys((1, other)))
        return Schedule(self.pictures, batches, self.rounds, self.warmup, self.seed)
