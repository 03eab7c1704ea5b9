"""`visual-ar generate`: draws pictures; knows the pipeline's public call and nothing behind it."""

import math
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visual_ar.cli.common import check_output_file, set_threads
from visual_ar.cli.drawing import Drawing, completion, draw, load
from visual_ar.cli.method_flags import method_asked
from visual_ar.cli.option_groups import (
    METHOD,
    Completion,
    Json,
    Machine,
    Model,
    Retune,
    ScheduledSampling,
    SizeAsked,
    grouped,
)
from visual_ar.cli.sheet import paste_drawn
from visual_ar.cli.terminal import echo_json, say
from visual_ar.provenance import Order, of_sheet

if TYPE_CHECKING:
    from visual_ar.output import Stats

DRAFTED = "hybrid"  # the method that another model drafts for


@dataclass(frozen=True)
class Wanted:
    """What to draw, and how many."""

    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="What to draw; several draw several pictures."),
    ] = None
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class", "-c", help="Class name or number, for models that draw classes; repeatable."
        ),
    ] = None
    count: Annotated[
        int,
        typer.Option("--count", "-n", min=1, max=100_000, help="Pictures of each prompt or class."),
    ] = 1
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=2**62,
            help="Seed of the first picture, the next has the next. [dim]Default: random.[/dim]",
        ),
    ] = None
    batch: Annotated[
        int,
        typer.Option(
            min=1, max=4096, help="Pictures drawn at once; changes speed and memory only."
        ),
    ] = 16

    def subjects(self) -> tuple[str, list[str]]:
        """What kind of subject is given, and one subject a picture."""
        if bool(self.prompts) == bool(self.classes):
            given = "both" if self.prompts else "neither"
            raise ValueError(f"one of PROMPT and --class must be given, got {given}")
        kind, values = ("prompt", self.prompts) if self.prompts else ("class", self.classes)
        return kind, [value for value in values or [] for _ in range(self.count)]


@dataclass(frozen=True)
class Files:
    """Where pictures are written."""

    output: Annotated[
        Path, typer.Option("--output", "-o", help="PNG to write; several are numbered name-1.png.")
    ] = Path("picture.png")
    sheet: Annotated[bool, typer.Option("--sheet", help="One PNG with all pictures.")] = False
    columns: Annotated[
        int | None,
        typer.Option(
            min=1, max=4096, help="Pictures a row of the sheet. [dim]Default: about square.[/dim]"
        ),
    ] = None

    def paths(self, pictures: int) -> list[Path]:
        """The path, or numbered ones beside it when there are several files.

        Raises:
            ValueError: there is no sheet to have columns, or a name is not that of a PNG.
            OSError: a file cannot be written.
        """
        if self.columns is not None and not self.sheet:
            raise ValueError(f"columns must be left out without --sheet, got {self.columns}")
        paths, digits, output = [self.output], len(str(pictures)), self.output
        if pictures > 1 and not self.sheet:
            names = [f"{output.stem}-{n:0{digits}d}" for n in range(1, pictures + 1)]
            paths = [output.with_stem(name) for name in names]
        for path in paths:
            check_output_file(path, ".png")
        return paths


DraftModel = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="Model of the same tokenizer that drafts for --method hybrid, such as emoji-nar.",
        rich_help_panel=METHOD,
    ),
]


@grouped
def generate(
    context: typer.Context,
    *,
    wanted: Wanted,
    files: Files,
    model: Model = "emoji",
    size: SizeAsked,
    machine: Machine,
    draft_model: DraftModel = None,
    retune: Retune = False,
    sampling: ScheduledSampling,
    kept: Completion,
    as_json: Json = False,
) -> None:
    """Draw pictures or clips from words or classes.

    Every PNG carries its recipe: [cyan]visual-ar info picture.png[/cyan] prints
    the command that draws it again. A clip is an animated PNG. All methods draw
    from the same law and differ in speed, unless --rule asks for a rule that is
    not lossless.

    [bold]Examples[/bold]

    [cyan]visual-ar generate "strawberry" --output strawberry.png[/cyan]
    One picture of the bundled emoji model.

    [cyan]visual-ar generate "red apple" "cat face" --count 5 --sheet --columns 5[/cyan]
    Two rows of five on one sheet.

    [cyan]visual-ar generate -m cifar10 -c ship --seed 7 --method exact-match[/cyan]
    The ship that sequential decoding draws from seed 7, sooner.

    [cyan]visual-ar generate "cat face" --method hybrid --draft-model emoji-nar[/cyan]
    The law of the model, with drafts of another that draws many tokens a pass.

    [cyan]visual-ar generate "cat face" --complete half.png --keep-rows 0:8[/cyan]
    Keeps the upper half of a picture and draws the rest.
    """
    kind, subjects = wanted.subjects()
    method = method_asked(context)
    if draft_model is not None and method.name != DRAFTED:
        raise ValueError(
            f"draft_model must be left out without --method {DRAFTED}, got {draft_model}"
        )
    paths = files.paths(len(subjects))
    set_threads(machine.threads)
    pipe = load(model, machine.device, machine.dtype, draft_model, retune, method)
    pipe.set_progress_bar_config(unit=" tokens", disable=True if as_json else None)
    given = {name: side for name, side in asdict(size).items() if side is not None}
    order = Order(
        kind=kind,
        subjects=subjects,
        seed=secrets.randbelow(2**31) if wanted.seed is None else wanted.seed,
        settings={**asdict(sampling), **given},
        kept=completion(
            pipe, kept.complete, kept.keep_rows, kept.mask, pipe.size._replace(**given)
        ),
        asked={"model": model, "draft_model": draft_model, **kept.typed()},
    )
    drawings = _written(paths, draw(pipe, order, wanted.batch), files, wanted.count)
    if as_json:
        echo_json(_document(paths, drawings))
    else:
        say(_summary(paths, drawings))


def _written(
    paths: Sequence[Path], coming: Iterable[Drawing], files: Files, count: int
) -> list[Drawing]:
    """Writes what is drawn, each as it comes or all on one sheet, and returns it."""
    from visual_ar.png import write_png

    drawings: list[Drawing] = []
    for drawing in coming:
        if not files.sheet:
            write_png(drawing.drawn, paths[len(drawings)], drawing.recipe)
        drawings.append(drawing)
    if files.sheet:
        columns = files.columns or math.ceil(math.sqrt(len(drawings)))
        recipes = [drawing.recipe for drawing in drawings]
        kind = "prompt" if "prompt" in recipes[0] else "class"
        sheet = paste_drawn([drawing.drawn for drawing in drawings], columns)
        write_png(sheet, paths[0], of_sheet(recipes, kind, count, columns))
    return drawings


def _batches(drawings: Sequence[Drawing]) -> list["Stats"]:
    """Returns the statistics of each batch once."""
    return list({id(drawing.stats): drawing.stats for drawing in drawings}.values())


def _document(paths: Sequence[Path], drawings: Sequence[Drawing]) -> dict[str, Any]:
    pictures = [drawing.recipe for drawing in drawings]
    batches = [batch.to_dict() for batch in _batches(drawings)]
    return {"files": [str(path) for path in paths], "pictures": pictures, "batches": batches}


def _summary(paths: Sequence[Path], drawings: Sequence[Drawing]) -> str:
    """Returns what was written and what it cost, in words."""
    batches, recipe = _batches(drawings), drawings[0].recipe
    tokens = recipe["tokens"]
    passes = sum(max(batch.passes) for batch in batches)
    seconds = sum(sum(batch.seconds.values()) for batch in batches)
    files = str(paths[0]) if len(paths) == 1 else f"{paths[0]} to {paths[-1]}"
    many = "" if len(drawings) == 1 else f"{len(drawings)} pictures of "
    window = f" with window {recipe['window']}" if "window" in recipe else ""
    spent = [batch.total_variation for batch in batches if batch.total_variation is not None]
    lossy = f", total variation {max(spent):.3f} a token" if spent else ""
    return (
        f"{files}: {many}{tokens} tokens in {passes} passes "
        f"({tokens * len(batches) / max(passes, 1):.1f} a pass and picture), "
        f"{recipe['method']}{window}{lossy}, {seconds:.1f} s on {recipe['device']}, "
        f"seed {recipe['seed']}"
    )
