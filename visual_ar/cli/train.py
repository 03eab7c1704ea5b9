"""`visual-ar train`: runs a training recipe, or all of them; knows nothing about training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from visual_ar.cli.common import check_output_folder, resolve_device, set_threads
from visual_ar.cli.option_groups import Device, Json, Threads, grouped
from visual_ar.cli.terminal import echo_json, say


@dataclass(frozen=True)
class Plan:
    """Several models in a few minutes."""

    minutes: Annotated[
        float | None,
        typer.Option(
            max=100_000,
            help="With all: trains what a GPU improves most in so many minutes in all.",
        ),
    ] = None
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="RECIPE", help="With --minutes: only this recipe; repeatable."),
    ] = None
    pack: Annotated[
        Path | None,
        typer.Option(
            help="With --minutes: folder that gets each model in 8 bits at every checkpoint. "
            "[dim]Default: packed/ in the output.[/dim]"
        ),
    ] = None


@grouped
def train(
    *,
    recipe: Annotated[
        str, typer.Argument(help="Name of a bundled recipe, path of a TOML file, or all.")
    ],
    data: Annotated[
        Path,
        typer.Option(
            help="Prepared dataset (a folder or a pack); for all, the folder that holds emoji/ "
            "and cifar10/."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder of the run; for all, one folder a recipe."),
    ],
    plan: Plan,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Train a tokenizer, a generator, a draft head or a denoiser from a recipe.

    A run writes checkpoints, a CSV log and sample sheets into its folder, and at
    the end a model folder. After Ctrl-C the same command goes on from the last
    checkpoint. [cyan]visual-ar info[/cyan] lists the bundled recipes. The
    perceptual loss needs [cyan]pip install "visual-ar\\[train]"[/cyan].

    [bold]Examples[/bold]

    [cyan]visual-ar train emoji_tokenizer --data data/emoji --output runs/tokenizer[/cyan]
    One recipe.

    [cyan]visual-ar train all --data data --output runs --device cuda[/cyan]
    Every bundled model in order; finished ones are passed over.

    [cyan]visual-ar train all --data data --output runs --device cuda --minutes 8[/cyan]
    The emoji models in eight minutes; what is cut off keeps its last checkpoint.
    """
    _check(plan, recipe)
    check_output_folder(output)
    if not data.exists():
        raise FileNotFoundError(
            f"data must be a prepared dataset, got {str(data)!r}; see visual-ar data --help"
        )
    set_threads(threads)
    place = str(resolve_device(device))
    from visual_ar.training import run, run_all, run_for
    from visual_ar.training.memory import keep_freed_memory

    if place == "cpu":
        keep_freed_memory()
    logs = output / "*" / "log.csv" if recipe == "all" else output / "log.csv"
    say(f"Training {recipe} on {place}; follow it in {logs}", err=True)
    metrics: dict[str, Any] = {}
    if plan.minutes is not None:
        trained = run_for(plan.minutes, data, output, place, plan.only or (), plan.pack)
        metrics = {"trained": trained}
        folder = plan.pack or output / "packed"
        say(f"Packed in {folder}: {', '.join(trained) or 'nothing'}", err=True)
    elif recipe == "all":
        run_all(data, output, place)
    else:
        metrics = run(recipe, data, output, place)
    if as_json:
        echo_json({"recipe": recipe, "output": str(output), "metrics": metrics})
    else:
        quality = ", ".join(f"{name} {value}" for name, value in metrics.get("quality", {}).items())
        say(f"{recipe}: {output} {quality}".rstrip())
        if metrics.get("speed"):
            say(_speed(metrics["speed"]), err=True)


def _check(plan: Plan, recipe: str) -> None:
    """Raises ValueError for options of a plan without one, or a plan that cannot be kept."""
    if plan.minutes is None:
        for name, value in (("only", plan.only), ("pack", plan.pack)):
            if value:
                raise ValueError(f"{name} must be left out without --minutes, got {value}")
        return
    if recipe != "all":
        raise ValueError(
            f"minutes must be left out for a recipe, which has its own, got {plan.minutes:g}"
        )
    from visual_ar.training.plan import check_minutes, chosen

    check_minutes(plan.minutes, chosen(plan.only or ()))
    if plan.pack is not None:
        check_output_folder(plan.pack)


def _speed(measured: dict[str, float]) -> str:
    """How fast a run was, in words."""
    return (
        f"{measured['pictures_a_second']:.3g} pictures a second; products and attention reached "
        f"{measured['share_of_matrix_rate']:.0%} of this machine's matrix rate"
    )
