"""`visual-ar info`: says what is installed, or how a picture was made; changes nothing."""

from pathlib import Path
from typing import Annotated, Any

import typer

from visual_ar.cli.option_groups import Json
from visual_ar.cli.terminal import echo_json, encoding, say, show_table
from visual_ar.plain_text import plain
from visual_ar.provenance import command, versions


def info(
    subject: Annotated[
        str | None,
        typer.Argument(help="A bundled model, a model folder, or a PNG; without it, everything."),
    ] = None,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Who verifies drafts on every device, and why.")
    ] = False,
    windows: Annotated[
        bool,
        typer.Option("--windows", help="Automatic windows that were measured here, and why each."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Show the bundled models, this machine, or the command that made a picture.

    [bold]Examples[/bold]

    [cyan]visual-ar info[/cyan]
    Models, methods, recipes, versions and devices.

    [cyan]visual-ar info emoji[/cyan]
    Components, sizes, sampling defaults and classes of one model.

    [cyan]visual-ar info strawberry.png[/cyan]
    The command that draws this picture again.

    [cyan]visual-ar info --kernels[/cyan]
    Who verifies drafts on every device, compiling the CUDA kernel if it never was.

    [cyan]visual-ar info --windows[/cyan]
    Which window every method took by itself on this machine.
    """
    if subject is not None and (kernels or windows):
        flag = "--kernels" if kernels else "--windows"
        raise ValueError(f"{flag} shows this machine and takes no subject, got {subject!r}")
    if kernels or windows:
        document: dict[str, Any] = {"kernels": verifiers()} if kernels else {}
        document |= measured_windows() if windows else {}
        if windows and not as_json:
            told = {str(n): _why(one) for n, one in enumerate(document["windows"], 1)}
            document["windows"] = told or "none yet"
    elif subject is None:
        document = everything()
    elif subject.lower().endswith(".png"):
        document = picture(Path(subject))
    else:
        document = model(subject)
    if as_json:
        echo_json(document)
    elif "command" in document:
        say(document["command"])
    else:
        show(document)


def picture(path: Path) -> dict[str, Any]:
    """Returns the recipe of a PNG and the command that follows it."""
    from visual_ar.png import read_recipe

    recipe = read_recipe(path)
    return {"command": command(recipe, encoding()), "recipe": recipe}


def model(name: str) -> dict[str, Any]:
    """Returns what a model folder says about itself, without loading its weights.

    Raises:
        FileNotFoundError: no bundled model and no model folder has this name.
        ValueError: the folder's files are damaged.
    """
    from visual_ar.assets import bundled, local
    from visual_ar.component_files import reading
    from visual_ar.folder_schema import Settings, components, read_index

    known = bundled()
    folder = local(name, known)
    if not (folder / "model_index.json").is_file():
        names = ", ".join(known) or "none"
        raise FileNotFoundError(
            f"model must be bundled ({names}) or a folder with model_index.json, got {name!r}"
        )
    with reading(folder):
        index = read_index(folder)
        parts = {key: value[1] for key, value in components(index).items()}
        described = {key: _component(folder, key, value) for key, value in parts.items()}
    return {
        "name": name,
        "path": str(folder),
        "components": described,
        "settings": {key: value for key, value in index.items() if key in Settings.model_fields},
        "bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
    }


def _component(folder: Path, name: str, kind: str) -> dict[str, Any]:
    """What a component is, and its parameters where its files lie on this machine."""
    from visual_ar import loading
    from visual_ar.component_files import count_parameters
    from visual_ar.hub import Hub

    elsewhere = loading.shared(folder).get(name)
    found: dict[str, Any] = {"class": kind}
    place = folder / name
    if elsewhere is not None:
        found["shared with"] = elsewhere.base
        try:
            place = loading.holder(elsewhere.base, name, Hub(offline=True))
        except OSError:  # the hub was never asked for it
            return found
    return {**found, "parameters": count_parameters(place, loading.component(folder, name))}


def verifiers() -> dict[str, Any]:
    """Returns who verifies drafts on every device, and why.

    Raises:
        ValueError: the environment variable that forces one has an unknown value.
    """
    import torch

    from visual_ar.accel.kernels.dispatch import choose

    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    found = {}
    for device in devices:
        try:
            found[device] = choose(torch.device(device))._asdict()
        except RuntimeError as error:
            found[device] = {"backend": "none", "reason": str(error)}
    return found


def measured_windows() -> dict[str, Any]:
    """Returns the windows that "auto" took on this machine, what for, and how fast each one was."""
    from visual_ar.accel.loop.window_store import read_windows, store_path

    return {"windows": list(read_windows().values()), "kept in": str(store_path())}


def _why(entry: dict[str, Any]) -> str:
    """A measured window in a line."""
    tried = ", ".join(
        f"{window}: {1000 * one['tokens'] / one['milliseconds']:.0f}"
        for window, one in entry["tried"].items()
    )
    sampling = ", ".join(f"{name} {values}" for name, values in entry["sampling"].items())
    return (
        f"window {entry['window']} for {entry['method']}, weights {entry['weights']}, "
        f"{entry['rows']} rows, {sampling}; {entry['device']}, {entry['threads']} threads; "
        f"tokens a second by window {tried}"
    )


def everything() -> dict[str, Any]:
    """Returns the bundled models, methods and recipes, the versions and the devices."""
    import torch

    from visual_ar.accel import METHODS
    from visual_ar.assets import bundled
    from visual_ar.training import bundled as bundled_recipes

    devices = [f"cpu ({torch.get_num_threads()} threads)"]
    for index in range(torch.cuda.device_count()):
        devices.append(f"cuda:{index} ({torch.cuda.get_device_name(index)})")
    if torch.backends.mps.is_available():
        devices.append("mps")
    return {
        "models": {name: str(path) for name, path in bundled().items()},
        "methods": list(METHODS),
        "recipes": list(bundled_recipes()),
        "devices": devices,
        "versions": versions(),
    }


def show(document: dict[str, Any]) -> None:
    """Prints a document as a table, one row an entry; what it says is shown, never obeyed."""
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for key, value in document.items():
        table.add_row(Text(plain(key), style="bold"), Text(_text(value)))
    show_table(table)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(plain(f"{key}  {_inline(entry)}") for key, entry in value.items())
    return plain(_inline(value))


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_inline(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
