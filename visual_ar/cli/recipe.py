"""How a picture was made, as plain data, and the command that makes it again; draws nothing."""

import shlex
from typing import Any

# Key of a recipe -> option of `visual-ar generate`, in the order a person would type them.
FLAGS = {
    "model": "--model",
    "class": "--class",
    "count": "--count",
    "seed": "--seed",
    "height": "--height",
    "width": "--width",
    "guidance": "--guidance",
    "temperature": "--temperature",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "method": "--method",
    "window": "--window",
    "coupling": "--coupling",
    "init": "--init",
    "complete": "--complete",
    "keep_rows": "--keep-rows",
    "mask": "--mask",
    "sheet": "--sheet",
    "device": "--device",
    "dtype": "--dtype",
}


def command(recipe: dict[str, Any]) -> str:
    """Returns the shell command that makes a picture of this recipe.

    Args:
        recipe: As `visual-ar generate` stores it in a PNG: the keys of `FLAGS` and "prompt", each
            optional; a list is an option given several times; other keys are ignored.
    """
    options = [
        word
        for key, flag in FLAGS.items()
        for value in _values(recipe.get(key))
        for word in (flag, value)
    ]
    prompts = _values(recipe.get("prompt"))
    if any(prompt.startswith("-") for prompt in prompts):  # would be read as options
        return shlex.join(["visual-ar", "generate", *options, "--", *prompts])
    return shlex.join(["visual-ar", "generate", *prompts, *options])


def _values(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(entry) for entry in (value if isinstance(value, list) else [value])]
