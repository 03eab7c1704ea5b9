"""Weights in the order in which oneDNN multiplies few rows fastest; knows no layer and no model."""

from __future__ import annotations

import platform
import weakref
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

_MOST_ROWS = 32
LEAST_WEIGHTS = 1 << 19  # below, a call costs more than the order gains
_SAMPLED = 16
_PACKED_FOR = 16  # rows; the order found for one row is slow for two, this one is good for all


class Met(NamedTuple):
    """Weights that multiplied once: whose, where, after how many changes in place, and a sample.

    Changes through `.data`, by which adapters are merged, count nowhere; the sample sees those that
    reach every row or every column.
    """

    weight: weakref.ref[Tensor]
    address: int
    version: int
    sample: Tensor

    @classmethod
    def now(cls, weight: Tensor) -> Met:
        """weight: [out, in], or [out]."""
        sample = _sample(weight).clone()
        return cls(weakref.ref(weight), weight.data_ptr(), weight._version, sample)

    def again(self, weight: Tensor) -> bool:
        """Whether a weight is that one, unchanged."""
        same = self.weight() is weight and self.address == weight.data_ptr()
        unchanged = same and self.version == weight._version
        return unchanged and torch.equal(_sample(weight), self.sample)


class Packed:
    """A copy of some weights, made when the same weights multiply few rows a second time.

    For 2 to 32 rows in fp32 on x86 CPUs, without gradients. It takes as much memory as the weights
    again. A copy or a pickle of it is empty. Measured beside other work, ms for all weights of
    GPT-B against W @ x.T: 47 to 59 for 2 rows on two AVX2 cores, 97 to 113 for 16 rows on one.
    """

    def __init__(self) -> None:
        self._met: tuple[Met, ...] = ()
        self._order: Tensor | None = None

    def __reduce__(self) -> tuple[type[Packed], tuple[()]]:
        return Packed, ()

    def product(self, x: Tensor, *weights: Tensor) -> Tensor | None:
        """The products with weights, one after the other.

        Args:
            x: [..., in_features].
            weights: [out_features, in_features] of each.

        Returns:
            [..., sum of out_features]; None where another way is faster or the only one.
        """
        size = x.shape[-1]
        if not size < x.numel() <= _MOST_ROWS * size:
            return None
        if sum(weight.numel() for weight in weights) < LEAST_WEIGHTS or not _serves(x, weights):
            return None
        if not (len(self._met) == len(weights) and all(map(Met.again, self._met, weights))):
            # Weights that change with every use are not worth the copy.
            self._met, self._order = tuple(map(Met.now, weights)), None
            return None
        if self._order is None:
            together = weights[0] if len(weights) == 1 else torch.cat(weights)
            self._order = in_order(together)
        return torch.ops.mkldnn._linear_pointwise(x, self._order, None, "none", [], "")


def in_order(weight: Tensor) -> Tensor:
    """A weight [out, in] for `torch.ops.mkldnn._linear_pointwise`; only where `order_pays`."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _PACKED_FOR)


def _sample(weight: Tensor) -> Tensor:
    """About `_SAMPLED` entries of a matrix, from as many rows and columns, or of a vector."""
    diagonal = weight.detach().diagonal() if weight.dim() > 1 else weight.detach()
    return diagonal[:: max(1, len(diagonal) // _SAMPLED)]


def _serves(x: Tensor, weights: tuple[Tensor, ...]) -> bool:
    return (
        x.is_cpu
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and bool(torch.backends.mkldnn.enabled)
        and all(weight.dtype == x.dtype for weight in weights)
        and not any(weight.is_inference() for weight in weights)  # they count no versions
        and order_pays()
        and not torch.compiler.is_compiling()
    )


@cache
def order_pays() -> bool:
    """Whether this machine has products with weights in order."""
    # The operators that torch's own compiler emits for frozen weights; they have no public name.
    names = ("_reorder_linear_weight", "_linear_pointwise")
    return (
        platform.machine().lower() in ("x86_64", "amd64")
        and torch.backends.mkldnn.is_available()
        and all(hasattr(torch.ops.mkldnn, name) for name in names)
    )
