"""Turns what goes wrong in a handler into a sentence on the page; knows no handler."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import gradio as gr

from visual_ar.user_errors import USER_ERRORS, sentence

_log = logging.getLogger(__name__)


def sentences(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a handler of events, a function or a generator, so that errors are sentences."""
    if inspect.isgeneratorfunction(handler):

        @wraps(handler)
        def generate(*values: Any) -> Iterator[Any]:
            with _told():
                yield from handler(*values)

        return generate

    @wraps(handler)
    def call(*values: Any) -> Any:
        with _told():
            return handler(*values)

    return call


def name_arguments(handler: Callable[..., Any], names: list[str]) -> Callable[..., Any]:
    """Gives the arguments of a handler the names under which clients of the page's API know them.

    Args:
        handler: takes a tuple of arguments.
        names: one an argument, in order.
    """
    kinds = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    handler.__signature__ = inspect.Signature(kinds)  # type: ignore[attr-defined]
    return handler


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except gr.Error:
        raise
    except USER_ERRORS as error:
        raise gr.Error(sentence(error), print_exception=False) from error
    except Exception as error:
        _log.exception("a handler of the page failed")
        kind = type(error).__name__
        text = f"This failed because of {kind}; the log of the server says more."
        raise gr.Error(text, print_exception=False) from error
