"""Decoding methods as a page shows them: their options, a sentence on each, and building one.

Reads the registry and the docstrings, so that a new method appears by being registered. Knows
nothing about pages or pictures.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from visual_ar import accel
from visual_ar.accel.drafts.initialise import INITIALISERS
from visual_ar.accel.kernels.reference import COUPLINGS
from visual_ar.accel.loop.contract import Decoding
from visual_ar.accel.rules.parse import RULES
from visual_ar.cli.method import build
from visual_ar.pipeline import VisualARPipeline

CHOICES = {  # of options that a person picks from a list; others are typed
    "window": ("auto", "2", "4", "8", "16", "32", "64"),
    "coupling": COUPLINGS,
    "init": INITIALISERS,
    "rule": tuple(RULES),
}


@dataclass(frozen=True)
class Option:
    """One option of a method.

    Attributes:
        name: of the constructor's argument.
        about: one sentence.
        default: what the method takes when nothing is said.
    """

    name: str
    about: str
    default: Any

    @property
    def shown(self) -> Any:
        """The default as a control holds it: text, unless it is yes or no."""
        return self.default if isinstance(self.default, bool) else str(self.default)


def options(method: str) -> dict[str, Option]:
    """The options that a method has, by name.

    Args:
        method: command-line name.

    Raises:
        ValueError: no method has this name.
    """
    constructor = accel.method(method)
    told = _arguments(inspect.getdoc(constructor) or "")
    taken = inspect.signature(constructor).parameters.values()
    return {one.name: Option(one.name, told.get(one.name, ""), one.default) for one in taken}


def every_option() -> dict[str, Option]:
    """The options of all methods, by name, each as the first method that has it tells it."""
    found: dict[str, Option] = {}
    for name in accel.METHODS:
        found = {**options(name), **found}
    return {name: found[name] for name in sorted(found, key=_place)}


def about(method: str) -> str:
    """A sentence on what a method does.

    Raises:
        ValueError: no method has this name.
    """
    return _sentence((inspect.getdoc(accel.method(method)) or "").partition("\n\n")[0])


def make(method: str, values: Mapping[str, Any], shipped: Decoding) -> Decoding:
    """Builds a method from what controls hold.

    Args:
        method: command-line name.
        values: by option; those that the method does not have are left out, and empty ones have
            its default.
        shipped: the model's own method, whose settings hold where nothing is said.

    Raises:
        ValueError: unknown name, or a value that the method refuses.
    """
    taken = options(method)
    given = {name: _parse(value) for name, value in values.items() if name in taken}
    return build(method, given, shipped)


def with_method(pipe: VisualARPipeline, method: Decoding) -> VisualARPipeline:
    """A pipeline of the same components that decodes with another method; shares the weights."""
    parts = {**pipe.components, "scheduler": method}
    named = inspect.signature(VisualARPipeline).parameters
    rest = {name: pipe.config[name] for name in named if name not in parts}
    return VisualARPipeline(**parts, **rest)


def verdict(method: Decoding, pipe: VisualARPipeline) -> str:
    """Says whether a method keeps the law of a pipeline's model.

    Raises:
        ValueError: it cannot serve the model, its decode order or its tokenizer.
    """
    layout = pipe.model.layout(pipe.image_tokenizer.grid(pipe.size))
    method.check(pipe.cast(layout))
    if method.lossless:
        return "lossless=True: pictures follow the model's own law."
    return "lossless=False: pictures no longer follow the model's law exactly."


def _place(name: str) -> tuple[int, str]:
    names = list(CHOICES)
    return (names.index(name) if name in names else len(names), name)


def _parse(value: Any) -> Any:
    """What a text stands for: a number if it reads like one, nothing if it is empty."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text or None


def _arguments(docstring: str) -> dict[str, str]:
    """The first sentence on every argument of a Google-style docstring."""
    _, _, rest = docstring.partition("Args:\n")
    block = rest.partition("\n\n")[0]
    entries = re.split(r"\n?^    (\w+): ", block, flags=re.MULTILINE)[1:]
    pairs = zip(entries[::2], entries[1::2], strict=True)
    return {name: _sentence(text) for name, text in pairs}


def _sentence(text: str) -> str:
    """The first sentence of a text, on one line, beginning with a capital letter."""
    line = " ".join(text.split()).replace("`", "")
    first = re.split(r"(?<=[.;:]) (?=[\"A-Za-z])", line)[0].rstrip(".;:")
    return f"{first[:1].upper()}{first[1:]}."
