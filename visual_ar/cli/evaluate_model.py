"""`visual-ar evaluate sample` and `speed`: what a pipeline draws and how fast; measures nothing."""

from pathlib import Path
from typing import Annotated

import typer

from visual_ar.cli import ending as result
from visual_ar.cli.common import check_output_folder, set_threads
from visual_ar.cli.option_groups import Amount, Json, Machine, Model, Sampling, Spec, grouped
from visual_ar.cli.terminal import progress
from visual_ar.method_options import parse_method


@grouped
def sample(
    ctx: typer.Context,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pictures.")],
    model: Model = "emoji",
    count: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=10_000_000,
            help="Pictures. [dim]Default: one a prompt, 50000 of classes.[/dim]",
            show_default=False,
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Text file, one prompt or class a line; only models of classes do without, and "
            "then draw all of them."
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**62, help="Of the first picture; the next has the next.")
    ] = 0,
    method: Spec = None,
    slots: Annotated[int, typer.Option(min=1, max=4096, help="Pictures drawn at a time.")] = 8,
    sampling: Sampling,
    machine: Machine,
    as_json: Json = False,
) -> None:
    """Draw the pictures that an evaluation needs: a folder of PNGs and samples.npz.

    Killed or interrupted, the same command goes on where it was, and ends with
    the pictures that it would have drawn without. Pictures take the prompts or
    the classes in turn, so a multiple of their number is exactly balanced.

    [bold]Examples[/bold]

    [cyan]visual-ar evaluate sample -m cifar10 --count 10000 -o runs/cifar10[/cyan]

    [cyan]visual-ar evaluate sample -m emoji --prompts names.txt -o runs/emoji[/cyan]
    """
    from visual_ar.cli.drawing import load
    from visual_ar.evaluation.sample import sample as draw

    set_threads(machine.threads)
    check_output_folder(output)
    subjects = None if prompts is None else read_prompts(prompts)
    pipe = load(model, machine.device, machine.dtype)
    if subjects is None and not pipe.conditioner.known:
        raise ValueError(
            f"prompts must be given by --prompts for the text-conditional model {model}, got none"
        )
    if method is not None:
        pipe.scheduler = parse_method(method, pipe.scheduler)
    wanted = count or (50_000 if subjects is None else len(subjects))
    with progress(as_json) as bar:
        report = result.named(bar)
        document = draw(
            pipe,
            model,
            output,
            wanted,
            subjects,
            seed,
            sampling.options(),
            slots,
            lambda done, total: report("pictures", done, total),
        )
    result.finish(ctx, document, output / "result.json", as_json)


@grouped
def speed(
    ctx: typer.Context,
    *,
    model: Model = "emoji",
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:OPTION=VALUE,...] ...",
            help="Methods, separated by spaces; sequential is always measured.",
        ),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file, one prompt or class a line.")
    ] = None,
    amount: Amount,
    sampling: Sampling,
    output: result.Output = None,
    machine: Machine,
    as_json: Json = False,
) -> None:
    """Measure decoding methods as [cyan]visual-ar bench[/cyan] does, as a result to keep.

    [bold]Example[/bold]

    [cyan]visual-ar evaluate speed -m emoji --methods "jacobi:window=16" -o speed.json[/cyan]
    """
    from visual_ar.cli.drawing import load
    from visual_ar.evaluation.speed import DEFAULT_METHODS
    from visual_ar.evaluation.speed_result import speed as measure
    from visual_ar.evaluation.workload import usual_subjects

    set_threads(machine.threads)
    result.check(output)
    schedule = amount.schedule()
    schedule.check()
    asked = None if prompts is None else read_prompts(prompts)
    pipe = load(model, machine.device, machine.dtype)
    with progress(as_json) as bar:
        report = result.named(bar)
        document = measure(
            pipe,
            model,
            asked or usual_subjects(pipe),
            sampling.options(),
            DEFAULT_METHODS if methods is None else methods.split(),
            schedule,
            lambda done, total: report("drawing", done, total),
        )
    result.finish(ctx, document, output, as_json)


def read_prompts(path: Path) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds none, or is no text, see `read_text`.
    """
    from visual_ar.text_file import read_lines

    prompts = read_lines(path)
    if not prompts:
        raise ValueError(f"prompts must hold a prompt a line, got none in {str(path)!r}")
    return prompts
