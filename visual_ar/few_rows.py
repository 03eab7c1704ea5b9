"""A transformer block over the few rows of a decoding pass on a CPU, in fewer and cheaper steps.

The sums are those of `layers.Block`, in another order. With few rows the calls cost more than the
arithmetic, so norms are folded into the weights behind them, gate and value are one product, sums
of residuals are part of products, queries and keys turn in place and keys are written by rows.
Measured on two AVX2 cores beside `layers.Block`, a pass of 6 x 192, 2 rows: 7.8 ms against 9.6.
Knows weights and the cache; knows no model and no decoding method.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from visual_ar.cache import KVCache
from visual_ar.packed import LEAST_WEIGHTS, Met, in_order, order_pays

_MOST_ROWS = 64


class Shared(Protocol):
    """What all layers of a pass share, see `layers.Pass`."""

    @property
    def rotation(self) -> Tensor | None:
        """complex64 [R, Q, 1, 1, d_h / 2]."""

    @property
    def mask(self) -> Tensor | None:
        """[R, 1, Q, S]."""

    @property
    def cache(self) -> KVCache | None:
        """Where keys and values live."""

    @property
    def index(self) -> Tensor:
        """int64 [R h Q], rows of the cache that the queries are written to."""


class Quantised(Protocol):
    """A weight [out, in] that is not kept in floating point."""

    @property
    def steps(self) -> Tensor:
        """Whole numbers [out, in]."""

    @property
    def scale(self) -> Tensor:
        """fp32 [out]."""

    def product(self, x: Tensor) -> Tensor:
        """x: fp32 [n, in]; returns fp32 [n, out]."""


Weight: TypeAlias = Tensor | Quantised


class BlockWeights(NamedTuple):
    """The weights of a block, by their published names; all matrices of one kind.

    Attributes:
        attention_norm: [D], and so `ffn_norm`.
        wqkv: [3 D, D].
        wo: [D, D].
        w1: [F, D] of the gate, and so `w3` of the value.
        w2: [D, F].
        heads: number of heads h.
        eps: of the norms.
    """

    attention_norm: Tensor
    wqkv: Weight
    wo: Weight
    ffn_norm: Tensor
    w1: Weight
    w3: Weight
    w2: Weight
    heads: int
    eps: float

    @property
    def tensors(self) -> list[Tensor]:
        """All of them."""
        found: list[Tensor] = []
        for weight in self[:7]:
            found += [weight] if isinstance(weight, Tensor) else [weight.steps, weight.scale]
        return found


class FewRows:
    """A block's weights, made ready when a pass first has few rows.

    Whether they changed since is looked up once a cache, so once a call of a pipeline. They take
    as much memory as the block again. A copy or a pickle of it is empty.
    """

    def __init__(self) -> None:
        self._cache: weakref.ref[KVCache] | None = None
        self._met: tuple[Met, ...] = ()
        self._ready: _Ready | None = None

    def __reduce__(self) -> tuple[type[FewRows], tuple[()]]:
        return FewRows, ()

    def block(
        self,
        weights: Callable[[], BlockWeights | None],
        x: Tensor,
        layer: int,
        shared: Shared,
    ) -> Tensor | None:
        """The block's output [R, Q, D], None where it has to be computed the usual way.

        Args:
            weights: looks up the weights, None when the block is not made of them alone.
            x: [R, Q, D].
            layer: index of the layer in the cache.
            shared: by the layers of the pass.
        """
        cache = shared.cache
        # Other caches of training write elsewhere.
        if type(cache) is not KVCache or shared.mask is None or not _serves(x):
            return None
        if self._cache is None or self._cache() is not cache:
            self._cache = weakref.ref(cache)
            self._prepare(weights())
        return None if self._ready is None else self._ready.block(x, layer, shared, cache)

    def _prepare(self, weights: BlockWeights | None) -> None:
        if weights is None or not all(map(_lasts, weights.tensors)):
            self._met, self._ready = (), None
            return
        tensors = weights.tensors
        if len(self._met) == len(tensors) and all(map(Met.again, self._met, tensors)):
            return
        self._met, self._ready = tuple(map(Met.now, tensors)), _Ready(weights)


def _serves(x: Tensor) -> bool:
    return (
        x.is_cpu
        and x.dtype == torch.float32
        and x.numel() <= _MOST_ROWS * x.shape[-1]
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def _lasts(weight: Tensor) -> bool:
    """Whether a weight is one whose changes are seen."""
    known = weight.dtype in (torch.float32, torch.int8)
    return weight.is_cpu and known and not weight.is_inference()


class _Product:
    """Products of few rows with a weight [out, in], in the order that is fastest for its size.

    Args:
        weight: multiplies.
        norm: [in], what rows are multiplied with before.
    """

    def __init__(self, weight: Tensor, norm: Tensor | None = None) -> None:
        whole = weight if norm is None else weight * norm
        self._ordered = weight.numel() >= LEAST_WEIGHTS and order_pays()
        self._weight = in_order(whole) if self._ordered else whole.t().contiguous()

    def of(self, x: Tensor) -> Tensor:
        """x: [n, in]; returns [n, out]."""
        if self._ordered:
            return torch.ops.mkldnn._linear_pointwise(x, self._weight, None, "none", [], "")
        return torch.mm(x, self._weight)

    def added(self, x: Tensor, other: Tensor) -> Tensor:
        """The product and another one's sum. x: [n, in]; other: [n, out]; returns [n, out]."""
        if self._ordered:
            multiply = torch.ops.mkldnn._linear_pointwise.binary
            return multiply(x, other, self._weight, None, "add")
        return torch.addmm(other, x, self._weight)


class _QuantisedProduct:
    """The same with a weight that stays as it is."""

    def __init__(self, weight: Quantised, norm: Tensor | None = None) -> None:
        self._weight, self._norm = weight, norm

    def of(self, x: Tensor) -> Tensor:
        return self._weight.product(x if self._norm is None else x * self._norm)

    def added(self, x: Tensor, other: Tensor) -> Tensor:
        return self._weight.product(x).add_(other)


def _product(weight: Weight, norm: Tensor | None = None) -> _Product | _QuantisedProduct:
    if isinstance(weight, Tensor):
        return _Product(weight, norm)
    return _QuantisedProduct(weight, norm)


class _Ready:
    """Weights in the form in which they are used."""

    def __init__(self, weights: BlockWeights) -> None:
        self._heads, self._eps = weights.heads, torch.full((1, 1), weights.eps)
        self._wqkv = _product(weights.wqkv, weights.attention_norm)
        self._wo, self._w2 = _product(weights.wo), _product(weights.w2)
        w1, w3 = weights.w1, weights.w3
        pair: list[Weight] = [w1, w3]
        if isinstance(w1, Tensor) and isinstance(w3, Tensor):
            pair = [torch.cat([w1, w3])]
        self._gate_and_value = [_product(weight, weights.ffn_norm) for weight in pair]

    def block(self, x: Tensor, layer: int, shared: Shared, cache: KVCache) -> Tensor:
        """See `FewRows.block`."""
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        x = self._wo.added(self._attention(x, shape, layer, shared, cache), x)
        normalised = self._normalised(x)
        both = [product.of(normalised) for product in self._gate_and_value]
        gate, value = both if len(both) == 2 else both[0].chunk(2, dim=-1)
        return self._w2.added(F.silu(gate).mul_(value), x).view(shape)

    def _attention(
        self, x: Tensor, shape: torch.Size, layer: int, shared: Shared, cache: KVCache
    ) -> Tensor:
        """x: [n, D]; shape: R, Q, D; returns [n, D]."""
        rows, queries, dim = shape
        qkv = self._wqkv.of(self._normalised(x))
        if shared.rotation is not None:
            pairs = qkv[:, : 2 * dim].view(len(x), 2, self._heads, -1, 2)
            rotation = shared.rotation.reshape(len(x), 1, 1, -1)
            torch.view_as_complex(pairs).mul_(rotation)
        qkv = qkv.view(rows, queries, 3, self._heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        keys, values = cache.write(layer, k, v, shared.index)
        attended = F.scaled_dot_product_attention(q, keys, values, attn_mask=shared.mask)
        return attended.transpose(1, 2).reshape(len(x), dim)

    def _normalised(self, x: Tensor) -> Tensor:
        """Over its root mean square. x: [n, D]."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * torch.addcmul(self._eps, norm, norm, value=1 / x.shape[-1]).rsqrt_()
