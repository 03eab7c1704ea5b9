"""Reads recipes from TOML files into their dataclasses; knows nothing about models or data."""

from __future__ import annotations

import dataclasses
import json
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from visual_ar.text_file import read_text
from visual_ar.training.recipe import KINDS, Recipe

T = TypeVar("T")


def bundled() -> dict[str, Path]:
    """The recipes of this package by name, in the order in which they have to be trained."""
    order = (
        "emoji_tokenizer",
        "cifar10_tokenizer",
        "emoji_binary_tokenizer",
        "emoji_binary_decoder",
        "emoji_wide_tokenizer",
        "emoji",
        "cifar10",
        "emoji_draft",
        "emoji_denoising",
        "emoji_nar",
        "cifar10_nar",
        "emoji_binary",
        "emoji_binary_subcodes",
        "emoji_wide",
        "emoji_wide_subcodes",
    )
    return {name: Path(__file__).parent / "recipes" / f"{name}.toml" for name in order}


def load_recipe(recipe: str | Path, device: str = "cpu") -> Recipe:
    """Reads a recipe.

    Args:
        recipe: the name of a bundled recipe or the path of a TOML file.
        device: on a CUDA device the values of the `[gpu]` table replace those above it.

    Raises:
        ValueError: no such recipe, or a key that is unknown, missing or of the wrong type, or
            the file is no text.
    """
    path = Path(recipe)
    if isinstance(recipe, str):  # a path is never a name
        path = bundled().get(recipe, path)
    if not path.is_file():
        raise ValueError(
            f"recipe must be a TOML file or one of {', '.join(bundled())}, got {str(recipe)!r}"
        )
    try:
        table = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path.name} is not a TOML file: {error}") from error
    gpu = table.pop("gpu", {})
    if device.startswith("cuda"):
        table = _merged(table, gpu)
    return _of_kind(table, path.name)


def finished_recipe(run: Path) -> Recipe:
    """The recipe of a finished run, as its metrics tell it.

    Args:
        run: folder of the run.

    Raises:
        FileNotFoundError: there is no finished run.
        ValueError: the file is damaged.
    """
    path = run / "metrics.json"
    if not path.is_file():
        raise FileNotFoundError(f"{run.name} must be trained first, got no {path}")
    try:
        table = json.loads(read_text(path))["recipe"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must tell the recipe of a run: {error}") from error
    return _of_kind(_without_nothing(table), str(path))


def _of_kind(table: dict[str, Any], where: str) -> Recipe:
    kind = table.get("kind")
    if kind not in KINDS:
        raise ValueError(f"{where}: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    return _typed(KINDS[kind], table, where)


def _without_nothing(table: dict[str, Any]) -> dict[str, Any]:
    """A table without the keys that JSON gives as null, which TOML leaves out."""
    return {
        key: _without_nothing(value) if isinstance(value, dict) else value
        for key, value in table.items()
        if value is not None
    }


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        nested = isinstance(value, dict) and isinstance(base.get(key), dict)
        result[key] = _merged(base[key], value) if nested else value
    return result


def _typed(cls: type[T], table: dict[str, Any], where: str) -> T:
    """Builds a dataclass from a table, recursively, checking the names and types of its keys."""
    assert dataclasses.is_dataclass(cls)
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in table:
        if key not in fields:
            raise ValueError(f"{where}: unknown key {key!r}; known keys are {', '.join(fields)}")
    for key, f in fields.items():
        required = f.default is f.default_factory is dataclasses.MISSING
        if required and key not in table:
            raise ValueError(f"{where}: key {key!r} is missing")
    values = {key: _value(hints[key], value, f"{where}: {key}") for key, value in table.items()}
    return cls(**values)


def _value(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint`, or a ValueError that says what was expected at `where`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        return _typed(hint, value, where)
    if origin is types.UnionType:
        return _value(next(a for a in arguments if a is not type(None)), value, where)
    if origin is dict and isinstance(value, dict):
        return value
    if origin is tuple and isinstance(value, list):
        variadic = len(arguments) == 2 and arguments[1] is Ellipsis
        hints = [arguments[0]] * len(value) if variadic else list(arguments)
        if len(hints) == len(value):
            return tuple(_value(h, v, where) for h, v in zip(hints, value, strict=True))
    if hint is float and type(value) in (int, float):
        return float(value)
    if origin is None and type(value) is hint:
        return value
    name = getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
    raise ValueError(f"{where} must be {name}, got {value!r}")
