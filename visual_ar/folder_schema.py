"""Reads the index of a saved pipeline against a schema: components and settings, with bounds.

The index comes from anyone, and is checked here before anything is made of it. Knows no family and
loads nothing; that a component exists and fits is for whoever loads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from visual_ar.component_files import read_json
from visual_ar.plain_numbers import shown

INDEX = "model_index.json"
Component = tuple[str, str] | tuple[None, None]
"""Module and class, or that there is none."""
_LONGEST_SIDE, _MOST_CLASSES = 65_536, 1_000_000


class Index(BaseModel):
    """The entries that a pipeline reads. What begins with an underscore is for `loading`."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    model: Component | None = None
    image_tokenizer: Component | None = None
    scheduler: Component | None = None
    text_encoder: Component | None = None
    draft_head: Component | None = None
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


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a saved pipeline.

    Raises:
        ValueError: there is none, it is no JSON object, or an entry is not what a pipeline saves.
    """
    index = read_json(folder / INDEX, f"a model folder must hold {INDEX}")
    _check(index, folder / INDEX)
    return index


def _check(index: Mapping[str, Any], path: Path) -> None:
    lists = {key: tuple(value) if _is_component(value) else value for key, value in index.items()}
    try:
        Index.model_validate(lists)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        rule = first["msg"].lower().removeprefix("input should be ")
        raise ValueError(f"{name} in {path} must be {rule}, got {shown(index[name])}") from None


def _is_component(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2
