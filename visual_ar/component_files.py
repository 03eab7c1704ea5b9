"""The files of one component: its JSON, and whether its weights are what its class expects.

Only headers of safetensors are read. Knows no pipeline and no hub.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open

from visual_ar import eight_bit


def read_json(path: Path, rule: str) -> dict[str, Any]:
    """A JSON object.

    Args:
        path: of the file.
        rule: what a message says where there is none.

    Raises:
        ValueError: no such file, or it holds something else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{rule}, got {str(path.parent)!r} without it") from None
    except ValueError as error:
        raise ValueError(f"{path} must be JSON: {error}") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(document).__name__}")
    return document


def check_weights(folder: Path, component: Any, prefix: str = "") -> None:
    """Compares the shapes in the headers of the weight files with those of an empty model.

    Args:
        folder: of the component.
        component: its class.
        prefix: of the parameters that the files must hold.
    """
    config = folder / "config.json"
    options = read_json(config, f"{folder.name} must hold config.json")
    try:
        with torch.device("meta"):
            empty = component.from_config(options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{config} must describe a {component.__name__}: {error}") from None
    state = empty.state_dict()
    expected = {key: list(state[key].shape) for key in state if key.startswith(prefix)}
    found = dict(_shapes(folder))
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


def _shapes(folder: Path) -> Iterator[tuple[str, list[int]]]:
    """Names and shapes of all weights of a component, in one file or in shards."""
    index, single = folder / SAFE_WEIGHTS_INDEX_NAME, folder / SAFETENSORS_WEIGHTS_NAME
    files = [single]
    if index.exists():
        shards = read_json(index, "weights in shards need their index").get("weight_map")
        if not isinstance(shards, dict):
            raise ValueError(f"{index} must hold a weight_map, got none")
        files = [folder / shard for shard in sorted(set(shards.values()))]
    for file in files:
        if not file.is_file():
            raise ValueError(f"{str(folder)!r} must hold {file.name}, got no such file")
        try:
            with safe_open(file, framework="pt") as weights:
                for key in weights.keys():  # noqa: SIM118  (not a mapping)
                    yield key, weights.get_slice(key).get_shape()
        except SafetensorError as error:
            raise ValueError(f"{file} must be a whole safetensors file: {error}") from None
