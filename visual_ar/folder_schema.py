"""Reads the index of a saved pipeline against a schema: components and settings, with bounds.

The index comes from anyone, and is checked here before anything is made of it. Knows no family and
loads nothing; that a component exists and fits is for whoever loads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError

from visual_ar.component_files import read_json
from visual_ar.plain_numbers import shown

INDEX = "model_index.json"
BASE, BASE_SHA256 = "_base", "_base_sha256"  # keys of the index of a change
SHARED = "_shared"  # component -> [name of the pipeline that holds it, fingerprints of its weights]
STANDS_FOR = "_stands_for"  # component -> {fingerprint of its weights: fingerprints they replace}

Text = Annotated[str, Field(min_length=1)]
Texts = Text | Annotated[list[Text], Field(min_length=1)]
"""A fingerprint, or several each of which is right."""
Component = (
    Annotated[tuple[Text, Text], Strict(False)] | Annotated[tuple[None, None], Strict(False)]
)
"""Module and class, or that there is none. JSON has lists where strict models want tuples."""
Holder = Annotated[tuple[Text, Texts], Strict(False)]
_LONGEST_SIDE, _MOST_CLASSES = 65_536, 1_000_000


class Settings(BaseModel):
    """What a pipeline is told besides its components."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    class_names: list[str] | None = Field(None, max_length=_MOST_CLASSES)
    height: int | None = Field(None, ge=1, le=_LONGEST_SIDE)
    width: int | None = Field(None, ge=1, le=_LONGEST_SIDE)
    frames: int | None = Field(None, ge=1, le=_LONGEST_SIDE)
    length: int | None = Field(None, ge=1, le=_LONGEST_SIDE)
    guidance_scale: float | None = None
    guidance_schedule: str | None = None
    temperature: float | None = None
    top_k: int | None = Field(None, ge=0, le=2**31)
    top_p: float | None = None


class Index(Settings):
    """The entries that are read of it."""

    base: Text = Field("", alias="_base")
    base_sha256: Texts = Field("", alias="_base_sha256")
    shared: dict[Text, Holder] = Field({}, alias="_shared")
    stands_for: dict[Text, dict[Text, Texts]] = Field({}, alias="_stands_for")
    model: Component | None = None
    image_tokenizer: Component | None = None
    scheduler: Component | None = None
    text_encoder: Component | None = None
    draft_head: Component | None = None


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a saved pipeline.

    Raises:
        ValueError: there is none, it is no JSON object, or an entry is not what a pipeline saves.
    """
    index = read_json(folder / INDEX, f"a model folder must hold {INDEX}")
    _check(index, folder / INDEX)
    return index


def components(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Module and class by the name of every component that a pipeline has.

    Args:
        index: as `read_index` gives it. What is a pair of texts and no setting names a component,
            as diffusers takes it; the names of two classes are a setting.
    """
    return {
        name: (entry[0], entry[1])
        for name, entry in index.items()
        if name not in Settings.model_fields and not name.startswith("_") and _is_pair(entry)
    }


def _is_pair(entry: Any) -> bool:
    texts = isinstance(entry, list) and all(isinstance(one, str) for one in entry)
    return texts and len(entry) == 2


def _check(index: Mapping[str, Any], path: Path) -> None:
    try:
        Index.model_validate(index)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        rule = first["msg"].lower().removeprefix("input should be ")
        raise ValueError(f"{name} in {path} must be {rule}, got {shown(index[name])}") from None
