"""`visual-ar bench`: compares decoding methods; knows the report's options, measures nothing."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from visual_ar.cli import bench_kernels
from visual_ar.cli.common import Device, Dtype, Json, Threads, echo_json, set_threads
from visual_ar.cli.suites import ASKED, Suite, check_options, families, pareto

if TYPE_CHECKING:
    from visual_ar.evaluation.workload import Options
    from visual_ar.pipeline import VisualARPipeline

PROMPTS = ("strawberry", "cat face", "waving hand", "crescent moon")  # of the bundled model's words
SAMPLING, AMOUNT, SUITE = "Sampling", "How much is measured", "With a suite"

app = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("kernels")(bench_kernels.kernels)
app.command("loop")(bench_kernels.loop)


@app.callback()
def bench(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Bundled name, model folder or Hugging Face id. [dim]Default: emoji.[/dim]",
        ),
    ] = None,
    draft_model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Model of the same tokenizer that drafts for the method hybrid."
        ),
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--methods",
            metavar="NAME[:OPTION=VALUE,...]",
            help="Methods to compare, separated by spaces or repeated; sequential is always "
            "measured. [dim]Default: see above.[/dim]",
        ),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompts",
            "--class",
            "-c",
            help="Prompt or class to draw, repeatable; pictures take them in turn.",
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            help='"pareto" also measures what each method costs in quality; "families" compares '
            "every bundled model, next-token, parallel and both together.",
            rich_help_panel=SUITE,
        ),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="Prepared dataset of the model; repeatable for families, which tells no quality "
            "without. [dim]Default of pareto: data/emoji.[/dim]",
            rich_help_panel=SUITE,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the document and the chart of pareto. [dim]Default: pareto.[/dim]",
            rich_help_panel=SUITE,
        ),
    ] = None,
    asked: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Prompts to measure quality on. [dim]Default: 100.[/dim]",
            rich_help_panel=SUITE,
        ),
    ] = None,
    pictures: Annotated[int, typer.Option(help="Pictures of a round.", rich_help_panel=AMOUNT)] = 4,
    batch: Annotated[
        int | None,
        typer.Option(
            help="Batch size to measure beside 1. [dim]Default: all pictures at once.[/dim]",
            rich_help_panel=AMOUNT,
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Timed rounds.", rich_help_panel=AMOUNT)] = 3,
    warmup: Annotated[
        int,
        typer.Option(
            help="Untimed batches of every method and batch size.", rich_help_panel=AMOUNT
        ),
    ] = 1,
    seed: Annotated[
        int,
        typer.Option(
            min=0, help="Seed of the first picture, the next has the next.", rich_help_panel=AMOUNT
        ),
    ] = 0,
    guidance: Annotated[
        float | None,
        typer.Option(help="Classifier-free guidance, 1 is off.", rich_help_panel=SAMPLING),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="Above 0; 1 is the model's law.", rich_help_panel=SAMPLING),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="0 is all tokens.", rich_help_panel=SAMPLING)
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="In (0, 1]; 1 is all tokens.", rich_help_panel=SAMPLING)
    ] = None,
    plain: Annotated[
        bool,
        typer.Option(
            "--plain",
            help="The model's own law: temperature 1, no top-k, no top-p.",
            rich_help_panel=SAMPLING,
        ),
    ] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure decoding methods side by side on one model, or what a pass is made of.

    Methods take turns, in an order that rotates from round to round, so that a
    noisy machine hurts all alike; speedups are ratios within a round. Without
    [cyan]--methods[/cyan]: sequential, the published Jacobi settings, Jacobi at window 64
    with each coupling, exact-match at window 64, and Jacobi with the window
    that is fastest here.

    [bold]Examples[/bold]

    [cyan]visual-ar bench --model emoji[/cyan]
    Everything at the model's own sampling settings, at batch 1 and 4.

    [cyan]visual-ar bench -m cifar10 --plain --pictures 16 --batch 8[/cyan]
    The model's own law, at batch 1 and 8.

    [cyan]visual-ar bench --suite pareto --data data/emoji --output pareto[/cyan]
    Speed against quality: a table, a JSON document and a chart.

    [cyan]visual-ar bench --suite families --data data/emoji --data data/cifar10[/cyan]
    Every bundled model, with quality.

    [cyan]visual-ar bench --methods "jacobi:window=32,coupling=gumbel exact-match" --json[/cyan]
    Two methods beside sequential decoding, as one JSON document.

    [cyan]visual-ar bench kernels[/cyan] and [cyan]visual-ar bench loop[/cyan]
    The verification of drafts alone, and the parts of a pass.
    """
    if context.invoked_subcommand is not None:
        return
    options = _options(guidance, temperature, top_k, top_p, plain)
    given = {"model": model, "draft_model": draft_model, "methods": methods}
    check_options(suite, data, {**given, "output": output, "asked": asked})
    model, asked = "emoji" if model is None else model, asked or ASKED
    extra = None
    if suite == "pareto":
        extra = Suite((data or [Path("data/emoji")])[0], output or Path("pareto"), asked)
    dataset = None if extra is None else extra.open()
    set_threads(threads)
    from rich.console import Console
    from rich.progress import Progress
    from rich.text import Text

    from visual_ar.assets import bundled
    from visual_ar.cli.drawing import load
    from visual_ar.evaluation.speed import DEFAULT_METHODS, Schedule, bench_pipeline
    from visual_ar.evaluation.speed_table import heading, render

    other = pictures if batch is None else batch
    schedule = Schedule(pictures, tuple(dict.fromkeys((1, other))), rounds, warmup, seed)
    chosen = [spec for given in methods or () for spec in given.split()]
    if suite == "families":
        pipes = {name: load(name, device, dtype) for name in bundled()}
        families(
            pipes,
            data or [],
            lambda pipe: prompts or subjects(pipe),
            options,
            schedule,
            asked,
            as_json,
        )
        return
    pipe = load(model, device, dtype, draft_model)
    named = prompts or subjects(pipe)
    if extra is not None and dataset is not None:
        pareto(extra, dataset, pipe, model, named, chosen, options, schedule, as_json)
        return
    with Progress(console=Console(stderr=True), disable=as_json) as bar:
        task = bar.add_task("drawing")
        document = bench_pipeline(
            pipe,
            model,
            named,
            options,
            chosen or DEFAULT_METHODS,
            schedule,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    if as_json:
        echo_json(document)
    else:
        console = Console()
        console.print(Text(heading(document)))
        console.print(render(document))


def subjects(pipe: "VisualARPipeline") -> list[str]:
    """Returns what to draw when nothing is named: some words, or all classes."""
    return pipe.conditioner.known or list(PROMPTS)


def _options(
    guidance: float | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    plain: bool,
) -> "Options":
    from visual_ar.evaluation.workload import Options

    if not plain:
        return Options(guidance, temperature, top_k, top_p)
    for name, value in (("temperature", temperature), ("top-k", top_k), ("top-p", top_p)):
        if value is not None:
            raise ValueError(f"{name} must be left out with --plain, got {value}")
    return Options(guidance, temperature=1.0, top_k=0, top_p=1.0)
