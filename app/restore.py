"""Turns the recipe of a PNG back into what the controls of a page hold; knows recipes, no page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visual_ar import method_options
from visual_ar.app.settings import Settings, settings
from visual_ar.app.uploads import check_picture
from visual_ar.png import read_recipe
from visual_ar.provenance import SAMPLING, SIZE
from visual_ar.size import Size

_OTHER_WAYS = {
    "complete": "the picture it completed is not in the file",
    "draft_model": "another model drafted for it",
    "sheet": "it is a sheet, of which the first picture is restored",
}


@dataclass(frozen=True)
class Restored:
    """What a recipe says.

    Attributes:
        model: name of the model.
        settings: of the drawing, with one picture.
        method: command-line name.
        values: of the method's options.
        size: what it says of height, width, frames and length.
        notes: sentences on what cannot be restored.
    """

    model: str
    settings: Settings
    method: str
    values: dict[str, Any]
    size: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def notes_for(self, own: Size) -> list[str]:
        """The notes, and one where the size is another than the model's own, which a page draws."""
        if {**own.named, **self.size} == own.named:
            return self.notes
        return [*self.notes, "Not all is restored: it has another size than the model's own."]


def read(path: str | Path, models: Sequence[str]) -> Restored:
    """Reads the recipe of a PNG. See `restore`.

    Args:
        path: of the file.
        models: names that may stand in it.

    Raises:
        ValueError: the file is no PNG with a recipe, has far too many pixels, or see `restore`.
    """
    check_picture(path)
    return restore(read_recipe(path), models)


def restore(recipe: Mapping[str, Any], models: Sequence[str]) -> Restored:
    """What the controls have to hold to draw a picture again.

    Args:
        recipe: as `visual-ar generate` and the page write it; from anyone, so nothing is trusted.
        models: names that may stand in it.

    Raises:
        ValueError: an entry is missing or has a value that no control can hold.
    """
    model = recipe.get("model")
    if model not in models:
        raise ValueError(
            f"the recipe's model must be one of {', '.join(models)}, or be loaded on the tab "
            f"Models first, got {model!r}"
        )
    try:
        method, given = method_options.from_entries(recipe)
    except ValueError as error:
        raise ValueError(f"the recipe's {error}") from None
    drawn = settings(
        subject=_text("prompt or class", _first(recipe.get("prompt", recipe.get("class")))),
        pictures=1,
        seed=recipe.get("seed"),
        **{name: recipe.get(name) for name in SAMPLING},
    )
    taken = method_options.options(method)
    values = {name: taken[name].shown(value) for name, value in given.items()}
    notes = [f"Not all is restored: {why}." for key, why in _OTHER_WAYS.items() if recipe.get(key)]
    size = {name: recipe[name] for name in SIZE if recipe.get(name) is not None}
    return Restored(str(model), drawn, method, values, size, notes)


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"the recipe's {name} must be text, got {value!r}")
    return value
