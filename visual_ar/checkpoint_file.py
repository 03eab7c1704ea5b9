"""What is in the files that training scripts write: the parameters, out of all that lies beside.

Pickled files are read here and nowhere else. No code of a file runs: tensors and Python's own types
are read, and every other name stands for one inert class. Knows no family.
"""

from __future__ import annotations

import pickle
import pickletools
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from visual_ar.component_files import shard_files

_PICKLED = (".pt", ".pth", ".bin", ".ckpt")
_INDEX = ".index.json"  # of weights in shards
_ENDINGS = (*_PICKLED, ".safetensors", _INDEX)
# BSQ-ViT's running averages, DDP, DeepSpeed, Lightning; FSDP files have none
_WRAPPERS = ("ema_state_dict", "model", "module", "state_dict")
_AVERAGE = "ema"  # of LlamaGen's scripts, whose VQ tokenizers are read out of it
_INSIDE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_BEFORE = ("module.", "model.")
_COUNT = "n_averaged"  # torch's AveragedModel keeps it among the parameters
_LISTED = 6  # names in a sentence
_DEFAULTS = "collections.defaultdict"
_OLD_PICKLES = 4  # in a file from before PyTorch 1.6, until its storages begin


class _Inert(list[Any]):
    """Stands for whatever a file names and nobody needs; takes everything and does nothing."""

    def __new__(cls, *arguments: Any, **named: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Takes nothing."""

    def __hash__(self) -> int:  # type: ignore[override]  # keys of a dictionary may be inert
        return id(self)


def _dictionary(*_: Any) -> dict[Any, Any]:
    """Stands for `defaultdict`, which torch fills only where it is a plain dictionary."""
    return {}


class Taken(NamedTuple):
    """The parameters of a checkpoint, and how they were found.

    Attributes:
        parameters: by name, with no prefix that training put before all of them.
        how: what was taken, what was left, and which prefix fell away; empty for a plain file.
    """

    parameters: dict[str, Tensor]
    how: str


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """What a checkpoint holds, on the CPU; pickled tensors stay on disk until they are used.

    Args:
        path: a .pt, .pth, .bin, .ckpt or .safetensors file, or the .index.json of shards.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, no checkpoint, or needs code to be read.
    """
    if path.is_dir():
        held = sorted(file.name for file in path.iterdir() if file.name.endswith(_ENDINGS))
        raise ValueError(
            f"a checkpoint must be a file, got the folder {path}, which holds "
            f"{_names(held) or 'no checkpoint'}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint not found: {path}")
    if not path.name.endswith(_ENDINGS):
        raise ValueError(
            f"a checkpoint must end in {', '.join(_PICKLED)} or .safetensors, got {path.name}"
        )
    if path.name.endswith(_INDEX):
        return _read_shards(path)
    return _read_file(path)


def _read_file(path: Path) -> Mapping[str, Any]:
    _check_first_bytes(path)
    try:
        state = load_file(path) if path.suffix == ".safetensors" else _unpickle(path)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} is not a checkpoint that can be read as tensors") from error
    except _Refused:
        raise
    except Exception as error:  # damaged bytes make torch's unpickler stumble in every way
        raise ValueError(
            f"{path} is truncated or not a checkpoint: {path.stat().st_size} bytes; if it was "
            "downloaded, do so again"
        ) from error
    if isinstance(state, _Inert):
        raise ValueError(
            f"{path} must hold parameters by name, got a whole object; save its state_dict()"
        )
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} must hold parameters by name, got {type(state).__name__}")
    return state


class _Refused(ValueError):
    """A file whose fault is known."""


def _check_first_bytes(path: Path) -> None:
    """Raises ValueError for what people save in place of a checkpoint without noticing."""
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        raise _Refused(f"{path} must be a checkpoint, got a pointer of Git LFS: run git lfs pull")
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise _Refused(f"{path} must be a checkpoint, got a web page: download the file itself")


def _read_shards(index: Path) -> dict[str, Any]:
    """The parameters of all shards that an index beside them names."""
    state: dict[str, Any] = {}
    for file in shard_files(index):
        if file.suffix not in (*_PICKLED, ".safetensors"):
            raise ValueError(
                f"{index} must name files beside it in its weight_map that hold weights, "
                f"got {file.name}"
            )
        state.update(read_checkpoint(file))
    return state


def _unpickle(path: Path) -> Any:
    names = _foreign_names(path)
    inert: list[Any] = [(_dictionary if name == _DEFAULTS else _Inert, name) for name in names]
    with torch.serialization.safe_globals(inert):
        try:
            # Files from before PyTorch 1.6 are no zip archives and cannot be mapped.
            mapped = zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError as error:
            if not names:
                raise
            raise _Refused(
                f"{path} holds more than tensors, and cannot be read without running code of "
                f"what it names: {_names(names)}; save the state_dict() alone"
            ) from error


def _foreign_names(path: Path) -> list[str]:
    """What a pickled file names and torch does not know; found without running it."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            return sorted({name for _ in range(_OLD_PICKLES) for name in _named(file)})
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError as error:
        if "torchscript" not in str(error):
            raise
        raise _Refused(
            f"{path} must hold parameters, got a TorchScript program; save its state_dict()"
        ) from None


def _named(file: IO[bytes]) -> list[str]:
    """The names in the next pickle of a file."""
    found = [argument for code, argument, _ in pickletools.genops(file) if code.name == "GLOBAL"]
    return [_today(*str(name).split(" ", 1)) for name in found]


def _today(module: str, name: str) -> str:
    """A name as Python 3 calls it, as torch's unpickler looks for it."""
    if (module, name) in NAME_MAPPING:
        return ".".join(NAME_MAPPING[module, name])
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"


def unwrap(checkpoint: Mapping[str, Any]) -> Taken:
    """The parameters of a checkpoint, out of the dictionary that training scripts put them in.

    The official scripts decide between several: generators are read out of `model`, VQ tokenizers
    out of the running average `ema` where there is one, BSQ-ViT out of `ema_state_dict`.

    Raises:
        ValueError: there are no parameters in it.
    """
    held = {key: _tensors(checkpoint.get(key)) for key in (*_WRAPPERS, _AVERAGE)}
    key = next((key for key, tensors in held.items() if tensors), "")
    tensors = held[key] if key else _tensors(checkpoint)
    if not tensors:
        raise ValueError(
            f"the checkpoint holds no parameters, only {sorted(map(str, checkpoint))[:5]}"
        )
    parameters, prefixes = _without_prefixes(tensors)
    if "quantize.embedding.weight" in parameters and held[_AVERAGE]:
        key = _AVERAGE
        parameters, prefixes = _without_prefixes(held[key])
    said = []
    if key:
        what = "the running average " if key in (_AVERAGE, "ema_state_dict") else ""
        left = [str(other) for other in checkpoint if other != key]
        said.append(f"took {what}{key}" + (f" and left {_names(left)}" if left else ""))
    if prefixes:
        said.append(f"took {' and '.join(prefixes)} off the names")
    return Taken(parameters, "; ".join(said))


def _tensors(held: Any) -> dict[str, Tensor]:
    """The tensors of a dictionary by name; nothing of what is none."""
    if not isinstance(held, Mapping):
        return {}
    # NAR's video models lie one level deeper, beside their arguments.
    inner = held["sd"] if isinstance(held.get("sd"), Mapping) else held
    return {
        key: value
        for key, value in inner.items()
        if isinstance(key, str) and isinstance(value, Tensor) and key != _COUNT
    }


def _without_prefixes(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The parameters by the names that their model gives them, and what was taken off those."""
    taken = []
    for part in _INSIDE:
        if any(part in key for key in tensors):
            tensors = _renamed(tensors, {key: key.replace(part, "") for key in tensors})
            taken.append(part)
    before = next((p for p in _BEFORE if all(key.startswith(p) for key in tensors)), None)
    while before is not None:
        tensors = _renamed(tensors, {key: key.removeprefix(before) for key in tensors})
        taken.append(before)
        before = next((p for p in _BEFORE if all(key.startswith(p) for key in tensors)), None)
    return tensors, taken


def _renamed(tensors: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    renamed = {names[key]: value for key, value in tensors.items()}
    if len(renamed) != len(tensors):
        raise ValueError("the checkpoint must hold every parameter once, got one under two names")
    return renamed


def _names(names: list[str]) -> str:
    """Names in a sentence, with what a terminal would obey written out."""
    listed = [repr(name)[1:-1][:40] for name in names[:_LISTED]]
    more = len(names) - len(listed)
    return ", ".join(listed) + (f" and {more} more" if more else "")
