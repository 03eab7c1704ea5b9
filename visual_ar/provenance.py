"""How a picture was made, as plain data, and the command that makes it again; draws nothing.

Knows pipelines by what they say of themselves, and the names of the options of
`visual-ar generate`, which are those of a recipe; the options of decoding methods it asks
`method_options` for.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any

from visual_ar import accel, method_options
from visual_ar.plain_text import shell_word

if TYPE_CHECKING:
    from visual_ar.output import Stats
    from visual_ar.pipeline import VisualARPipeline

LIBRARIES = ("visual-ar", "torch", "torchvision", "diffusers", "timm", "gradio")
SAMPLING = ("guidance", "guidance_schedule", "temperature", "top_k", "top_p")
SIZE = ("height", "width", "frames", "length")
SETTINGS = (*SAMPLING, *SIZE)
"""Keys of a recipe that every picture has, unless its model has no such thing."""
PARAMETERS = {  # recipe key -> parameter of the pipeline's call, where they differ
    "class": "class_labels",
    "guidance": "guidance_scale",
}
BEFORE_METHOD = ("model", "class", "count", "seed", *SIZE, *SAMPLING, "method", "draft_model")
AFTER_METHOD = ("complete", "keep_rows", "mask", "sheet", "columns", "device", "dtype")
"""Keys of a recipe that are options of the command, in the order a person would type them, around
those of the method."""


@dataclass(frozen=True)
class Order:
    """What is to be drawn.

    Attributes:
        kind: "prompt" or "class".
        subjects: One prompt or class a picture.
        seed: Of the first picture; the next one has the next seed.
        settings: Of `SETTINGS` those that are given; None is the model's own.
        kept: Picture and mask of cells for a completion, as the pipeline takes them.
        asked: What a recipe repeats as it was typed: the model and the files of a completion.
    """

    kind: str
    subjects: list[str]
    seed: int
    settings: dict[str, Any]
    kept: dict[str, Any] = field(default_factory=dict)
    asked: dict[str, Any] = field(default_factory=dict)


def recipe(
    pipe: VisualARPipeline, order: Order, stats: Stats, start: int, index: int
) -> dict[str, Any]:
    """Returns how a picture was made, as its PNG carries it.

    Args:
        pipe: Drew it.
        order: What was asked for.
        stats: Of its batch.
        start: Number of the batch's first picture in the order.
        index: Of the picture in its batch.
    """
    asked = {**order.asked, order.kind: order.subjects[start + index]}
    return {**asked, **_settings(pipe, order), **_made(pipe, stats, index)}


def _settings(pipe: VisualARPipeline, order: Order) -> dict[str, Any]:
    """The settings that were in force, given or the model's own."""
    own = {key: pipe.config[PARAMETERS.get(key, key)] for key in SAMPLING} | pipe.size.named
    return own | {key: value for key, value in order.settings.items() if value is not None}


def _made(pipe: VisualARPipeline, stats: Stats, index: int) -> dict[str, Any]:
    """How the picture of this index in its batch came about."""
    method = method_options.entries(pipe.scheduler)
    if "window" in method:
        method["window"] = stats.window  # the number that "auto" came to
    return {
        "seed": stats.seeds[index],
        **method,
        "device": str(pipe.device),
        "dtype": str(pipe.number_format).removeprefix("torch."),
        "lossless": stats.lossless,
        "passes": stats.passes[index],
        "tokens": stats.committed_tokens // len(stats.seeds),
        "versions": versions(),
    }


def command(recipe: dict[str, Any], encoding: str = "utf-8") -> str:
    """Returns the shell command that makes a picture of this recipe.

    Args:
        recipe: As `visual-ar generate` stores it in a PNG, each key optional; a list is an option
            given several times; keys that are no options are ignored.
        encoding: of the terminal that shows it; what this cannot write is written in octal.

    Raises:
        ValueError: no program can receive such a word, since it holds NUL or is no text.
    """
    method = recipe.get("method")
    known = isinstance(method, str) and method in accel.METHODS
    own = method_options.options(str(method)) if known else {}
    keys = (*BEFORE_METHOD, *own, *AFTER_METHOD)
    words = [word for key in keys for word in _words(flag(key), recipe.get(key))]
    prompts = _values(recipe.get("prompt"))
    if any(prompt.startswith("-") for prompt in prompts):  # would be read as options
        words += ["--", *prompts]
    else:
        words = [*prompts, *words]
    return " ".join(shell_word(word, encoding) for word in ("visual-ar", "generate", *words))


def flag(name: str) -> str:
    """The option of the command line for a name in Python."""
    return f"--{name.replace('_', '-')}"


def of_sheet(
    recipes: Sequence[dict[str, Any]], kind: str, count: int, columns: int
) -> dict[str, Any]:
    """Returns the recipe of a sheet from those of its pictures.

    Args:
        recipes: One a picture, in order.
        kind: "prompt" or "class".
        count: Pictures of each prompt or class.
        columns: Pictures a row.
    """
    subjects = [recipe[kind] for recipe in recipes[::count]]
    passes = [recipe["passes"] for recipe in recipes]
    own = {kind: subjects, "count": count, "sheet": True, "columns": columns, "passes": passes}
    return {**recipes[0], **own}


def versions() -> dict[str, str]:
    """Returns the version of Python, of the platform and of the libraries that matter."""
    found = {"python": platform.python_version(), "platform": sys.platform}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            found[library] = "not installed"
    return found


def _values(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(entry) for entry in (value if isinstance(value, list) else [value])]


def _words(option: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [option if value else f"--no-{option.removeprefix('--')}"]
    return [word for entry in _values(value) for word in (option, entry)]
