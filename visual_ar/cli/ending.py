"""How the evaluating commands end: the command goes into the result, which is written and shown."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visual_ar.cli.common import check_output_file
from visual_ar.cli.terminal import echo_json, say

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress

ARGUMENTS = "visual_ar.arguments"  # what was typed after `visual-ar`, in the context's meta

Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="JSON file for the result.", show_default=False),
]
AllowSmall = Annotated[
    bool, typer.Option("--allow-small", help="Accept few; the result then says how few.")
]


def check(output: Path | None) -> None:
    """Makes sure, before any work, that the result can be written.

    Raises:
        ValueError: the name does not end in .json.
        OSError: it cannot be written.
    """
    if output is not None:
        check_output_file(output, ".json")


def finish(ctx: typer.Context, result: dict[str, Any], output: Path | None, as_json: bool) -> None:
    """Adds the command to a result, writes it, and shows it to a program or to a person.

    A person is also told what was passed over in the folders; a program finds it in the result.
    """
    from visual_ar.evaluation.result import write_result

    whole = {"command": command(ctx), **result}
    if output is not None:
        write_result(whole, output)
    if as_json:
        echo_json(whole)
        return
    from visual_ar.cli.info import show
    from visual_ar.folder import tell

    for given in whole["inputs"].values():
        if isinstance(given, dict) and given.get("passed_over"):
            say(f"{given['path']}: passed over {tell(given['passed_over'])}", err=True)
    show({"evaluation": whole["evaluation"], **whole["results"]})


def command(ctx: typer.Context) -> str:
    """What was typed, for a shell."""
    return shlex.join(["visual-ar", *ctx.meta[ARGUMENTS]])


def named(bar: "Progress") -> "Callable[[str, int, int], None]":
    """Reports (what, done, total) to a bar, one line for each `what`."""
    tasks: dict[str, Any] = {}

    def show(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(what)
        bar.update(tasks[what], completed=done, total=total)

    return show
