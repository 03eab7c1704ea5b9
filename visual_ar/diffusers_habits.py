"""What users of diffusers type by habit, and what stands in its place here.

Has sentences and checks of values; knows neither how pipelines are loaded nor how they draw.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn, TypedDict

import torch

INSTEAD_OF_CALL = {
    "num_inference_steps": "the decoding method decides the passes, see pipe.scheduler",
    "negative_prompt": "guidance is against the empty condition, see guidance_scale",
    "negative_prompt_embeds": "guidance is against the empty condition, see guidance_scale",
    "prompt_embeds": "give the prompt itself",
    "latents": "tokens are drawn from seeds; give seeds or generator",
    "eta": "give temperature, top_k or top_p",
    "timesteps": "tokens are not denoised; the method is pipe.scheduler",
    "sigmas": "tokens are not denoised; the method is pipe.scheduler",
    "strength": "cells are kept or drawn; give image and mask",
    "mask_image": "give mask, bool by cell",
    "num_frames": "give frames",
    "seed": "give seeds",
    "class_label": "give class_labels",
    "callback": "give callback_on_step_end",
    "callback_steps": "callback_on_step_end is called after every pass",
    "guidance_rescale": "give guidance_schedule",
    "clip_skip": "prompts are read by the last layer",
    "max_sequence_length": "the text encoder has one length",
    "cross_attention_kwargs": "attention has no options",
}
"""Argument of a call in diffusers -> what to do here."""

_COMPONENTS = ("model", "image_tokenizer", "text_encoder", "draft_head")
_LEFT_OUT: dict[str, tuple[tuple[Any, ...], str]] = {
    "variant": ((None,), "weights have no variants; dtype chooses their type"),
    "device_map": ((None,), "move the pipeline with .to(device)"),
    "use_safetensors": ((None, True), "only safetensors are read"),
    "subfolder": ((None, ""), "give the path of the folder that holds model_index.json"),
    "custom_pipeline": ((None,), "no code is loaded"),
    "trust_remote_code": ((None, False), "no code is loaded"),
}
"""Argument of loading -> the values that change nothing, and why there are no others."""
_EIGHT_BITS = ("int8", torch.int8)


class LoadOptions(TypedDict, total=False):
    """What `from_pretrained` takes for users of diffusers.

    Attributes:
        torch_dtype: another name of dtype.
        scheduler: a decoding method in place of the saved one.
        cache_dir: folder of the hub's cache.
        force_download: download again what the cache holds.
        low_cpu_mem_usage: changes nothing; weights are loaded without a second copy anyway.
        variant: must be None, see `check_loading`, like all below.
        device_map: None.
        use_safetensors: None or True.
        subfolder: None.
        custom_pipeline: None.
        trust_remote_code: False.
    """

    torch_dtype: torch.dtype | str | None
    scheduler: Any
    cache_dir: str | PathLike[str] | None
    force_download: bool
    low_cpu_mem_usage: bool
    variant: None
    device_map: None
    use_safetensors: bool | None
    subfolder: str | None
    custom_pipeline: None
    trust_remote_code: bool


def check_loading(options: Mapping[str, Any]) -> None:
    """Checks the options of `from_pretrained` that users of diffusers give.

    Raises:
        TypeError: there is no such option.
        ValueError: an option has a value that would change what is loaded, and cannot.
    """
    for name, value in options.items():
        if name in _COMPONENTS:
            raise TypeError(
                f"from_pretrained takes no argument {name!r}; build VisualARPipeline of its parts"
            )
        if name not in LoadOptions.__annotations__:
            hint = _close(name, LoadOptions.__annotations__)
            raise TypeError(f"from_pretrained takes no argument {name!r}{hint}")
        nothing, why = _LEFT_OUT.get(name, ((), ""))
        if why and not any(value is one or value == one for one in nothing):
            raise ValueError(f"{name} must be left out, {why}; got {value!r}")


def one_dtype(dtype: Any, torch_dtype: Any) -> torch.dtype | None:
    """The type of weights that was asked for under either name.

    Raises:
        ValueError: it is none that weights can have, or the two differ.
    """
    for name, value in (("dtype", dtype), ("torch_dtype", torch_dtype)):
        floating = isinstance(value, torch.dtype) and value.is_floating_point
        if value is not None and not floating and value not in _EIGHT_BITS:
            raise ValueError(
                f"{name} must be a type such as torch.bfloat16, or 'int8', got {value!r}"
            )
    if dtype is not None and torch_dtype is not None and dtype != torch_dtype:
        raise ValueError(f"torch_dtype must be left out beside dtype {dtype}, got {torch_dtype}")
    found = torch_dtype if dtype is None else dtype
    return torch.int8 if found in _EIGHT_BITS else found


def check_saving(
    folder: str | PathLike[str], safe_serialization: bool, variant: str | None, push_to_hub: bool
) -> None:
    """Checks the options of saving a pipeline.

    Raises:
        ValueError: the folder could not be loaded, or would be uploaded.
        NotADirectoryError: a file has its name.
    """
    if not safe_serialization:
        raise ValueError("safe_serialization must be True, pickles are never loaded, got False")
    if variant is not None:
        raise ValueError(f"variant must be left out, weights have no variants, got {variant!r}")
    if push_to_hub:
        raise ValueError("push_to_hub must be False, upload the folder with hf upload, got True")
    if Path(folder).is_file():
        raise NotADirectoryError(f"save_directory must be a folder, got {folder!s}")


def refuse_call(name: str, known: Iterable[str]) -> NoReturn:
    """Raises TypeError for an argument that a pipeline's call does not have."""
    instead = INSTEAD_OF_CALL.get(name)
    hint = f"; {instead}" if instead else _close(name, known)
    raise TypeError(f"a pipeline's call takes no argument {name!r}{hint}")


def _close(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


class Unsupported:
    """Switches of diffusers pipelines that would do nothing here, and say so."""

    def enable_attention_slicing(self, slice_size: str | int | None = "auto") -> NoReturn:
        """Raises NotImplementedError."""
        raise NotImplementedError("attention slicing is not supported; draw fewer pictures at once")

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> NoReturn:
        """Raises NotImplementedError."""
        raise NotImplementedError("xformers is not used; attention is torch's own, and efficient")

    def enable_vae_slicing(self) -> NoReturn:
        """Raises NotImplementedError."""
        raise NotImplementedError("slicing is not supported; draw fewer pictures at once")

    def enable_vae_tiling(self) -> NoReturn:
        """Raises NotImplementedError."""
        raise NotImplementedError("tiling is not supported; a picture is decoded as a whole")
