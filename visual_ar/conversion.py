"""Published checkpoints to model folders: tells the family of parameters, writes safetensors.

Knows neither what else is in a file nor the inside of a family; each one maps its own checkpoints.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor

from visual_ar.checkpoint_file import read_checkpoint, unwrap
from visual_ar.write_beside import naming


def convert(source: Path, output: Path, grid: int | None = None) -> str:
    """Turns a published checkpoint into a folder that `from_pretrained` of its class reads.

    Args:
        source: a .pt, .pth, .bin, .ckpt or .safetensors file, or the .index.json of shards, of a
            LlamaGen or NAR generator, a VQ tokenizer, or a binary tokenizer of Open-MAGVIT2,
            BitDance or BSQ-ViT.
        output: folder to write; it must be new or empty.
        grid: rows and columns of a generator's grid, when the file name does not tell.

    Returns:
        one sentence saying what was written, and what of the file was taken.

    Raises:
        FileNotFoundError: there is no such file.
        FileExistsError: the output folder holds something.
        ValueError: the file is damaged, of no known family, or does not fit its family.
    """
    _check_output(output)
    taken = unwrap(read_checkpoint(source))
    model_class, config, mapped = _recognise(taken.parameters, source, grid)
    model = _build(model_class, config, mapped)
    _write(model, output)
    count = sum(tensor.numel() for tensor in mapped.values()) / 1e6
    report = f"{model_class.__name__} with {count:.1f} million parameters written to {output}"
    return f"{report}: {taken.how}" if taken.how else report


def _recognise(
    state: dict[str, Tensor], source: Path, grid: int | None
) -> tuple[type[ModelMixin], dict[str, Any], Mapping[str, Tensor]]:
    """Class, constructor arguments and parameters of a checkpoint."""
    if "medusa_output.weight" in state or "output_R.weight" in state:
        family = import_module("visual_ar.models.nar")
        return family.NAR, *family.convert_official(state, source.name, grid)
    if "tok_embeddings.weight" in state:
        family = import_module("visual_ar.models.llamagen")
        return family.LlamaGen, *family.convert_official(state, source.name, grid)
    if "quantize.embedding.weight" in state:
        family = import_module("visual_ar.tokenizers.vq")
        return family.VQTokenizer, *family.convert_official(state)
    if "decoder.adaptive.0.gamma.weight" in state:
        family = import_module("visual_ar.tokenizers.binary")
        return family.BinaryTokenizer, *family.convert_official(state)
    if any(key.endswith("post_quant_embed.weight") for key in state):
        family = import_module("visual_ar.tokenizers.bsq")
        return family.BSQTokenizer, *family.convert_official(state)
    raise ValueError(
        f"{source} is no LlamaGen or NAR generator and no VQ tokenizer or binary tokenizer: it has "
        "neither tok_embeddings.weight nor quantize.embedding.weight nor "
        f"decoder.adaptive.0.gamma.weight nor post_quant_embed.weight, but {sorted(state)[:3]}"
    )


def _build(
    model_class: type[ModelMixin], config: dict[str, Any], state: Mapping[str, Tensor]
) -> ModelMixin:
    """A model whose parameters are the checkpoint's tensors themselves, not copies."""
    with torch.device("meta"):
        model = model_class(**config)
    expected = model.state_dict()
    for key, tensor in expected.items():
        if key not in state:
            raise ValueError(f"the checkpoint lacks the parameter {key} of {list(tensor.shape)}")
        if state[key].shape != tensor.shape:
            raise ValueError(
                f"{key} must have shape {list(tensor.shape)}, got {list(state[key].shape)}"
            )
    for key in state:
        if key not in expected:
            raise ValueError(f"the checkpoint has a parameter that the model lacks: {key}")
    model.load_state_dict(state, assign=True)
    return model


def _check_output(output: Path) -> None:
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise FileExistsError(f"output must be a new or empty folder, got {output}")


def _write(model: ModelMixin, output: Path) -> None:
    """Saves beside the output first, so that an interrupted run leaves no half-written model."""
    output.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        folder = beside / "model"
        with naming(output):
            model.save_pretrained(folder)
            folder.replace(output)
    finally:
        shutil.rmtree(beside)
