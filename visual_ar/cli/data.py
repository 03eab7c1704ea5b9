"""`visual-ar data`: prepares a dataset; knows how to report it, not what is in it."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from visual_ar.cli.common import check_output_folder
from visual_ar.cli.option_groups import Json
from visual_ar.cli.terminal import echo_json, progress, say


def data(
    name: Annotated[Literal["emoji", "cifar10"], typer.Argument(help="The dataset.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    pack: Annotated[
        bool,
        typer.Option("--pack", help="Also write one small file that a GPU machine can train from."),
    ] = False,
    source: Annotated[
        Literal["npm", "torchvision"],
        typer.Option(help="Where to download from; torchvision has cifar10 only."),
    ] = "npm",
    as_json: Json = False,
) -> None:
    """Prepare a dataset for training: download, check counts and hashes, write.

    What is already there and intact is kept, so after an interruption simply
    run it again. The source npm needs Node.js's npm client.

    [bold]Examples[/bold]

    [cyan]visual-ar data emoji --output data/emoji[/cyan]
    3,786 Noto emoji, 64x64, with names, skin tones and splits.

    [cyan]visual-ar data cifar10 --output data/cifar10 --pack[/cyan]
    All 60,000 CIFAR-10 pictures, 32x32, and a pack of 33 MB.
    """
    check_output_folder(output)
    from rich.progress import TaskID

    from visual_ar.data import prepare

    tasks: dict[str, TaskID] = {}
    with progress(as_json) as bar:

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage)
            bar.update(tasks[stage], completed=done, total=total)

        path = prepare(name, output, pack, source, show)
    if as_json:
        echo_json({"name": name, "path": str(path), "bytes": size(path)})
    else:
        say(f"{name}: {path} ({size(path) / 1e6:.1f} MB)")


def size(path: Path) -> int:
    """Returns the bytes of a file, or of all files of a folder."""
    from visual_ar.folder import list_files

    files = list_files(path).files if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)
