"""Layers shared by the generator families: linear maps, norm, feed-forward, rotation, attention.

Knows nothing about any family, decoding method or tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visual_ar.cache import KVCache
from visual_ar.few_rows import BlockWeights, FewRows
from visual_ar.packed import Packed

_FEW_ROWS = 64


class Linear(nn.Linear):
    """A linear map without bias that multiplies few rows quickly on a CPU.

    Decoding multiplies 2 to about 64 rows by every weight. `F.linear` calls MKL for x @ W.T, which
    is slow then; (W @ x.T).T reads W nearly as fast as the memory allows. Measured on two AVX2
    cores in fp32, ms for all weights of a model, that product against `F.linear`:

    | rows             | 1     | 2     | 4     | 16    | 64      | 128     |
    |------------------|-------|-------|-------|-------|---------|---------|
    | GPT-B, 390 MB    | 32/30 | 22/49 | 29/73 | 46/71 | 114/168 | 272/247 |
    | 8 x 256, 30 MB   | 4.1/4.4 | 3.3/6.9 | 3.4/7.0 | 6.5/9.4 | 12.6/12.2 | 23/20 |

    Large weights are faster still in another order, see `Packed`.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        self._packed = Packed()

    def forward(self, x: Tensor) -> Tensor:
        """Maps the last dimension. x: [..., in_features]; returns [..., out_features]."""
        product = self._packed.product(x, self.weight)
        if product is not None:
            return product
        rows = x.numel() // self.in_features
        few = 1 < rows <= _FEW_ROWS and x.is_cpu and x.dtype == torch.float32
        if not few:
            return F.linear(x, self.weight)
        product = torch.mm(self.weight, x.reshape(rows, self.in_features).t())
        return product.t().contiguous().view(*x.shape[:-1], self.out_features)


class RMSNorm(nn.Module):
    """Root mean square norm (Zhang and Sennrich 2019), in fp32; scaled after the cast.

    Args:
        dim: size of the last dimension.
        eps: added to the mean square.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalises the last dimension. x: [..., dim], any float type; returns the same."""
        if x.is_cpu and x.dtype == torch.float32 and not torch.is_grad_enabled():
            # torch has no kernel of its own here and runs eight (25 us a row pair against 14).
            size = x.shape[-1]
            scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            scale = scale.square_().add_(self.eps * size).rsqrt_().mul_(size**0.5)
            return (x * scale).mul_(self.weight)
        normalised = F.rms_norm(x.float(), self.weight.shape, eps=self.eps)
        return normalised.type_as(x) * self.weight


class SwiGLU(nn.Module):
    """The gated feed-forward w2(silu(w1 x) * w3 x) of Shazeer (2020).

    Args:
        dim: width D.
        hidden_dim: width F of the gate.
        dropout: probability of dropping an output in training.
    """

    def __init__(self, dim: int, hidden_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.w1 = Linear(dim, hidden_dim)
        self.w3 = Linear(dim, hidden_dim)
        self.w2 = Linear(hidden_dim, dim)
        self.dropout = dropout
        self._packed = Packed()

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., D]; returns [..., D]."""
        both = self._packed.product(x, self.w1.weight, self.w3.weight)
        gate, value = (self.w1(x), self.w3(x)) if both is None else both.chunk(2, dim=-1)
        x = self.w2(F.silu(gate) * value)
        return F.dropout(x, self.dropout) if self.training else x


def check_heads(dim: int, n_head: int) -> None:
    """Raises ValueError unless a width can be split into heads that turn in two directions."""
    if n_head < 1:
        raise ValueError(f"n_head must be at least 1, got {n_head}")
    if dim % (4 * n_head):
        raise ValueError(f"dim must be a multiple of 4 n_head = {4 * n_head}, got {dim}")


@dataclass(frozen=True, eq=False)
class Pass:
    """What all layers of one pass share, computed once.

    Attributes:
        rotation: complex64 [R, Q, 1, 1, d_h / 2], see `rotate`; None turns nothing.
        mask: [R, 1, Q, S] added to the scores; None is the causal mask over one full sequence.
        cache: where keys and values live; None attends within the pass only.
        slots: int64 [R, Q], slots that the queries are written to; None without a cache.
    """

    rotation: Tensor | None = None
    mask: Tensor | None = None
    cache: KVCache | None = None
    slots: Tensor | None = None

    @cached_property
    def index(self) -> Tensor:
        """int64 [R h Q], rows of the cache that the queries are written to."""
        assert self.cache is not None and self.slots is not None
        return self.cache.index(self.slots)


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions, over the pass itself or through a cache.

    Args:
        dim: width D.
        heads: number of heads h, dividing D.
        dropout: probability of dropping an output in training.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.wqkv = Linear(dim, 3 * dim)
        self.wo = Linear(dim, dim)
        self.dropout = dropout

    def forward(self, x: Tensor, layer: int, shared: Pass) -> Tensor:
        """Attends.

        Args:
            x: [R, Q, D].
            layer: index of the layer in the cache.
            shared: what the layers share.

        Returns:
            [R, Q, D].
        """
        rows, queries, dim = x.shape
        qkv = self.wqkv(x).view(rows, queries, 3, self.heads, dim // self.heads)
        turned = qkv[:, :, :2]
        if shared.rotation is not None:
            turned = rotate(turned, shared.rotation)
        q, k = turned.transpose(1, 3).unbind(2)
        v = qkv[:, :, 2].transpose(1, 2)
        if shared.cache is not None and shared.slots is not None:
            k, v = shared.cache.update(layer, k, v, shared.slots)
        causal = shared.mask is None
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=shared.mask, is_causal=causal)
        x = self.wo(x.transpose(1, 2).reshape(rows, queries, dim))
        return F.dropout(x, self.dropout) if self.training else x


class Block(nn.Module):
    """A pre-norm transformer block: x + attention(norm x), then the same with the feed-forward.

    Args:
        dim: width D.
        heads: number of heads.
        hidden_dim: width of the feed-forward.
        dropout: of both residual branches, in training.
    """

    def __init__(self, dim: int, heads: int, hidden_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = Attention(dim, heads, dropout)
        self.feed_forward = SwiGLU(dim, hidden_dim, dropout)
        self.attention_norm = RMSNorm(dim)
        self.ffn_norm = RMSNorm(dim)
        self._few_rows = FewRows()

    def forward(self, x: Tensor, layer: int, shared: Pass) -> Tensor:
        """x: [R, Q, D]; layer: index in the cache; returns [R, Q, D]."""
        few = self._few_rows.block(self._weights, x, layer, shared)
        if few is not None:
            return few
        x = x + self.attention(self.attention_norm(x), layer, shared)
        return x + self.feed_forward(self.ffn_norm(x))

    def _weights(self) -> BlockWeights | None:
        """All that the block computes with; None where somebody added to its parts."""
        parts = list(self.modules())[1:]
        if self.training or any(_has_hooks(part) for part in parts):
            return None
        if any(type(part) not in _PARTS and not hasattr(part, _QUANTISED) for part in parts):
            return None
        attention, feed_forward = self.attention, self.feed_forward
        return BlockWeights(
            attention_norm=self.attention_norm.weight,
            wqkv=_weight(attention.wqkv),
            wo=_weight(attention.wo),
            ffn_norm=self.ffn_norm.weight,
            w1=_weight(feed_forward.w1),
            w3=_weight(feed_forward.w3),
            w2=_weight(feed_forward.w2),
            heads=attention.heads,
            eps=self.attention_norm.eps,
        )


_PARTS = (Attention, Linear, RMSNorm, SwiGLU)
_QUANTISED = "eight_bit"  # what `EightBitLinear` has its weight under


def _weight(linear: nn.Module) -> Any:
    return getattr(linear, _QUANTISED, linear.weight)


def _has_hooks(part: nn.Module) -> bool:
    return bool(part._forward_hooks or part._forward_pre_hooks)


def default_ffn_dim(dim: int) -> int:
    """Feed-forward width of the published sizes: 2/3 of 4 D, rounded up to a multiple of 256."""
    return -(-int(2 * 4 * dim / 3) // 256) * 256


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotates neighbouring pairs (x0, x1), (x2, x3), ... (rotary positions, Su et al. 2021).

    The product of complex numbers is one operation where real ones need seven.

    Args:
        x: [..., d_h].
        rotation: complex64, broadcastable to [..., d_h / 2].

    Returns:
        [..., d_h] in the type of x.
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).type_as(x)


def rotations_2d(side: int, head_dim: int, device: torch.device, base: float = 1e4) -> Tensor:
    """Rotations of a square grid: the first half of the pairs turn with the row, the rest with the
    column.

    Args:
        side: rows and columns of the grid.
        head_dim: d_h, a multiple of 4.
        device: where to put the table.
        base: pair k of its half turns by position * base^(-2k / (d_h / 2)).

    Returns:
        complex64 [side^2, d_h / 2], cells in raster order.
    """
    half = head_dim // 2
    frequency = base ** -(torch.arange(0, half, 2, device=device).float() / half)
    angle = torch.arange(side, device=device)[:, None] * frequency  # [side, d_h / 4]
    by_row = angle[:, None].expand(side, side, -1)
    by_column = angle[None].expand(side, side, -1)
    angles = torch.cat([by_row, by_column], dim=-1).flatten(0, 1)
    return torch.polar(torch.ones_like(angles), angles)
