"""The options of decoding methods, from their constructors: the one reading of text into values.

The command line, the page, benches and recipes all ask here, so that a method's name and options
mean the same everywhere, and a method appears everywhere by being registered. Knows the registry
`visual_ar.accel`, signatures and docstrings; knows nothing about any one method, and loads no
method before it is asked about one.

A method that is named has its own defaults. The settings that a model ships with hold when no
method is named, and when the one named is of the very class that the model ships with.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from visual_ar import accel
from visual_ar.plain_numbers import plain, shown

if TYPE_CHECKING:
    from visual_ar.accel.loop.contract import Decoding

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
"""What an option may hold, and how that is called. A text is tried as each of them, in order."""
_FLAGS = {"true": True, "false": False}


@dataclass(frozen=True)
class Option:
    """One option of a method.

    Attributes:
        name: of the constructor's argument.
        about: one sentence.
        default: what the method takes when nothing is said.
        kinds: types that a value may have, as annotated.
        choices: values that a person may pick, as text; others may be typed.
    """

    name: str
    about: str
    default: Any
    kinds: tuple[type, ...]
    choices: tuple[str, ...] = ()

    @property
    def is_flag(self) -> bool:
        """Whether it is yes or no."""
        return self.kinds == (bool,)

    def read(self, value: Any) -> Any:
        """The value that a text stands for, or the value itself where it is one already.

        Raises:
            ValueError: the option cannot hold it; what the method makes of it is left to the
                method.
        """
        if isinstance(value, str):
            return self._of_text(value.strip())
        value = plain(value)
        # A bool is an int to Python, but nobody means the number by it.
        if type(value) in self.kinds or (type(value) is int and float in self.kinds):
            return value
        raise self._refusal(value)

    def shown(self, value: Any) -> Any:
        """A value as a control holds it: text, unless it is yes or no."""
        return value if self.is_flag else str(value)

    def _of_text(self, text: str) -> Any:
        for kind in _KINDS:
            if kind not in self.kinds:
                continue
            if kind is bool:
                if text in _FLAGS:
                    return _FLAGS[text]
                continue
            try:
                return kind(text)
            except ValueError:
                continue
        raise self._refusal(text)

    def _refusal(self, value: Any) -> ValueError:
        rule = " or ".join(_KINDS[kind] for kind in _KINDS if kind in self.kinds)
        return ValueError(f"{self.name} must be {rule}, got {shown(value)}")


def options(method: str) -> dict[str, Option]:
    """The options that a method has, by name.

    Raises:
        ValueError: no method has this name.
    """
    return _options(accel.method(method))


def every_option() -> dict[str, Option]:
    """The options of all methods by name, each as the first method that has it tells it."""
    found: dict[str, Option] = {}
    for method in accel.METHODS:
        found = {**found, **{k: v for k, v in options(method).items() if k not in found}}
    return found


def takers(option: str) -> list[str]:
    """The names of the methods that have an option."""
    return [method for method in accel.METHODS if option in options(method)]


def about(method: str) -> str:
    """A sentence on what a method does.

    Raises:
        ValueError: no method has this name.
    """
    return _sentence((inspect.getdoc(accel.method(method)) or "").partition("\n\n")[0])


def build(name: str | None, given: Mapping[str, Any], shipped: Decoding | None = None) -> Decoding:
    """Builds a method.

    Args:
        name: of `visual_ar.accel.METHODS`; None is the model's own.
        given: options as text or as values; None is left out.
        shipped: the model's own method. Its settings hold where nothing is given when no method is
            named or the named one is of its class, see the module's docstring.

    Raises:
        ValueError: unknown name, an option that the method does not have, or a value it refuses.
    """
    if name is None:
        if shipped is None:
            raise ValueError(f"method must be one of {', '.join(accel.METHODS)}, got none")
        constructor: Callable[..., Decoding] = type(shipped)
    else:
        constructor = accel.method(name)
    taken = _options(constructor)
    values = {}
    for key, value in given.items():
        if value is None:
            continue
        if key not in taken:
            what = f"be left out with method {name or constructor.__name__}"
            raise ValueError(f"{key} must {what}, got {value}")
        values[key] = taken[key].read(value)
    if shipped is not None and constructor is type(shipped):
        values = {**{k: v for k, v in _settings(shipped).items() if k in taken}, **values}
    return constructor(**values)


def parse_method(text: str, shipped: Decoding | None = None) -> Decoding:
    """Builds a method from a text such as "jacobi:window=64,coupling=gumbel,rule=omega/omega=1.2".

    Args:
        text: a name of `visual_ar.accel.METHODS`, then a colon and options if any.
        shipped: see `build`.

    Raises:
        ValueError: as `build`.
    """
    name, _, rest = text.partition(":")
    given: dict[str, str] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"options of a method must read name=value, got {part!r} in {text!r}")
        given[key] = value
    return build(name, given, shipped)


def name_of(method: Decoding) -> str | None:
    """The name of a method's class, or None when it is not registered."""
    classes = {home.partition(":")[2]: name for name, home in accel.METHODS.items()}
    return classes.get(type(method).__name__)


def entries(method: Decoding) -> dict[str, Any]:
    """A method as entries of a recipe: its name and every option."""
    return {"method": name_of(method), **_settings(method)}


def from_entries(recipe: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name and the options of the method that a recipe tells; those it leaves out are default.

    Args:
        recipe: as `entries` gives it, among others; from anyone, so nothing is trusted.

    Raises:
        ValueError: no such method, or a value that an option cannot hold.
    """
    name = recipe.get("method")
    if not isinstance(name, str):
        raise ValueError(f"method must be one of {', '.join(accel.METHODS)}, got {name!r}")
    given = {one: recipe.get(one.name) for one in options(name).values()}
    return name, {
        one.name: one.default if value is None else one.read(value) for one, value in given.items()
    }


def _options(constructor: Callable[..., Any]) -> dict[str, Option]:
    told = _arguments(inspect.getdoc(constructor) or "")
    choices = getattr(constructor, "choices", {})
    return {
        one.name: Option(
            one.name,
            told.get(one.name, ""),
            one.default,
            _kinds(one.annotation),
            tuple(choices.get(one.name, ())),
        )
        for one in inspect.signature(constructor, eval_str=True).parameters.values()
    }


def _kinds(annotation: Any) -> tuple[type, ...]:
    """The types of an annotation that an option can hold; text where it says none."""
    union = get_origin(annotation) in (Union, UnionType)
    kinds = tuple(k for k in (get_args(annotation) if union else (annotation,)) if k in _KINDS)
    return kinds or (str,)


def _settings(method: Decoding) -> dict[str, Any]:
    return {key: value for key, value in method.config.items() if not key.startswith("_")}


def _arguments(docstring: str) -> dict[str, str]:
    """The first sentence on every argument of a Google-style docstring."""
    _, _, rest = docstring.partition("Args:\n")
    block = rest.partition("\n\n")[0]
    pairs = re.split(r"\n?^    (\w+): ", block, flags=re.MULTILINE)[1:]
    return {name: _sentence(text) for name, text in zip(pairs[::2], pairs[1::2], strict=True)}


def _sentence(text: str) -> str:
    """The first sentence of a text, on one line, beginning with a capital letter."""
    line = " ".join(text.split()).replace("`", "")
    first = re.split(r"(?<=[.;:]) (?=[\"A-Za-z])", line)[0].rstrip(".;:")
    return f"{first[:1].upper()}{first[1:]}."
