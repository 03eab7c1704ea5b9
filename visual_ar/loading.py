"""Finds a saved pipeline by name and checks its files, before anything is built from them.

Only safetensors and JSON are read. Knows the file layout of diffusers; knows no family.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFETENSORS_WEIGHTS_NAME
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from visual_ar.assets import bundled

INDEX = "model_index.json"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]  # never pickles, never code


def find(name: str | Path, revision: str | None, token: str | None, offline: bool) -> Path:
    """The folder of a bundled model, of a path, or of a repository on the Hugging Face hub.

    Args:
        name: a bundled name, a folder, or OWNER/NAME.
        revision: branch, tag or commit on the hub.
        token: for repositories that are not public.
        offline: use only what the hub's cache holds.

    Raises:
        FileNotFoundError: nothing of that name.
        NotADirectoryError: a file has that name.
        OSError: the hub cannot be reached.
    """
    path = bundled().get(str(name), Path(name))
    if path.is_dir():
        return path
    if path.exists():
        raise NotADirectoryError(f"model must be a folder, got the file {str(path)!r}")
    if isinstance(name, str) and _HUB_ID.fullmatch(name) and not name.startswith("."):
        return _download(name, revision, token, offline)
    close = difflib.get_close_matches(str(name), bundled(), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise FileNotFoundError(
        f"model must be bundled ({', '.join(bundled()) or 'none is'}), an existing folder or "
        f"OWNER/NAME on the Hugging Face hub, got {str(name)!r}{hint}"
    )


def _download(name: str, revision: str | None, token: str | None, offline: bool) -> Path:
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            token=token,
            local_files_only=offline,
            allow_patterns=_HUB_FILES,
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise OSError(
            f"model must be an existing folder or a repository that the Hugging Face hub gives, "
            f"got {name!r}: {reason}"
        ) from error
    return Path(folder)


def check(folder: Path, pipeline: str) -> None:
    """Makes sure that every component of a saved pipeline can be built and has its weights.

    Imports the modules of the components, which diffusers asks of whoever loads them.

    Args:
        folder: of the saved pipeline.
        pipeline: name of the class that saved it.

    Raises:
        ValueError: the folder holds no such pipeline, or a file of it is damaged.
    """
    index = _read_json(folder / INDEX, f"a model folder must hold {INDEX}")
    if index.get("_class_name") != pipeline:
        raise ValueError(
            f"{folder / INDEX} must describe a {pipeline}, got {index.get('_class_name')!r}"
        )
    for name, entry in index.items():
        if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str):
            if not (folder / name).is_dir():
                raise ValueError(f"the model folder {str(folder)!r} must hold a folder {name}")
            component = _component(folder, name, *entry)
            if issubclass(component, ModelMixin):
                _check_weights(folder / name, component)


def _read_json(path: Path, rule: str) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{rule}, got {str(path.parent)!r} without it") from None
    except ValueError as error:
        raise ValueError(f"{path} must be JSON: {error}") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(document).__name__}")
    return document


def _component(folder: Path, name: str, module: str, class_name: str) -> Any:
    """The class of a component. Only our own modules and transformers are imported for a file."""
    allowed = module.split(".")[0] in ("visual_ar", "transformers")
    try:
        found = getattr(import_module(module), class_name, None) if allowed else None
    except ImportError as error:
        raise ValueError(f"{name} in {folder / INDEX} needs {module}: {error}") from None
    if not isinstance(found, type):
        raise ValueError(
            f"{name} in {folder / INDEX} must be a class of this library, "
            f"got {class_name!r} of {module!r}"
        )
    return found


def _check_weights(folder: Path, component: Any) -> None:
    """Compares the shapes in the headers of the weight files with those of an empty model."""
    config = folder / "config.json"
    options = _read_json(config, f"{folder.name} must hold config.json")
    try:
        with torch.device("meta"):
            empty = component.from_config(options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{config} must describe a {component.__name__}: {error}") from None
    expected = {key: list(value.shape) for key, value in empty.state_dict().items()}
    found = dict(_shapes(folder))
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
        shards = _read_json(index, "weights in shards need their index").get("weight_map")
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
