"""The options of decoding methods as options of a command, found when the command runs.

They come from the methods' constructors, which must be loaded for it, so `visual-ar --help` must
not ask. Knows `method_options` and typer; knows no method.
"""

import inspect
from functools import cache
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand

from visual_ar import accel
from visual_ar.cli.help_text import literal
from visual_ar.cli.lean_imports import import_pipeline
from visual_ar.cli.option_groups import METHOD

ASKED = "visual_ar.method"  # in the context's meta: name of an option -> what was typed
_PLACE = "draft_model"
"""Before the option of this name the help lists those of the methods."""


class MethodAsked(NamedTuple):
    """What a user wants of the decoding method.

    Attributes:
        name: of the method, None for the model's own.
        options: that were given, as typed.
    """

    name: str | None
    options: dict[str, Any]


class MethodCommand(TyperCommand):
    """A command with `--method` and the options of all methods; it asks `method_asked` for them."""

    def get_params(self, ctx: Any) -> list[Any]:
        """See `click.Command.get_params`."""
        own = super().get_params(ctx)
        at = next((i for i, one in enumerate(own) if one.name == _PLACE), len(own))
        return [*own[:at], *_flags(tuple(accel.METHODS)), *own[at:]]


def method_asked(context: typer.Context) -> MethodAsked:
    """What was typed after a `MethodCommand`."""
    options = {k: v for k, v in context.meta.get(ASKED, {}).items() if v is not None}
    return MethodAsked(options.pop("method", None), options)


def _remember(context: typer.Context, parameter: typer.CallbackParam, value: Any) -> Any:
    context.meta.setdefault(ASKED, {})[parameter.name] = value
    return value


@cache
def _flags(methods: tuple[str, ...]) -> list[Any]:
    """The options, made by typer of a function that nobody calls. methods: for the cache."""
    import_pipeline()  # loading the methods would bring it whole
    from visual_ar import method_options

    def nobody() -> None: ...

    found = {"method": _method()}
    for option in method_options.every_option().values():
        found[option.name] = _flag(option)
    keyword = inspect.Parameter.KEYWORD_ONLY
    nobody.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(k, keyword, annotation=v, default=None) for k, v in found.items()]
    )
    nobody.__annotations__ = found
    app = typer.Typer(add_completion=False, rich_markup_mode="rich")
    app.command()(nobody)
    return list(typer.main.get_command(app).params)


def _method() -> Any:
    told = (
        f"{', '.join(accel.METHODS)}. One that is named has its own defaults. "
        "[dim]Default: the model's own, with the model's settings.[/dim]"
    )
    return _option(str, told, metavar="NAME")


def _flag(option: Any) -> Any:
    from rich.markup import escape

    from visual_ar import method_options

    methods = method_options.takers(option.name)
    told = f"{option.about.rstrip('.')} ({', '.join(methods)})."
    if option.is_flag:
        return _option(bool, escape(told))
    if int in option.kinds:
        words = [choice for choice in option.choices if not choice.isdecimal()]
        return _option(str, escape(told), metavar="|".join([*words, "N"]))
    every = [method_options.options(method)[option.name].choices for method in methods]
    choices = list(dict.fromkeys(choice for some in every for choice in some))
    if choices:
        told = f"{told} Such as {', '.join(choices)}."
    return _option(str, escape(told))


def _option(kind: Any, told: str, metavar: str | None = None) -> Any:
    option = typer.Option(
        help=literal(told),
        metavar=metavar,
        rich_help_panel=METHOD,
        callback=_remember,
        expose_value=False,
        show_default=False,
    )
    return Annotated[kind | None, option]
