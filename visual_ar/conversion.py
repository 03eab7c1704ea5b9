"""Published checkpoints to model folders: reads a file, tells its family, writes safetensors.

Pickled files are read here and nowhere else, and only as tensors. Knows nothing about the inside of
a family; each one maps its own checkpoints.
"""

from __future__ import annotations

import pickle
import shutil
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from safetensors.torch import load_file
from torch import Tensor

_PICKLED = (".pt", ".pth", ".bin", ".ckpt")
# BSQ-ViT's running averages, DDP, DeepSpeed, Lightning; FSDP files have none
_WRAPPERS = ("ema_state_dict", "model", "module", "state_dict")


def convert(source: Path, output: Path, grid: int | None = None) -> str:
    """Turns a published checkpoint into a folder that `from_pretrained` of its class reads.

    Args:
        source: a .pt, .pth, .bin, .ckpt or .safetensors file of a LlamaGen or NAR generator, a VQ
            tokenizer, or a binary tokenizer of Open-MAGVIT2, BitDance or BSQ-ViT.
        output: folder to write; it must be new or empty.
        grid: rows and columns of a generator's grid, when the file name does not tell.

    Returns:
        one sentence saying what was written.

    Raises:
        FileNotFoundError: there is no such file.
        FileExistsError: the output folder holds something.
        ValueError: the file is damaged, of no known family, or does not fit its family.
    """
    _check_output(output)
    state = unwrap(read_checkpoint(source))
    model_class, config, mapped = _recognise(state, source, grid)
    model = _build(model_class, config, mapped)
    _write(model, output)
    count = sum(tensor.numel() for tensor in mapped.values()) / 1e6
    return f"{model_class.__name__} with {count:.1f} million parameters written to {output}"


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """What a checkpoint file holds, on the CPU; pickled tensors stay on disk until they are used.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, not a checkpoint, or holds more than tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint not found: {path}")
    if path.suffix not in (*_PICKLED, ".safetensors"):
        raise ValueError(
            f"a checkpoint must end in {', '.join(_PICKLED)} or .safetensors, got {path.name}"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = _unpickle(path)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds more than tensors, or is not a checkpoint") from error
    except Exception as error:  # damaged bytes make torch's unpickler stumble in every way
        raise ValueError(f"{path} is truncated or not a checkpoint") from error
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} must hold parameters by name, got {type(state).__name__}")
    return state


def unwrap(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The parameters of a checkpoint, out of the dictionary that training scripts put them in.

    Raises:
        ValueError: there are no parameters in it.
    """
    state: Any = checkpoint
    for wrapper in _WRAPPERS:
        if isinstance(checkpoint.get(wrapper), Mapping):
            inner = checkpoint[wrapper]
            # NAR's video models lie one level deeper, beside their arguments.
            state = inner["sd"] if isinstance(inner.get("sd"), Mapping) else inner
            break
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"the checkpoint holds no parameters, only {sorted(map(str, state))[:5]}")
    return tensors


def _unpickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        # Files from before PyTorch 1.6 are no zip archives and cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True)


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
        model.save_pretrained(folder)
        folder.replace(output)
    finally:
        shutil.rmtree(beside)
