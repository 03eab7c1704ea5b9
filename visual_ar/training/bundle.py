"""Saves what a run trained as one pipeline folder; knows nothing about training."""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.models.llamagen import LlamaGen
from visual_ar.pipeline import VisualARPipeline
from visual_ar.text_encoder import TextEncoder
from visual_ar.tokenizers.base import VisualTokenizer
from visual_ar.training.recipe import SamplingDefaults


def save_pipeline(
    model: LlamaGen,
    tokenizer: VisualTokenizer,
    text_encoder: TextEncoder | None,
    class_names: list[str] | None,
    sampling: SamplingDefaults,
    output: Path,
) -> None:
    """Writes a pipeline with its weights in float16; parts of an older one are replaced.

    Args:
        model: the generator; neither it nor the other parts are changed.
        tokenizer: whose tokens it draws.
        text_encoder: of a text-conditional model.
        class_names: one a class, of a class-conditional model.
        sampling: defaults of the pipeline.
        output: its folder. Files there that are no part of a pipeline, such as a card, stay.
    """
    parts: list[Any] = [copy.deepcopy(part) for part in (model, tokenizer, text_encoder)]
    for part in parts:
        if part is not None:
            part.to("cpu", torch.float16).register_to_config(_name_or_path=output.name)
    side = model.config.grid_size * tokenizer.downsample
    pipe = VisualARPipeline(
        model=parts[0],
        image_tokenizer=parts[1],
        scheduler=SpeculativeJacobiDecoding(),
        text_encoder=parts[2],
        class_names=class_names,
        height=side,
        width=side,
        guidance_scale=sampling.guidance_scale,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
    )
    beside = output.with_name(f"{output.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    pipe.save_pretrained(beside)
    output.mkdir(parents=True, exist_ok=True)
    for path in sorted(beside.iterdir()):
        target = output / path.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(path, target)
    beside.rmdir()
