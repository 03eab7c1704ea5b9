"""Checks what a user asks of a pipeline, before any work, and turns it into plain data.

Knows what may be asked and how to say what is wrong with it; knows nothing about decoding.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from visual_ar.diffusers_habits import refuse_call
from visual_ar.given_pixels import Given, given_pixels
from visual_ar.guidance import guidance_by_rank
from visual_ar.layout import Layout
from visual_ar.plain_numbers import listed, real, several, shown, whole
from visual_ar.sampling import Sampling
from visual_ar.size import Size

Prompt = str | Sequence[str] | None
Labels = int | str | Sequence[int | str] | np.ndarray | Tensor | None

OUTPUT_TYPES = ("pil", "np", "pt", "latent", "tokens")
_NAMES = 20  # so many names fit into an error message
_DIGITS = 18  # of a class number given as text
_SEEDS = 2**53  # drawn seeds stay below it, so that every JSON reader keeps them exact


class Asked(TypedDict, total=False):
    """What a pipeline's call may be given beside the prompt, the one list of it.

    Numbers may be Python's or NumPy's, or 0-d arrays or tensors; lists of numbers may be sequences,
    1-d arrays or 1-d tensors.

    Attributes:
        class_labels: names or numbers of classes, for class-conditional models.
        num_images_per_prompt: at least 1.
        guidance_scale: at least 0; 1 is unguided and costs half.
        guidance_schedule: see `guidance_by_rank`.
        temperature: above 0.
        top_k: at least 0, 0 is off.
        top_p: in (0, 1], 1 is off.
        generator: from which seeds are drawn, one for all pictures or one for each.
        seeds: S for S, S + 1, ..., or one for each picture, in [0, 2^63). Without seeds and
            generator they are drawn from torch's own generator; `stats` records them.
        height: in pixels, a height the model was trained for.
        width: in pixels, likewise.
        frames: of a clip, likewise.
        length: tokens to draw, for codes in an order from coarse to fine.
        image: to complete: PIL, a tensor [3, H, W] or [B, 3, H, W], an array [H, W, 3] or
            [B, H, W, 3], or a list; numbers are float in [0, 1] or uint8, clips have T before H.
        mask: bool of the grid's shape, or of each picture's, cells of `image` to keep.
        output_type: "pil", "np", "pt", "latent" or "tokens", see `VisualAROutput`.
    """

    class_labels: Labels
    num_images_per_prompt: int
    guidance_scale: float | None
    guidance_schedule: str | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    generator: torch.Generator | Sequence[torch.Generator] | None
    seeds: int | Sequence[int] | np.ndarray | Tensor | None
    height: int | None
    width: int | None
    frames: int | None
    length: int | None
    image: Given | None
    mask: Tensor | np.ndarray | None
    output_type: str


def check_names(asked: Mapping[str, Any]) -> None:
    """Raises TypeError for an argument that a pipeline's call does not have."""
    for name in asked:
        if name not in Asked.__annotations__:
            refuse_call(name, Asked.__annotations__)


@dataclass(frozen=True)
class Completion:
    """Part of a picture that is kept.

    Attributes:
        pixels: float [1 or B, 3, H, W], of clips [1 or B, 3, T, H, W], in [-1, 1].
        keep: bool [1 or B, N] in raster order of the cells, True where the cell is kept.
    """

    pixels: Tensor
    keep: Tensor


@dataclass(frozen=True)
class Request:
    """B pictures to draw.

    Attributes:
        conditions: B prompts, or B class numbers.
        sampling: options of every picture.
        layout: the decode order, nothing forced.
        size: of the pictures.
        completion: what is kept of given pictures, if any.
        output_type: one of `OUTPUT_TYPES`.
    """

    conditions: list[str] | list[int]
    sampling: Sampling
    layout: Layout
    size: Size
    completion: Completion | None
    output_type: str

    @property
    def guided(self) -> bool:
        """Whether any rank of any picture is guided."""
        return bool((self.sampling.guidance != 1).any())

    @property
    def seeds(self) -> list[int]:
        """One a picture."""
        return self.sampling.seed.tolist()


def check_output_type(output_type: str) -> None:
    """Raises ValueError unless `output_type` is one of `OUTPUT_TYPES`."""
    if output_type not in OUTPUT_TYPES:
        raise ValueError(
            f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}"
        )


def check_callback_inputs(names: Sequence[str], known: Sequence[str]) -> None:
    """Raises ValueError when a callback asks for a tensor that there is not."""
    for name in names:
        if name not in known:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs must be among {', '.join(known)}, got {name!r}"
            )


def make_sampling(
    seeds: list[int],
    length: int,
    guidance_scale: float,
    guidance_schedule: str,
    temperature: float,
    top_k: int,
    top_p: float,
) -> Sampling:
    """The same options for every seed.

    Args:
        seeds: one a picture.
        length: tokens of a picture N.
        guidance_scale: at least 0; 1 is unguided.
        guidance_schedule: see `guidance_by_rank`.
        temperature: above 0.
        top_k: at least 0, 0 is off.
        top_p: in (0, 1], 1 is off.

    Raises:
        ValueError: an option outside its range.
    """
    scale = real("guidance_scale", guidance_scale)
    heat, share = real("temperature", temperature), real("top_p", top_p)
    best = whole("top_k", top_k, least=0)
    Sampling.create([0], scale)  # named as the user gave it, not rank by rank
    scales = guidance_by_rank(scale, guidance_schedule, length)
    return Sampling.create(seeds, scales, heat, best, share)


def check_prompts(prompt: Prompt) -> list[str]:
    """The prompts of a text-conditional model.

    Raises:
        ValueError: there is none, or one is empty, no text, or holds half of a surrogate pair.
    """
    prompts = listed(prompt)
    if not prompts:
        raise ValueError(f"prompt must be given for this text-conditional model, got {prompt!r}")
    for text in prompts:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"prompt must be text that is not empty, got {text!r}")
        if not _encodable(text):  # no recipe could hold it once the picture is drawn
            raise ValueError(f"prompt must be text in Unicode, got {text!r}")
    return [str(text) for text in prompts]  # without NumPy's own type of text


def _encodable(text: str) -> bool:
    """Whether a text is without lone surrogates, which stand for bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_labels(class_labels: Labels, count: int, names: Sequence[str] | None) -> list[int]:
    """The numbers of the classes that are asked for by number or by name.

    Args:
        class_labels: one or several.
        count: number of classes.
        names: one a class, if they have names.

    Raises:
        ValueError: there is none, or one is unknown.
    """
    labels = listed(class_labels)
    if not labels:
        raise ValueError(
            f"class_labels must be given for this class-conditional model "
            f"({describe_labels(count, names)}), got {shown(class_labels)}"
        )
    return [_label(label, count, list(names or [])) for label in labels]


def _label(label: int | str, count: int, names: list[str]) -> int:
    if isinstance(label, str) and label in names:
        return names.index(label)
    numeric = isinstance(label, str) and label.isdecimal() and len(label) <= _DIGITS
    try:
        return whole("class_labels", int(label) if numeric else label, 0, count - 1)
    except ValueError:
        close = difflib.get_close_matches(str(label), names, n=1) if isinstance(label, str) else []
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"class_labels must be {describe_labels(count, names)}, got {shown(label)}{hint}"
        ) from None


def describe_labels(count: int, names: Sequence[str] | None) -> str:
    """The classes that may be asked for, in words."""
    numbers = f"in 0..{count - 1}"
    if not names:
        return numbers
    listed = ", ".join(names) if len(names) <= _NAMES else f"a name such as {names[0]!r}"
    return f"{numbers} or {listed}"


def draw_seeds(
    seeds: int | Sequence[int] | np.ndarray | Tensor | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    pictures: int,
) -> list[int]:
    """One seed a picture: as given, or else drawn from a generator or from torch's own.

    Args:
        seeds: S for S, S + 1, ..., or one for every picture.
        generator: one for all pictures or one for each; left where drawing took it.
        pictures: how many B.

    Raises:
        ValueError: both are given, or a list has another length than B.
    """
    if seeds is not None and generator is not None:
        raise ValueError(
            f"generator must be left out when seeds is given, got seeds={shown(seeds)}"
        )
    if seeds is not None:
        if not several(seeds):
            first = whole("seeds", seeds, least=0)
            return list(range(first, first + pictures))
        given = listed(seeds)
        _check_length("seeds", len(given), pictures)
        return [whole("seeds", seed, least=0) for seed in given]
    generators = listed(generator)
    for one in generators:
        if not isinstance(one, torch.Generator):
            raise ValueError(f"generator must be a torch.Generator or a list of them, got {one!r}")
    if generator is None or isinstance(generator, torch.Generator):
        return _random_seeds(generator, pictures)
    _check_length("generator", len(generators), pictures)
    return [_random_seeds(one, 1)[0] for one in generators]


def _random_seeds(generator: torch.Generator | None, count: int) -> list[int]:
    device = "cpu" if generator is None else generator.device
    return torch.randint(_SEEDS, (count,), generator=generator, device=device).tolist()


def _check_length(name: str, length: int, pictures: int) -> None:
    if length != pictures:
        raise ValueError(
            f"{name} must have one entry for each of {pictures} pictures, got {length}"
        )


def check_completion(
    image: Given | None,
    mask: Tensor | np.ndarray | None,
    grid: tuple[int, ...],
    size: Size,
    pictures: int,
) -> Completion | None:
    """The cells that are kept of a picture or a clip.

    Args:
        image: see `given_pixels`.
        mask: bool [*grid] or [B, *grid], True keeps a cell.
        grid: (h, w) or (t, h, w) in cells.
        size: of the pictures.
        pictures: how many B.

    Raises:
        ValueError: one is given without the other, or does not fit.
    """
    if (image is None) != (mask is None):
        missing, given = ("image", "mask") if image is None else ("mask", "image")
        raise ValueError(f"{missing} must be given together with {given}, got None")
    if image is None or mask is None:
        return None
    try:
        keep = torch.as_tensor(mask)
        got = f"{keep.dtype} {list(keep.shape)}"
    except (TypeError, RuntimeError, ValueError):
        # A picture is among them: in some libraries its white is kept, in others drawn.
        keep, got = torch.empty(0), type(mask).__name__
    if keep.dtype != torch.bool or tuple(keep.shape) not in (grid, (pictures, *grid)):
        raise ValueError(
            f"mask must be bool of shape {list(grid)} or {[pictures, *grid]}, one entry a cell, "
            f"True where it is kept, got {got}"
        )
    return Completion(given_pixels(image, size, pictures), keep.reshape(-1, math.prod(grid)))
