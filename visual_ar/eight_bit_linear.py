"""Linear maps that multiply with 8-bit weights, of which no other copy is kept; knows no model.

Weights alone are quantised, a scale a row (`eight_bit`): LLM.int8(), Dettmers et al. 2022, section
2.1, without quantised activations. A row's products depend on that row alone, so that neither the
batch nor later drafts enter a law. Up to eight rows are multiplied by torch's kernel for 8-bit
weights, which rounds activations to bfloat16; more rows by blocks of weights in float32. Measured
on two AVX2 cores, a weight of 768 x 4,096, ms beside the fastest product in float32:

| rows            | 2         | 8         | 16        | 32        |
|-----------------|-----------|-----------|-----------|-----------|
| kernel          | 0.60/1.18 | 1.36/1.60 | 2.13/2.11 | 4.58/2.95 |
| float32 blocks  | 1.32/1.18 | 2.26/1.60 | 1.67/2.11 | 2.92/2.95 |
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from visual_ar import eight_bit
from visual_ar.layers import Linear

_WEIGHT = "weight"
_FEW_ROWS = 8
_BLOCK = 1 << 19  # weights in float32 at a time, 2 MB: larger buffers are mapped anew every time


class EightBit(NamedTuple):
    """A weight in 8 bits.

    Attributes:
        steps: int8 [out, in].
        scale: fp32 [out], of a step.
        one: bf16 [out] of ones.
    """

    steps: Tensor
    scale: Tensor
    one: Tensor

    def product(self, x: Tensor) -> Tensor:
        """x: fp32 [n, in]; returns fp32 [n, out]."""
        if x.shape[0] <= _FEW_ROWS and x.is_cpu:
            # The kernel's own scales would be rounded to bfloat16.
            sums = torch._weight_int8pack_mm(x.bfloat16(), self.steps, self.one)
            return sums * self.scale
        turned, out = x.t(), self.steps.shape[0]
        rows = max(1, _BLOCK // self.steps.shape[1])
        sums = x.new_empty(out, x.shape[0])
        for start in range(0, out, rows):
            part = slice(start, start + rows)
            torch.mm(self.steps[part].to(x.dtype), turned, out=sums[part])
        return sums.t().contiguous().mul_(self.scale)


class EightBitLinear(nn.Module):
    """A linear map without bias, in place of a `Linear`.

    Args:
        weight: floating point [out, in], rounded to 8 bits.

    Attributes:
        weight: int8 [out, in].
        scale: fp32 [out].
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        stored = eight_bit.compress({_WEIGHT: weight.detach()}, fewest=1)
        scale = stored[_WEIGHT + eight_bit.SCALE].float()
        self.weight = nn.Parameter(stored[_WEIGHT], requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self._one = torch.ones(len(scale), dtype=torch.bfloat16)

    @property
    def eight_bit(self) -> EightBit:
        """The weight."""
        return EightBit(self.weight, self.scale, self._one)

    def forward(self, x: Tensor) -> Tensor:
        """Maps the last dimension. x: any numbers [..., in]; returns fp32 [..., out]."""
        product = self.eight_bit.product(x.reshape(-1, x.shape[-1]).float())
        return product.view(*x.shape[:-1], -1)


def compute_in_8_bits(model: nn.Module) -> None:
    """Puts linear maps with 8-bit weights in the place of those in floating point.

    Args:
        model: changed in place.

    Raises:
        ValueError: it has no linear map of ours, or other numbers than float32 on a CPU.
    """
    found = [
        (module, name, child)
        for module in model.modules()
        for name, child in module.named_children()
        if type(child) is Linear
    ]
    if not found:
        raise ValueError(f"dtype int8 needs a model of ours, got a {type(model).__name__}")
    for _, _, child in found:
        if child.weight.dtype != torch.float32 or not child.weight.is_cpu:
            raise ValueError(
                f"dtype int8 needs weights in float32 on a CPU, got {child.weight.dtype} on "
                f"{child.weight.device}"
            )
    for module, name, child in found:
        setattr(module, name, EightBitLinear(child.weight))


def number_format(model: ModelMixin) -> torch.dtype:
    """In which numbers a model multiplies: int8, or the type of its weights."""
    eight_bits = any(isinstance(module, EightBitLinear) for module in model.modules())
    return torch.int8 if eight_bits else model.dtype


def check_saved(model: ModelMixin) -> None:
    """Raises ValueError for a model that `compute_in_8_bits` changed: no file looks like that."""
    if number_format(model) == torch.int8:
        raise ValueError(
            "dtype must be that of the weights to save a pipeline, got int8; load it without"
        )
