"""What an evaluation draws, stage by stage, and how a pipeline does it; measures nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

import visual_ar
from visual_ar.accel.loop.contract import Decoding
from visual_ar.cast import Cast
from visual_ar.conditioning.condition import Condition
from visual_ar.evaluation.quality import Source
from visual_ar.sampling import Sampling

if TYPE_CHECKING:
    from visual_ar.pipeline import VisualARPipeline
    from visual_ar.request import Request


@dataclass(frozen=True)
class Workload:
    """What is drawn, one function a stage.

    Attributes:
        cast: the generator, its decode order and whoever is with it.
        condition: encodes the pictures of the given numbers, counted from 0.
        sampling: options of pictures with the given seeds.
        detokenise: tokens [B, N, *] in decode order to pixels [B, 3, H, W].
    """

    cast: Cast
    condition: Callable[[Sequence[int]], Condition]
    sampling: Callable[[list[int]], Sampling]
    detokenise: Callable[[Tensor], Tensor]


class Options(NamedTuple):
    """Sampling options of a pipeline call; None is the pipeline's own."""

    guidance_scale: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None

    def filled(self, pipe: VisualARPipeline) -> dict[str, Any]:
        """The values that a call uses, and the schedule of its guidance, the pipeline's own."""
        given = {**self._asdict(), "guidance_schedule": None}
        return {k: pipe.config[k] if value is None else value for k, value in given.items()}


DEFAULTS = Options()

PROMPTS = ("strawberry", "cat face", "waving hand", "crescent moon")  # of the bundled model's words


def usual_subjects(pipe: VisualARPipeline) -> list[str]:
    """What to draw when nothing is named: all classes, or some words."""
    return pipe.conditioner.known or list(PROMPTS)


def from_pipeline(
    pipe: VisualARPipeline,
    subjects: Sequence[str],
    options: Options = DEFAULTS,
) -> Workload:
    """What a call of the pipeline draws, without its scheduler.

    Args:
        pipe: draws text or classes.
        subjects: prompts or class names; pictures take them in turn.
        options: of sampling.

    Raises:
        ValueError: an unknown class, an empty prompt, no subject or an option outside its range.
    """
    if not subjects:
        raise ValueError("prompts must name at least one picture, got none")
    first = _request(pipe, subjects, [0] * len(subjects), options)
    layout = first.layout

    def condition(numbers: Sequence[int]) -> Condition:
        names = [subjects[number % len(subjects)] for number in numbers]
        return pipe.encode_condition(_request(pipe, names, [0] * len(names), options))

    def sampling(seeds: list[int]) -> Sampling:
        names = list(islice(cycle(subjects), len(seeds)))
        return _request(pipe, names, seeds, options).sampling

    def detokenise(tokens: Tensor) -> Tensor:
        return pipe.image_tokenizer.decode(layout.cells(tokens), layout.grid)

    return Workload(pipe.cast(layout), condition, sampling, detokenise)


def source(
    pipe: VisualARPipeline,
    method: Decoding,
    options: Options = DEFAULTS,
) -> Source:
    """The pipeline with some decoding method as a source of pictures, rounded as files are.

    Args:
        pipe: draws text or classes.
        method: used instead of the pipeline's own.
        options: of sampling.
    """

    @torch.inference_mode()
    def draw(subjects: list[str], seeds: list[int]) -> Tensor:
        work = from_pipeline(pipe, subjects, options)
        condition = work.condition(range(len(subjects)))
        sampling = work.sampling(seeds)
        for step in method.decode(work.cast, condition, sampling):
            tokens = step.tokens
        pixels = work.detokenise(tokens).float().clamp(-1, 1)
        return ((pixels + 1) * 127.5).round() / 127.5 - 1

    settings = {"method": type(method).__name__, **_public(method.config), **options.filled(pipe)}
    settings["visual_ar"] = visual_ar.__version__
    return Source(draw, f"{fingerprint(pipe)} {json.dumps(settings, sort_keys=True, default=str)}")


def fingerprint(pipe: VisualARPipeline) -> str:
    """Hash of all weights and of the number format: equal pipelines draw equally.

    A model that drafts is no component, but what hybrid decoding draws depends on it.
    """
    drafter = pipe.draft_model
    drafting = {} if drafter is None else {"draft_model": drafter}
    return fingerprint_parts({**pipe.components, **drafting})


def fingerprint_parts(parts: Mapping[str, Any]) -> str:
    """The same of some components by name; what has no weights counts for nothing."""
    digest = hashlib.sha256()
    for name, part in sorted(parts.items()):
        if isinstance(part, torch.nn.Module):
            digest.update(f"{name} {part.dtype} {_public(part.config)}".encode())
            for key, value in sorted(part.state_dict().items()):
                digest.update(key.encode())
                digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _request(
    pipe: VisualARPipeline, subjects: Sequence[str], seeds: list[int], options: Options
) -> Request:
    """The checked call."""
    call: dict[str, Any] = pipe.conditioner.asks(list(subjects))
    return pipe.check_inputs(**call, **options._asdict(), seeds=seeds)


def _public(config: Any) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}
