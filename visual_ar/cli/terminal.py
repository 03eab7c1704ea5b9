"""What the command prints on: consoles, progress bars and lines of text; knows no command.

Text of files and users passes through `plain`, so that a terminal shows it and obeys none of it.
Piped output is never wrapped; on a narrow terminal long words go on in the next line.
"""

import io
import sys
from typing import TYPE_CHECKING, Any

import typer

from visual_ar.plain_text import plain, plain_json

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress

PIPED_WIDTH = 10_000


def escape_unwritable() -> None:
    """Lets this process write out, as backslash codes, what its terminal's encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def encoding() -> str:
    """The encoding of standard output."""
    return getattr(sys.stdout, "encoding", None) or "utf-8"


def say(text: str, err: bool = False) -> None:
    """Prints lines of ours, with whatever they quote written out; err: on standard error."""
    typer.echo(plain(text, keep="\n"), err=err)


def echo_json(document: dict[str, Any]) -> None:
    """Prints a document for a program to read."""
    typer.echo(plain_json(document, encoding()))


def show_table(table: "RenderableType") -> None:
    """Prints tables of ours; whoever fills them has made foreign text plain."""
    from rich.console import Console

    if sys.stdout.isatty():
        Console(emoji=False, highlight=False).print(table)
        return
    console = Console(emoji=False, highlight=False, width=PIPED_WIDTH)
    with console.capture() as printed:
        console.print(table)
    for line in printed.get().splitlines():
        typer.echo(line.rstrip())


def progress(quiet: bool) -> "Progress":
    """A progress bar on standard error, whose names may be any text."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        Task,
        TaskProgressColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Name(ProgressColumn):
        """What is done, as it is and not as markup."""

        def render(self, task: Task) -> Text:
            return Text(plain(task.description))

    columns = (Name(), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True, emoji=False), disable=quiet)
