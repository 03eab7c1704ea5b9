"""`visual-ar generate`: draws pictures; knows the pipeline's public call and nothing behind it."""

import math
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visual_ar.cli.common import (
    Device,
    Dtype,
    Json,
    Threads,
    check_output_file,
    echo_json,
    set_threads,
)
from visual_ar.cli.drawing import Drawn, Order, completion, draw, load
from visual_ar.cli.method import build, parse_window
from visual_ar.cli.sheet import paste
from visual_ar.provenance import of_sheet

if TYPE_CHECKING:
    from visual_ar.output import Stats

MODEL, METHOD, SAMPLING, COMPLETION = "What draws", "How it decodes", "Sampling", "Completion"


def generate(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="What to draw; several draw several pictures."),
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class", "-c", help="Class name or number, for models that draw classes; repeatable."
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="PNG to write; several are numbered name-1.png.")
    ] = Path("picture.png"),
    count: Annotated[
        int, typer.Option("--count", "-n", min=1, help="Pictures of each prompt or class.")
    ] = 1,
    sheet: Annotated[bool, typer.Option("--sheet", help="One PNG with all pictures.")] = False,
    columns: Annotated[
        int | None,
        typer.Option(min=1, help="Pictures a row of the sheet. [dim]Default: about square.[/dim]"),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=2**62,
            help="Seed of the first picture, the next has the next. [dim]Default: random.[/dim]",
        ),
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, help="Pictures drawn at once; changes speed and memory only.")
    ] = 16,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="Bundled name, model folder or Hugging Face id.",
            rich_help_panel=MODEL,
        ),
    ] = "emoji",
    height: Annotated[
        int | None,
        typer.Option(
            min=1, help="Pixels; a size the model was trained for.", rich_help_panel=MODEL
        ),
    ] = None,
    width: Annotated[
        int | None, typer.Option(min=1, help="Pixels, likewise.", rich_help_panel=MODEL)
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="sequential, jacobi, jacobi-published, exact-match, tree, tree-spatial, "
            "tree-adaptive, draft-head, denoising, hybrid (with --draft-model) or groups (models "
            "of several tokens a pass). [dim]Default: the model's own.[/dim]",
            rich_help_panel=METHOD,
        ),
    ] = None,
    draft_model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Model of the same tokenizer that drafts for --method hybrid, such as emoji-nar.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    drafts: Annotated[
        str | None,
        typer.Option(
            help="whole or ahead: how the draft model drafts (hybrid only).", rich_help_panel=METHOD
        ),
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(
            metavar="auto|N",
            help="Tokens predicted by a pass, from 1; auto measures the fastest once a device.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    coupling: Annotated[
        str | None,
        typer.Option(help="independent, maximal or gumbel (jacobi only).", rich_help_panel=METHOD),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="First drafts: uniform, left, above, left-law, above-law, ...",
            rich_help_panel=METHOD,
        ),
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(
            help="What accepts a draft (jacobi, tree and draft-head): exact or block, lossless; or "
            "grouped, lantern, lantern++, omega, typical, which trade fidelity for speed: "
            "omega/omega=1.2. For tokens of bits: exact or bitwise, lossless; or hamming-grouped, "
            "hamming-lantern, omega.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    tree: Annotated[
        str | None,
        typer.Option(
            metavar="NxN",
            help="Drafts at the first positions (tree only): 3x2 is three, and two behind each.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    drafter: Annotated[
        str | None,
        typer.Option(
            help="Who drafts (tree only): jacobi, head, or neighbours such as left-law+above-law.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    adapt: Annotated[
        str | None,
        typer.Option(
            help="What of a tree follows what was accepted (tree only): none, length or shape.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Levels of noise (denoising only).", rich_help_panel=METHOD),
    ] = None,
    clean: Annotated[
        int | None,
        typer.Option(
            help="Drafts at the head of the window without noise (denoising only).",
            rich_help_panel=METHOD,
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="Guidance scale, from 0; 1 is off, more follows the prompt more closely.",
            rich_help_panel=SAMPLING,
        ),
    ] = None,
    guidance_schedule: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="constant, linear, or interval:A:B (guides from fraction A to B of the tokens).",
            rich_help_panel=SAMPLING,
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            help="Above 0; 1 is the model's law, less is safer and duller.",
            rich_help_panel=SAMPLING,
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(help="Draw among the k likeliest tokens; 0 is all.", rich_help_panel=SAMPLING),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Draw among the likeliest tokens that sum to p, in (0, 1]; 1 is all.",
            rich_help_panel=SAMPLING,
        ),
    ] = None,
    complete: Annotated[
        Path | None,
        typer.Option(help="Picture to complete, of the model's size.", rich_help_panel=COMPLETION),
    ] = None,
    keep_rows: Annotated[
        str | None,
        typer.Option(
            metavar="FROM:TO",
            help="Rows of token cells to keep, counted from 0, TO excluded: 0:8.",
            rich_help_panel=COMPLETION,
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            help="Picture that is white where to keep, any size.", rich_help_panel=COMPLETION
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw pictures from words or classes.

    Every PNG carries its recipe: [cyan]visual-ar info picture.png[/cyan] prints
    the command that draws it again. All methods draw from the same law
    and differ in speed, unless --rule asks for a rule that is not lossless.

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
    kind, subjects = _subjects(prompts, classes, count)
    if columns is not None and not sheet:
        raise ValueError(f"columns must be left out without --sheet, got {columns}")
    if draft_model is not None and method != "hybrid":
        raise ValueError(f"draft_model must be left out without --method hybrid, got {draft_model}")
    paths = _paths(output, 1 if sheet else len(subjects))
    for path in paths:
        check_output_file(path, ".png")
    set_threads(threads)
    pipe = load(model, device, dtype, draft_model)
    own = {
        "drafts": drafts,
        "window": parse_window(window),
        "coupling": coupling,
        "init": init,
        "rule": rule,
        "tree": tree,
        "drafter": drafter,
        "adapt": adapt,
        "steps": steps,
        "clean": clean,
    }
    pipe.scheduler = build(method, own, pipe.scheduler)
    pipe.set_progress_bar_config(unit=" tokens", disable=True if as_json else None)
    order = Order(
        kind=kind,
        subjects=subjects,
        seed=secrets.randbelow(2**31) if seed is None else seed,
        settings={
            "guidance": guidance,
            "guidance_schedule": guidance_schedule,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "height": height,
            "width": width,
        },
        kept=completion(pipe, complete, keep_rows, mask, (height, width)),
        asked={
            "model": model,
            "draft_model": draft_model,
            "complete": None if complete is None else str(complete),
            "keep_rows": keep_rows,
            "mask": None if mask is None else str(mask),
        },
    )
    from visual_ar.png import write_png

    drawn: list[Drawn] = []
    for picture in draw(pipe, order, batch):
        if not sheet:
            write_png(picture.image, paths[len(drawn)], picture.recipe)
        drawn.append(picture)
    if sheet:
        columns = columns or math.ceil(math.sqrt(len(drawn)))
        recipe = of_sheet([picture.recipe for picture in drawn], kind, count, columns)
        write_png(paste([picture.image for picture in drawn], columns), output, recipe)
    if as_json:
        echo_json(_document(paths, drawn))
    else:
        typer.echo(_summary(paths, drawn))


def _subjects(
    prompts: list[str] | None, classes: list[str] | None, count: int
) -> tuple[str, list[str]]:
    """Returns what kind of subject is given, and one subject a picture."""
    if bool(prompts) == bool(classes):
        given = "both" if prompts else "neither"
        raise ValueError(f"one of PROMPT and --class must be given, got {given}")
    kind, values = ("prompt", prompts) if prompts else ("class", classes)
    return kind, [value for value in values or [] for _ in range(count)]


def _paths(output: Path, files: int) -> list[Path]:
    """Returns the path, or numbered ones beside it when there are several files."""
    if files == 1:
        return [output]
    digits = len(str(files))
    return [output.with_stem(f"{output.stem}-{n:0{digits}d}") for n in range(1, files + 1)]


def _batches(drawn: list[Drawn]) -> list["Stats"]:
    """Returns the statistics of each batch once."""
    return list({id(picture.stats): picture.stats for picture in drawn}.values())


def _document(paths: list[Path], drawn: list[Drawn]) -> dict[str, Any]:
    pictures = [picture.recipe for picture in drawn]
    batches = [batch.to_dict() for batch in _batches(drawn)]
    return {"files": [str(path) for path in paths], "pictures": pictures, "batches": batches}


def _summary(paths: list[Path], drawn: list[Drawn]) -> str:
    """Returns what was written and what it cost, in words."""
    batches, recipe, tokens = _batches(drawn), drawn[0].recipe, drawn[0].recipe["tokens"]
    passes = sum(max(batch.passes) for batch in batches)
    seconds = sum(sum(batch.seconds.values()) for batch in batches)
    files = str(paths[0]) if len(paths) == 1 else f"{paths[0]} to {paths[-1]}"
    many = "" if len(drawn) == 1 else f"{len(drawn)} pictures of "
    window = f" with window {recipe['window']}" if "window" in recipe else ""
    spent = [batch.total_variation for batch in batches if batch.total_variation is not None]
    lossy = f", total variation {max(spent):.3f} a token" if spent else ""
    return (
        f"{files}: {many}{tokens} tokens in {passes} passes "
        f"({tokens * len(batches) / max(passes, 1):.1f} a pass and picture), "
        f"{recipe['method']}{window}{lossy}, {seconds:.1f} s on {recipe['device']}, "
        f"seed {recipe['seed']}"
    )
