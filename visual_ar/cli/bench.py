"""`visual-ar bench`: compares decoding methods; knows the report's options, measures nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from visual_ar.cli import bench_kernels
from visual_ar.cli.common import set_threads
from visual_ar.cli.option_groups import SAMPLING, Amount, Json, Machine, Retune, Sampling, grouped
from visual_ar.cli.suites import ASKED, Suite, check_options, families, pareto
from visual_ar.cli.terminal import echo_json, progress, say, show_table

if TYPE_CHECKING:
    from visual_ar.evaluation.speed import Schedule
    from visual_ar.evaluation.workload import Options
    from visual_ar.pipeline import VisualARPipeline

SUITE = "With a suite"

app = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("kernels")(bench_kernels.kernels)
app.command("loop")(bench_kernels.loop)


@dataclass(frozen=True)
class Compared:
    """What is measured."""

    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Bundled name, model folder or Hugging Face id. [dim]Default: emoji.[/dim]",
        ),
    ] = None
    draft_model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Model of the same tokenizer that drafts for the method hybrid."
        ),
    ] = None
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--methods",
            metavar="NAME[:OPTION=VALUE,...]",
            help="Methods to compare, separated by spaces or repeated; sequential is always "
            "measured. One that is named has its own defaults. [dim]Default: see above.[/dim]",
        ),
    ] = None
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompts",
            "--class",
            "-c",
            help="Prompt or class to draw, repeatable; pictures take them in turn.",
        ),
    ] = None
    retune: Retune = False

    def specs(self) -> list[str]:
        """The methods, one an entry."""
        return [spec for given in self.methods or () for spec in given.split()]


@dataclass(frozen=True)
class SuiteAsked:
    """What a suite is told."""

    suite: Annotated[
        str | None,
        typer.Option(
            help='"pareto" also measures what each method costs in quality; "families" compares '
            "every bundled model, next-token, parallel and both together.",
            rich_help_panel=SUITE,
        ),
    ] = None
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="Prepared dataset of the model; repeatable for families, which tells no quality "
            "without. [dim]Default of pareto: data/emoji.[/dim]",
            rich_help_panel=SUITE,
        ),
    ] = None
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the document and the chart of pareto. [dim]Default: pareto.[/dim]",
            rich_help_panel=SUITE,
        ),
    ] = None
    asked: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=1_000_000,
            help="Prompts to measure quality on. [dim]Default: 100.[/dim]",
            rich_help_panel=SUITE,
        ),
    ] = None

    def pareto(self) -> Suite:
        """The suite of that name."""
        data = (self.data or [Path("data/emoji")])[0]
        return Suite(data, self.output or Path("pareto"), self.asked or ASKED)


@app.callback()
@grouped
def bench(
    context: typer.Context,
    *,
    compared: Compared,
    suite: SuiteAsked,
    amount: Amount,
    sampling: Sampling,
    plain: Annotated[
        bool,
        typer.Option(
            "--plain",
            help="The model's own law: temperature 1, no top-k, no top-p.",
            rich_help_panel=SAMPLING,
        ),
    ] = False,
    machine: Machine,
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
        _refuse_options_before(context)
        return
    options = _options(sampling, plain)
    rest = {name: getattr(compared, name) for name in ("model", "draft_model", "methods")}
    check_options(suite.suite, suite.data, {**rest, "output": suite.output, "asked": suite.asked})
    opened = suite.pareto().open() if suite.suite == "pareto" else None
    set_threads(machine.threads)
    schedule = amount.schedule()
    if suite.suite == "families":
        _families(compared, suite, machine, options, schedule, as_json)
        return
    from visual_ar.cli.drawing import load
    from visual_ar.evaluation.workload import usual_subjects

    name = compared.model or "emoji"
    pipe = load(name, machine.device, machine.dtype, compared.draft_model, compared.retune)
    named, specs = compared.prompts or usual_subjects(pipe), compared.specs()
    if opened is None:
        _speed(pipe, name, named, specs, options, schedule, as_json)
    else:
        pareto(suite.pareto(), opened, pipe, name, named, specs, options, schedule, as_json)


def _refuse_options_before(context: typer.Context) -> None:
    """What stands before `kernels` or `loop` would be ignored.

    Raises:
        ValueError: an option stands there.
    """
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE":
            raise ValueError(
                f"{parameter.opts[0]} must be left out with bench {context.invoked_subcommand}, "
                "whose own options stand behind it"
            )


def _families(
    compared: Compared,
    suite: SuiteAsked,
    machine: Machine,
    options: "Options",
    schedule: "Schedule",
    as_json: bool,
) -> None:
    """Measures every bundled model."""
    from visual_ar.assets import bundled
    from visual_ar.cli.drawing import load
    from visual_ar.evaluation.workload import usual_subjects

    again = compared.retune
    families(
        {name: load(name, machine.device, machine.dtype, None, again) for name in bundled()},
        suite.data or [],
        lambda pipe: compared.prompts or usual_subjects(pipe),
        options,
        schedule,
        suite.asked or ASKED,
        as_json,
    )


def _speed(
    pipe: "VisualARPipeline",
    name: str,
    subjects: Sequence[str],
    specs: Sequence[str],
    options: "Options",
    schedule: "Schedule",
    as_json: bool,
) -> None:
    """Measures methods on one model, and prints the table or the document."""
    from visual_ar.evaluation.speed import DEFAULT_METHODS, bench_pipeline
    from visual_ar.evaluation.speed_table import heading, render

    with progress(as_json) as bar:
        task = bar.add_task("drawing")
        document = bench_pipeline(
            pipe,
            name,
            subjects,
            options,
            specs or DEFAULT_METHODS,
            schedule,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    if as_json:
        echo_json(document)
        return
    say(heading(document))
    show_table(render(document))


def _options(sampling: Sampling, plain: bool) -> "Options":
    if not plain:
        return sampling.options()
    for name in ("temperature", "top_k", "top_p"):
        value = getattr(sampling, name)
        if value is not None:
            raise ValueError(f"{name.replace('_', '-')} must be left out with --plain, got {value}")
    return replace(sampling, temperature=1.0, top_k=0, top_p=1.0).options()
