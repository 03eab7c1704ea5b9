"""Finds a saved pipeline by name and checks its files, before anything is built from them.

A folder may also hold only what is added to the model of another pipeline, its base, and it may
name another pipeline that holds a component for both. It says which weights it means by their
fingerprint, a text, or a list of texts where each is right. Weights that were stored anew, in
8 bits, answer to the fingerprints that their folder says they replace.

Only safetensors and JSON are read. Knows the file layout of diffusers; knows no family.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import ModelMixin, SchedulerMixin
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME, is_accelerate_available
from safetensors.torch import load_file
from torch import Tensor

from visual_ar import eight_bit
from visual_ar.assets import bundled, local
from visual_ar.component_files import check_weights, read_json
from visual_ar.folder_schema import (
    BASE,
    BASE_SHA256,
    INDEX,
    SHARED,
    STANDS_FOR,
    components,
    read_index,
)
from visual_ar.hub import Hub, download, is_hub_name
from visual_ar.plain_numbers import shown


def find(name: str | PathLike[str], revision: str | None = None, hub: Hub | None = None) -> Path:
    """The folder of a bundled model, of a path, or of a repository on the Hugging Face hub.

    What is a path by its type or its spelling, as "./emoji", is never a bundled name.

    Args:
        name: a bundled name, a folder, or OWNER/NAME.
        revision: branch, tag or commit on the hub.
        hub: how that is asked.

    Raises:
        FileNotFoundError: nothing of that name.
        NotADirectoryError: a file has that name.
        ValueError: it is no name, or that of a bundled model and of a model folder both.
        OSError: the hub cannot be reached.
    """
    if not isinstance(name, str | PathLike) or not str(name).strip():
        raise ValueError(f"model must be a name or a path, got {shown(name)}")
    path = local(name, bundled())
    if path.is_dir():
        return path
    if path.exists():
        raise NotADirectoryError(f"model must be a folder, got the file {str(path)!r}")
    if isinstance(name, str) and is_hub_name(name):
        return download(name, revision, hub or Hub())
    raise FileNotFoundError(_not_found(name))


def find_named(name: str, hub: Hub | None = None) -> Path:
    """The folder of a pipeline that a model folder names, as `find` but never a path.

    A folder may come from anyone and is read in any place, so that a path in it means nothing, and
    a folder that happens to lie here must not stand for the bundled model.

    Args:
        name: a bundled name, or OWNER/NAME on the hub.
        hub: how that is asked.

    Raises:
        FileNotFoundError: nothing of that name.
        OSError: the hub cannot be reached.
    """
    if name in bundled():
        return bundled()[name]
    if is_hub_name(name):
        return download(name, None, hub or Hub())
    raise FileNotFoundError(_not_found(name))


def _not_found(name: str | PathLike[str]) -> str:
    on_hub = re.search(r"huggingface\.co/([\w.-]+/[\w.-]+)", str(name))
    close = [on_hub[1]] if on_hub else difflib.get_close_matches(Path(name).name, bundled(), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    if not isinstance(name, str) and str(name) in bundled():
        hint = "; a path is always a folder, give the name of a bundled model as text"
    return (
        f"model must be bundled ({', '.join(bundled()) or 'none is'}), an existing folder or "
        f"OWNER/NAME on the Hugging Face hub, got {str(name)!r}{hint}"
    )


def check(folder: Path, pipeline: str) -> None:
    """Makes sure that every component of a saved pipeline can be built and has its weights.

    Imports the modules of the components, which diffusers asks of whoever loads them.

    Args:
        folder: of the saved pipeline.
        pipeline: name of the class that saved it.

    Raises:
        ValueError: the folder holds no such pipeline, or a file of it is damaged.
    """
    index = read_index(folder)
    if index.get("_class_name") != pipeline:
        raise ValueError(
            f"{folder / INDEX} must describe a {pipeline}, got {shown(index.get('_class_name'))}"
        )
    elsewhere = shared(folder)
    for name, entry in components(index).items():
        if name in elsewhere:
            continue
        if not (folder / name).is_dir():
            raise ValueError(f"the model folder {str(folder)!r} must hold a folder {name}")
        found = _component(folder, name, *entry)
        if issubclass(found, ModelMixin):
            check_weights(folder / name, found)
        elif issubclass(found, SchedulerMixin):
            settings = found.config_name
            read_json(folder / name / settings, f"{name} must hold {settings}")


class Shared(NamedTuple):
    """A component that another pipeline holds.

    Attributes:
        base: name of that pipeline.
        fingerprints: of weights that the component may have.
        component: its class.
    """

    base: str
    fingerprints: tuple[str, ...]
    component: Any

    def load(self, folder: Path, dtype: torch.dtype | None) -> Any:
        """The component out of its folder.

        Raises:
            ValueError: it has other weights there, or its files are damaged.
        """
        check_weights(folder, self.component)
        _check_fingerprint(folder, self.base, self.fingerprints)
        return self.component.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            low_cpu_mem_usage=is_accelerate_available(),
        )


def shared(folder: Path) -> dict[str, Shared]:
    """The components of a saved pipeline that others hold, by name.

    Raises:
        ValueError: the index does not say where they are.
    """
    index = read_index(folder)
    return {
        name: Shared(base, _texts(weights), component(folder, name))
        for name, (base, weights) in index.get(SHARED, {}).items()
    }


def holder(base: str, name: str, hub: Hub | None = None) -> Path:
    """The folder of a component of a pipeline, which may be that of a third one, and so on.

    Args:
        base: name of the pipeline.
        name: of the component.
        hub: as for `find_named`.

    Raises:
        ValueError: the pipelines name each other in a circle.
        OSError: one of them is not found.
    """
    passed: list[str] = []
    while base not in passed:
        passed.append(base)
        folder = find_named(base, hub)
        path = folder / INDEX
        index = read_index(folder) if path.exists() else {}
        elsewhere = shared(folder) if index else {}
        if name in elsewhere:
            base = elsewhere[name].base
        elif BASE in index and not (folder / name).is_dir():
            base = index[BASE]
        else:
            return folder / name
    raise ValueError(f"{name} must be held by a pipeline, got a circle: {', '.join(passed)}")


class Delta(NamedTuple):
    """What a folder adds to the model of another pipeline.

    Attributes:
        base: name of that pipeline.
        fingerprints: of the models that it may have.
        model_class: has `from_base`, which builds the model from the other one and `options`.
        options: arguments of the model.
        parameters: that are added.
        scheduler: decoding method.
    """

    base: str
    fingerprints: tuple[str, ...]
    model_class: Any
    options: dict[str, Any]
    parameters: dict[str, Tensor]
    scheduler: Any

    def extend(self, model: Any) -> Any:
        """The model that was trained, from the one of the base."""
        extended = self.model_class.from_base(model, self.options)
        extended.load_state_dict(self.parameters, strict=False)
        return extended.eval()


def read_delta(folder: Path, pipeline: str) -> Delta | None:
    """What a folder adds to another pipeline, or None when it holds a whole one.

    Args:
        folder: whose index names its base, if it has any.
        pipeline: name of the class that saved it.

    Raises:
        ValueError: a file of it is damaged.
    """
    path = folder / INDEX
    if not path.exists():
        return None
    index = read_index(folder)
    if BASE not in index:
        return None
    if index.get("_class_name") != pipeline:
        found = shown(index.get("_class_name"))
        raise ValueError(f"_class_name in {path} must be {pipeline}, got {found}")
    if BASE_SHA256 not in index:
        raise ValueError(f"{BASE_SHA256} must be given in {path} with {BASE}, got none")
    model_class = component(folder, "model")
    prefix = getattr(model_class, "delta_prefix", None)
    if prefix is None:
        raise ValueError(f"model in {path} must be a class that adds to another, got {model_class}")
    check_weights(folder / "model", model_class, prefix)
    scheduler = component(folder, "scheduler")
    settings = folder / "scheduler" / scheduler.config_name
    return Delta(
        index[BASE],
        _texts(index[BASE_SHA256]),
        model_class,
        read_json(folder / "model" / "config.json", "a model must have its config.json"),
        eight_bit.restore(load_file(folder / "model" / SAFETENSORS_WEIGHTS_NAME)),
        scheduler.from_config(read_json(settings, f"{settings.parent} must hold {settings.name}")),
    )


def fingerprint(folder: Path) -> str:
    """A digest of a component's weights, as they are in float16, however many files hold them."""
    stored: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        stored |= load_file(file)
    digest = hashlib.sha256()
    for name, value in sorted(eight_bit.restore(stored).items()):
        digest.update(name.encode())
        digest.update(value.to(torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()


def answers_to(folder: Path) -> tuple[str, ...]:
    """The fingerprint of the weights in a component's folder, then those of what they replace.

    Raises:
        ValueError: the index of the pipeline does not say what they replace as it must.
    """
    own = fingerprint(folder)
    index = read_index(folder.parent) if (folder.parent / INDEX).exists() else {}
    # By the weights' own fingerprint, so that other weights in their place stand for nothing.
    replaced = index.get(STANDS_FOR, {}).get(folder.name, {})
    return (own, *_texts(replaced.get(own, [])))


def check_base(delta: Delta, folder: Path) -> None:
    """Makes sure that a pipeline is what `delta` adds to.

    Raises:
        ValueError: it has other weights, or adds to another itself, which could go on for ever.
    """
    if BASE in read_index(folder):
        raise ValueError(f"{BASE} must be a whole pipeline, got {delta.base!r}, which has one too")
    _check_fingerprint(folder / "model", delta.base, delta.fingerprints)


def _check_fingerprint(folder: Path, base: str, expected: tuple[str, ...]) -> None:
    found = answers_to(folder)
    if not set(found) & set(expected):
        wanted = " or ".join(text[:12] for text in expected)
        raise ValueError(
            f"the {folder.name} of {base!r} must have the weights that this one was trained with, "
            f"of fingerprint {wanted}, got {found[0][:12]}; train its recipe again"
        )


def _texts(value: str | list[str]) -> tuple[str, ...]:
    """One text or several."""
    return (value,) if isinstance(value, str) else tuple(value)


def component(folder: Path, name: str) -> Any:
    """The class of a component that a saved pipeline names.

    Raises:
        ValueError: it names none, or one that is not of this library.
    """
    index = read_index(folder)
    entry = components(index).get(name)
    if entry is None:
        told = shown(index.get(name))
        raise ValueError(f"{name} in {folder / INDEX} must name a class, got {told}")
    return _component(folder, name, *entry)


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
            f"got {shown(class_name)} of {shown(module)}"
        )
    return found
