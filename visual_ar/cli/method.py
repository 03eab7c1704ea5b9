"""Builds the decoding method that the options ask for; knows no method's options by itself."""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visual_ar.accel.loop.contract import Decoding


def build(name: str | None, options: Mapping[str, Any], shipped: "Decoding") -> "Decoding":
    """Returns the method to decode with.

    Args:
        name: Command-line name, or None for the method that the model ships with.
        options: What the user set of it; None values are left to the model's settings.
        shipped: The model's own method, whose settings carry over where names agree.

    Raises:
        ValueError: unknown name, an option that the method does not have, or a value it refuses.
    """
    from visual_ar.accel import method

    constructor: Any = type(shipped) if name is None else method(name)
    given = {key: value for key, value in options.items() if value is not None}
    taken = inspect.signature(constructor).parameters
    for key, value in given.items():
        if key not in taken:
            raise ValueError(
                f"{key} must be left out with method {name or type(shipped).__name__}, got {value}"
            )
    if not hasattr(constructor, "from_config"):
        return constructor(**given)  # a preset takes nothing over
    shared = {key: value for key, value in shipped.config.items() if key in taken}
    return constructor(**shared | given)


def command_name(method: "Decoding") -> str | None:
    """Returns the command-line name of a method's class, or None when it has none."""
    from visual_ar.accel import METHODS

    return next((key for key, value in METHODS.items() if value == type(method).__name__), None)


def parse_window(window: str | None) -> int | str | None:
    """Returns the window as a method takes it; what is no number is left for it to refuse."""
    return int(window) if window is not None and window.lstrip("-").isdecimal() else window
