"""The files of one component: its JSON, and whether its weights are what its class expects.

Only headers of safetensors are read. Knows no pipeline and no hub.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from visual_ar import eight_bit
from visual_ar.plain_numbers import shown
from visual_ar.regular_file import check_regular

MOST_JSON = 16 * 2**20
"""Bytes of a file of metadata."""
MOST_NUMBER = 2**32
_ROOM = 1024  # parameters that may be made beside those of the files: made twice, or of a base
STUMBLES = (
    *(TypeError, ValueError, RuntimeError, AssertionError, AttributeError, LookupError),
    *(ArithmeticError, MemoryError, SafetensorError),
)
"""What readers and constructors raise that expect no damage. RecursionError is a RuntimeError."""


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turns what readers stumble over in a folder, where they expect no damage, into a sentence."""
    try:
        yield
    except STUMBLES as error:
        if type(error) is ValueError:
            raise
        reason = shorten(str(error) or "nothing more is known", 200)
        raise ValueError(
            f"the files in {str(folder)!r} must be those of one saved pipeline, "
            f"got {type(error).__name__}: {reason}"
        ) from error


def read_json(path: Path, rule: str) -> dict[str, Any]:
    """A JSON object.

    Args:
        path: of the file.
        rule: what a message says where there is none.

    Raises:
        ValueError: no such file, or it holds something else.
    """
    try:
        check_regular(path, str(path))
    except FileNotFoundError:
        raise ValueError(f"{rule}, got {str(path.parent)!r} without it") from None
    if path.stat().st_size > MOST_JSON:
        raise ValueError(f"{path} must have at most {MOST_JSON:,} bytes, got more")
    try:
        text = path.read_text(encoding="utf-8-sig")
        document = json.loads(text, parse_constant=_refuse_constant)
        _check_numbers(document)
    except RecursionError:
        raise ValueError(f"{path} must be JSON, got lists nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path} must be JSON: {error}") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(document).__name__}")
    return document


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _check_numbers(value: Any) -> None:
    """Raises ValueError for a whole number that no part of a model has."""
    if isinstance(value, int) and abs(value) > MOST_NUMBER:
        raise ValueError(f"a whole number must be at most {MOST_NUMBER}, got {shown(value)}")
    if isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            _check_numbers(entry)


def check_weights(folder: Path, component: Any, prefix: str = "") -> None:
    """Compares the shapes in the headers of the weight files with those of an empty model.

    Args:
        folder: of the component.
        component: its class.
        prefix: of the parameters that the files must hold.
    """
    found = shapes(folder)
    state = _empty(folder, component, len(found)).state_dict()
    expected = {key: list(state[key].shape) for key in state if key.startswith(prefix)}
    for key, shape in expected.items():
        if found.get(key + eight_bit.SCALE) == shape[:1]:
            del found[key + eight_bit.SCALE]
    for key, shape in expected.items():
        if key not in found:
            raise ValueError(f"the weights in {str(folder)!r} lack the parameter {key}")
        if found[key] != shape:
            raise ValueError(
                f"{key} must have shape {shape} in the weights in {str(folder)!r}, got {found[key]}"
            )
    for key in found:
        if key not in expected:
            raise ValueError(f"the weights in {str(folder)!r} have an unknown parameter {key}")


def count_parameters(folder: Path, component: Any) -> int:
    """Numbers in a component's files that training changes; buffers and scales are none.

    Raises:
        ValueError: as `shapes`, or the config describes no such component.
    """
    if not issubclass(component, nn.Module):
        return 0
    found = shapes(folder)
    if not issubclass(component, ModelMixin):  # of another library, whose configs are its own
        return sum(map(math.prod, found.values()))
    trained = dict(_empty(folder, component, len(found)).named_parameters())
    return sum(math.prod(shape) for name, shape in found.items() if name in trained)


def _empty(folder: Path, component: Any, stored: int) -> Any:
    """A model without values, which stops being built when it has far more than its files.

    A config is a few bytes, and may ask for a billion layers.

    Args:
        folder: of the component, whose config tells its options.
        component: its class.
        stored: how many tensors its files hold.
    """
    config = folder / "config.json"
    options = read_json(config, f"{folder.name} must hold config.json")
    builder, made, most = threading.get_ident(), 0, _ROOM + 4 * stored

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal made
        made += threading.get_ident() == builder
        if made > most:
            raise ValueError("it has far more parameters than the weights hold")

    counting = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"), _NoRandomNumbers():
            return component.from_config(options)
    except STUMBLES as error:
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"{config} must describe a {component.__name__}: {shorten(reason, 200)}"
        ) from None
    finally:
        counting.remove()


class _NoRandomNumbers(TorchFunctionMode):
    """Leaves out normal numbers; where there are no values, torch takes two seconds of imports for
    them."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        if function in (nn.init.normal_, Tensor.normal_):
            return args[0] if args else named["tensor"]
        return function(*args, **named)


def shapes(folder: Path) -> dict[str, list[int]]:
    """Shapes by name of all weights of a component, in one file or in shards.

    Raises:
        ValueError: a file is missing, damaged, or none.
    """
    index, single = folder / SAFE_WEIGHTS_INDEX_NAME, folder / SAFETENSORS_WEIGHTS_NAME
    found: dict[str, list[int]] = {}
    for file in shard_files(index) if index.exists() else [single]:
        if not file.exists():
            raise ValueError(f"{str(folder)!r} must hold {file.name}, got no such file")
        _check_header(file)
        try:
            with safe_open(file, framework="pt") as weights:
                for key in weights.keys():  # noqa: SIM118  (not a mapping)
                    found[key] = weights.get_slice(key).get_shape()
        except SafetensorError as error:
            raise ValueError(f"{file} must be a whole safetensors file: {error}") from None
    return found


def shard_files(index: Path) -> list[Path]:
    """The files that the index of weights in shards names, which lie beside it.

    Raises:
        ValueError: it is no such index, or names something else.
    """
    places = read_json(index, "weights in shards need their index").get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index} must hold a weight_map, got {shown(places)}")
    for name in places.values():
        if not isinstance(name, str) or not name or Path(name).name != name:
            raise ValueError(
                f"{index} must name files beside it in its weight_map, got {shown(name)}"
            )
    return [index.parent / name for name in sorted(set(places.values()))]


def _check_header(file: Path) -> None:
    """Raises ValueError unless the header of a safetensors file is one that a model needs."""
    check_regular(file, str(file))
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
    if length > MOST_JSON:
        raise ValueError(
            f"{file} must be a whole safetensors file: its header has at most {MOST_JSON:,} bytes, "
            f"got {length}"
        )
