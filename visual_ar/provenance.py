"""How a picture was made, as plain data, and the command that makes it again; draws nothing."""

import platform
import shlex
import sys
from importlib import metadata
from typing import Any

LIBRARIES = ("visual-ar", "torch", "torchvision", "diffusers", "timm", "gradio")

# Key of a recipe -> option of `visual-ar generate`, in the order a person would type them.
FLAGS = {
    "model": "--model",
    "class": "--class",
    "count": "--count",
    "seed": "--seed",
    "height": "--height",
    "width": "--width",
    "guidance": "--guidance",
    "guidance_schedule": "--guidance-schedule",
    "temperature": "--temperature",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "method": "--method",
    "draft_model": "--draft-model",
    "drafts": "--drafts",
    "window": "--window",
    "coupling": "--coupling",
    "init": "--init",
    "rule": "--rule",
    "tree": "--tree",
    "drafter": "--drafter",
    "adapt": "--adapt",
    "steps": "--steps",
    "clean": "--clean",
    "complete": "--complete",
    "keep_rows": "--keep-rows",
    "mask": "--mask",
    "sheet": "--sheet",
    "columns": "--columns",
    "device": "--device",
    "dtype": "--dtype",
}


def command(recipe: dict[str, Any]) -> str:
    """Returns the shell command that makes a picture of this recipe.

    Args:
        recipe: As `visual-ar generate` stores it in a PNG: the keys of `FLAGS` and "prompt", each
            optional; a list is an option given several times; other keys are ignored.
    """
    options = [word for key, flag in FLAGS.items() for word in _words(flag, recipe.get(key))]
    prompts = _values(recipe.get("prompt"))
    if any(prompt.startswith("-") for prompt in prompts):  # would be read as options
        return shlex.join(["visual-ar", "generate", *options, "--", *prompts])
    return shlex.join(["visual-ar", "generate", *prompts, *options])


def of_sheet(recipes: list[dict[str, Any]], kind: str, count: int, columns: int) -> dict[str, Any]:
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


def _words(flag: str, value: Any) -> list[str]:
    if value is True:
        return [flag]
    return [word for entry in _values(value) for word in (flag, entry)]
