"""The command `visual-ar`: joins the commands and turns errors into a sentence; knows no model."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from visual_ar.cli import bench, convert, data, demo, evaluate, generate, info, serve, train
from visual_ar.cli.ending import ARGUMENTS
from visual_ar.cli.help_text import keep_colons
from visual_ar.cli.method_flags import MethodCommand
from visual_ar.cli.terminal import escape_unwritable, say
from visual_ar.plain_text import plain
from visual_ar.user_errors import USER_ERRORS, sentence

UsageError: Any = typer.BadParameter.__base__  # typer keeps its click to itself
INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended


@contextmanager
def _plain_messages() -> Iterator[None]:
    """What typer says of a wrong option or argument quotes it, and no terminal may obey that."""
    try:
        yield
    except UsageError as error:
        error.message = plain(error.message, keep="\n")
        raise


class Commands(TyperGroup):
    """Ends every expected error in one sentence on stderr and a non-zero exit code."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        keep_colons(self)

    def make_context(self, *args: Any, **options: Any) -> Any:
        with _plain_messages():
            return super().make_context(*args, **options)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--debug" in args:  # accepted after the command as well
            args = ["--debug", *(argument for argument in args if argument != "--debug")]
        ctx.meta[ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            with _plain_messages():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("Interrupted.", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            raise  # the reader of our output left; typer ends quietly
        except USER_ERRORS as error:
            if ctx.params["debug"]:
                say(traceback.format_exc(), err=True)
            say(f"Error: {sentence(error)}", err=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("generate", cls=MethodCommand, no_args_is_help=True)(generate.generate)
app.command("demo")(demo.demo)
app.command("serve", cls=MethodCommand)(serve.serve)
app.add_typer(bench.app, name="bench")
app.add_typer(evaluate.app, name="evaluate")
app.command("train", no_args_is_help=True)(train.train)
app.command("data", no_args_is_help=True)(data.data)
app.command("convert", no_args_is_help=True)(convert.convert)
app.command("info")(info.info)


def show_version(wanted: bool) -> None:
    """Prints the version and ends, when asked for it."""
    if wanted:
        from visual_ar import __version__

        typer.echo(f"visual-ar {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback when something goes wrong.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=show_version, is_eager=True),
    ] = False,
) -> None:
    """Draw pictures with visual autoregressive models, in fewer passes.

    [bold]First picture:[/bold] visual-ar generate "strawberry" --output strawberry.png
    """


def main() -> None:
    """Runs the command line of this process."""
    escape_unwritable()
    try:
        app()
    except KeyboardInterrupt:  # before a command had started
        sys.exit(INTERRUPTED)
