"""`visual-ar train`: runs a training recipe, or all of them; knows nothing about training."""

from pathlib import Path
from typing import Annotated

import typer

from visual_ar.cli.common import check_output_folder, resolve_device, set_threads
from visual_ar.cli.option_groups import Device, Json, Threads
from visual_ar.cli.terminal import echo_json, say


def train(
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
    """
    check_output_folder(output)
    if not data.exists():
        raise FileNotFoundError(
            f"data must be a prepared dataset, got {str(data)!r}; see visual-ar data --help"
        )
    set_threads(threads)
    place = str(resolve_device(device))
    from visual_ar.training import run, run_all
    from visual_ar.training.memory import keep_freed_memory

    if place == "cpu":
        keep_freed_memory()
    logs = output / "*" / "log.csv" if recipe == "all" else output / "log.csv"
    say(f"Training {recipe} on {place}; follow it in {logs}", err=True)
    if recipe == "all":
        run_all(data, output, place)
        metrics = {}
    else:
        metrics = run(recipe, data, output, place)
    if as_json:
        echo_json({"recipe": recipe, "output": str(output), "metrics": metrics})
    else:
        quality = ", ".join(f"{name} {value}" for name, value in metrics.get("quality", {}).items())
        say(f"{recipe}: {output} {quality}".rstrip())
        if metrics.get("speed"):
            say(_speed(metrics["speed"]), err=True)


def _speed(measured: dict[str, float]) -> str:
    """How fast a run was, in words."""
    return (
        f"{measured['pictures_a_second']:.3g} pictures a second; products and attention reached "
        f"{measured['share_of_matrix_rate']:.0%} of this machine's matrix rate"
    )
