"""Stores matrices as 8-bit integers with one scale a row; knows tensors by name, no models.

The rows are those of the first axis, an output of a layer each, and the scale takes the largest
entry of a row to 127: absolute-maximum quantisation of weights alone (Dettmers et al. 2022,
"LLM.int8()", section 2.1, by rows). A model that is loaded from such a file computes in floating
point as any other. A file says so by holding int8 under a parameter's name, and the scales under
that name and `SCALE`.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from pathlib import Path

import torch
from diffusers import ModelMixin
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import Tensor

from visual_ar.write_beside import written_beside

SCALE = ".scale_of_rows"
_LARGEST = 127
_FEWEST = 1024  # entries of a matrix for which a scale a row is worth it


class EightBitModel(ModelMixin):
    """A component whose weights diffusers may find stored in 8 bits."""

    def _fix_state_dict_keys_on_load(self, state_dict: MutableMapping[str, Tensor]) -> None:
        """Called by diffusers between reading a file and filling the parameters."""
        super()._fix_state_dict_keys_on_load(state_dict)
        restored = restore(state_dict)
        state_dict.clear()
        state_dict.update(restored)


def compress(state: Mapping[str, Tensor], fewest: int | None = None) -> dict[str, Tensor]:
    """Weights in 8 bits where that pays, the others in float16.

    Args:
        state: floating-point parameters by name.
        fewest: entries that a matrix in 8 bits has; None is where that pays.

    Returns:
        matrices and kernels as int8 of the same shape, with float16 scales [rows].

    Raises:
        ValueError: a row has an entry that is not finite.
    """
    stored = {}
    fewest = _FEWEST if fewest is None else fewest
    for name, value in state.items():
        if value.ndim < 2 or value.numel() < fewest:
            stored[name] = value.to(torch.float16).contiguous()
            continue
        rows = value.float().flatten(1)
        if not bool(rows.isfinite().all()):
            raise ValueError(f"{name} must be finite to be stored in 8 bits")
        # The scale as it will be read; a row of zeros has any.
        scale = (rows.abs().amax(dim=1) / _LARGEST).to(torch.float16)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        steps = (rows / scale.float()[:, None]).round().clamp(-_LARGEST, _LARGEST)
        stored[name] = steps.to(torch.int8).view(value.shape).contiguous()
        stored[name + SCALE] = scale
    return stored


def restore(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that `compress` stored, all in float32; other weights stay as they are.

    Raises:
        ValueError: a matrix in 8 bits has no scales, or not one a row.
    """
    if all(value.dtype != torch.int8 for value in stored.values()):
        return dict(stored)
    state = {}
    for name, value in stored.items():
        if name.endswith(SCALE):
            continue
        state[name] = value.float()  # all alike, because diffusers goes by the first one's dtype
        if value.dtype == torch.int8:
            scale = stored.get(name + SCALE)
            if scale is None or scale.shape != value.shape[:1]:
                found = "none" if scale is None else list(scale.shape)
                raise ValueError(f"{name} in 8 bits must have {len(value)} scales, got {found}")
            state[name] *= scale.float().view(-1, *[1] * (value.ndim - 1))
    return state


def largest_error(row: Tensor) -> float:
    """The most that `compress` moves an entry of a row: half a step, and what the scale is off.

    The scale is rounded to float16, which may cut off the largest entry by 2^-11 of it.
    """
    largest = float(row.float().abs().amax())
    return largest * (0.5 / _LARGEST + 2.0**-11)


def rewrite(folder: Path) -> None:
    """Stores a saved component in 8 bits, in place.

    Raises:
        FileNotFoundError: the folder holds no weights in one file.
    """
    path = folder / SAFETENSORS_WEIGHTS_NAME
    with written_beside(path) as part:
        save_file(compress(restore(load_file(path))), part, metadata={"format": "pt"})
