"""Saves what a run trained as a pipeline folder or as a change of one; knows no training."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import nn

from visual_ar import eight_bit, folder_schema, loading
from visual_ar.accel.groups import GroupDecoding
from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.accel.loop.contract import Decoding
from visual_ar.eight_bit import EightBitModel
from visual_ar.folder_schema import read_index
from visual_ar.hub import Hub
from visual_ar.models.bitwise import SubcodeLlamaGen
from visual_ar.models.denoising import DenoisingLlamaGen
from visual_ar.models.draft_head import DraftHead
from visual_ar.models.llama_shared import ConditionedModel
from visual_ar.pipeline import OPTIONS, VisualARPipeline
from visual_ar.size import Size
from visual_ar.text_encoder import TextEncoder
from visual_ar.tokenizers.visual_tokenizer import VisualTokenizer
from visual_ar.training.recipe import SamplingDefaults
from visual_ar.write_beside import naming, written_beside

SETTINGS = ("class_names", "height", "width", *OPTIONS)


def save_pipeline(
    model: ConditionedModel,
    tokenizer: VisualTokenizer,
    text_encoder: TextEncoder | None,
    class_names: list[str] | None,
    sampling: SamplingDefaults,
    output: Path,
    scheduler: Decoding | None = None,
) -> None:
    """Writes a pipeline with its weights in float16; parts of an older one are replaced.

    Args:
        model: the generator; neither it nor the other parts are changed.
        tokenizer: whose tokens it draws.
        text_encoder: of a text-conditional model.
        class_names: one a class, of a class-conditional model.
        sampling: defaults of the pipeline.
        output: its folder. Files there that are no part of a pipeline, such as a card, stay.
        scheduler: its decoding method; None is speculative Jacobi decoding, or group decoding of
            a model that predicts several tokens at once.
    """
    parts = _in_float16((model, tokenizer, text_encoder), output.name)
    side = model.config.grid_size * tokenizer.downsample
    chain = model.layout(tokenizer.grid(Size(side, side))).is_chain
    pipe = VisualARPipeline(
        model=parts[0],
        image_tokenizer=parts[1],
        scheduler=scheduler or (SpeculativeJacobiDecoding() if chain else GroupDecoding()),
        text_encoder=parts[2],
        class_names=class_names,
        height=side,
        width=side,
        guidance_scale=sampling.guidance_scale,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
    )
    _write(pipe, output)


def save_with_draft_head(pipe: VisualARPipeline, head: DraftHead, output: Path) -> None:
    """Writes a pipeline with its weights in float16 and a draft head for its model.

    Args:
        pipe: not changed.
        head: made for its model; not changed.
        output: as for `save_pipeline`.
    """
    given = {key: value for key, value in pipe.components.items() if key != "draft_head"}
    # The head was made for the weights in float32, but a fingerprint outlives the rounding.
    parts = _in_float16((*given.values(), head), output.name)
    settings = {key: pipe.config[key] for key in SETTINGS}
    components = dict(zip((*given, "draft_head"), parts, strict=True))
    _write(VisualARPipeline(**components, **settings), output)


def _in_float16(parts: Iterable[Any], name: str) -> list[Any]:
    """Copies of components; methods and components that are None stay what they are."""
    copies = [copy.deepcopy(part) for part in parts]
    for part in copies:
        if part is not None:
            part.register_to_config(_name_or_path=name)
        if isinstance(part, nn.Module):
            # Not by diffusers' `to`, which warns of modules to keep in float32 and names none.
            nn.Module.to(part, "cpu", torch.float16)
    return copies


def _write(pipe: VisualARPipeline, output: Path) -> None:
    """Saves a pipeline beside its folder, then moves its parts there."""
    with _beside(output) as beside:
        pipe.save_pretrained(beside)


def save_delta(
    model: DenoisingLlamaGen | SubcodeLlamaGen,
    base: str,
    fingerprint: str,
    scheduler: Decoding,
    output: Path,
) -> None:
    """Writes what a model adds to the one of another pipeline, in float16.

    `VisualARPipeline.from_pretrained` reads it where the other pipeline is found by its name.

    Args:
        model: only what its `delta_prefix` names is written.
        base: name of the other pipeline.
        fingerprint: of its model, see `loading.fingerprint`.
        scheduler: decoding method of the pipeline.
        output: its folder. Files there that are no part of it, such as a card, stay.
    """
    with _beside(output) as beside:
        added = {
            name: value.to("cpu", torch.float16).contiguous()
            for name, value in model.state_dict().items()
            if name.startswith(model.delta_prefix)
        }
        model.save_config(beside / "model")
        save_file(added, beside / "model" / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        scheduler.save_pretrained(beside / "scheduler")
        index = {
            "_class_name": VisualARPipeline.__name__,
            folder_schema.BASE: base,
            folder_schema.BASE_SHA256: fingerprint,
            "model": [type(model).__module__, type(model).__name__],
            "scheduler": [type(scheduler).__module__, type(scheduler).__name__],
        }
        (beside / folder_schema.INDEX).write_text(json.dumps(index, indent=2) + "\n")


def share(folder: Path, name: str, base: str) -> None:
    """Lets a saved pipeline use a component of another one instead of its own copy.

    Args:
        folder: of the pipeline; its copy is deleted.
        name: of the component, which must have weights.
        base: name of the other pipeline, by which it will be found.

    Raises:
        ValueError: the two components differ by more than that the other is stored in 8 bits.
        FileNotFoundError: there is no such pipeline.
    """
    theirs = loading.answers_to(loading.holder(base, name, Hub(offline=True)))
    own = loading.fingerprint(folder / name)
    if own not in theirs or not (folder / name).is_dir():
        other = theirs[0][:12]
        raise ValueError(f"{name} must have the weights of {base!r}, {other}, got {own[:12]}")
    either = own if own == theirs[0] else [theirs[0], own]
    index = read_index(folder)
    index[folder_schema.SHARED] = index.get(folder_schema.SHARED, {}) | {name: [base, either]}
    _write_index(folder, index)
    shutil.rmtree(folder / name)


def pack(trained: Path, output: Path, base: str = "", tokenizer: Path | None = None) -> None:
    """Makes the small folder that is bundled of a trained pipeline, or of what one adds.

    All weights are stored in 8 bits, and what the pipeline `base` holds too is not stored again.
    What was made for the weights as they were trained also accepts those in 8 bits.

    Args:
        trained: folder `pipeline` or `delta` of a run; not changed.
        output: the folder to write. Files there that are no part of it, such as a card, stay.
        base: name of the other pipeline; nothing is shared without.
        tokenizer: folder `model` of the run of a better decoder for the same tokens, which takes
            the place of the pipeline's.

    Raises:
        ValueError: the tokenizer has another encoder, so that its tokens would be others.
    """
    with _beside(output) as beside:
        shutil.copytree(trained, beside)
        if tokenizer is not None:
            _check_same_encoder(tokenizer, beside / "image_tokenizer")
            shutil.copytree(tokenizer, beside / "image_tokenizer", dirs_exist_ok=True)
        for name in ("text_encoder", "image_tokenizer"):
            if base and (beside / name).is_dir():
                theirs = loading.answers_to(loading.holder(base, name, Hub(offline=True)))
                if loading.fingerprint(beside / name) in theirs:
                    share(beside, name, base)
        for path in sorted(beside.glob(f"*/{SAFETENSORS_WEIGHTS_NAME}")):
            if issubclass(loading.component(beside, path.parent.name), EightBitModel):
                _store_in_8_bits(beside, path.parent.name)


def _store_in_8_bits(folder: Path, name: str) -> None:
    """Stores a component of a saved pipeline anew, and notes which weights it stands for."""
    replaced = loading.answers_to(folder / name)
    eight_bit.rewrite(folder / name)
    found = loading.fingerprint(folder / name)
    if found in replaced:
        return
    index = read_index(folder)
    known = index.get(folder_schema.STANDS_FOR, {})
    index[folder_schema.STANDS_FOR] = known | {name: {found: list(replaced)}}
    _write_index(folder, index)


def _write_index(folder: Path, index: dict[str, Any]) -> None:
    with written_beside(folder / folder_schema.INDEX) as part:
        part.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _check_same_encoder(ours: Path, theirs: Path) -> None:
    weights = [load_file(folder / SAFETENSORS_WEIGHTS_NAME) for folder in (ours, theirs)]
    one, other = (
        {key: value.half() for key, value in state.items() if key.startswith("encoder.")}
        for state in weights
    )
    if one.keys() != other.keys() or not all(torch.equal(one[key], other[key]) for key in one):
        raise ValueError(
            f"tokenizer must keep the encoder of the pipeline's, got another in {ours}"
        )


@contextmanager
def _beside(output: Path) -> Iterator[Path]:
    """Gives a folder to fill, whose parts then move to the output; it is gone in the end."""
    beside = output.with_name(f"{output.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        with naming(output):
            yield beside
            _replace(beside, output)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _replace(beside: Path, output: Path) -> None:
    """Moves every part of a folder into another one."""
    output.mkdir(parents=True, exist_ok=True)
    for path in sorted(beside.iterdir()):
        target = output / path.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(path, target)
