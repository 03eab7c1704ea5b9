"""Blocks of the small text encoder: those of ViT (Dosovitskiy et al. 2021, equations 2 and 3) with
timm's parameter names and numbers; knows no words.

Importing timm's own brings every model of timm and torchvision, a second before each picture.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

_EPS = 1e-6


class Mlp(nn.Module):
    """Two layers with GELU between them.

    Args:
        dim: width D of what comes in.
        hidden_dim: width between the layers.
        out_dim: width of what goes out.
    """

    def __init__(self, dim: int, hidden_dim: int, out_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., dim]; returns [..., out_dim]."""
        return self.fc2(F.gelu(self.fc1(x)))


class SelfAttention(nn.Module):
    """Multi-head self-attention with biases.

    Args:
        dim: width D.
        heads: number of heads, dividing D.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads = {heads}, got {dim}")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        """x: [B, L, D]; visible: bool [B, 1, L, L], True where attended; returns [B, L, D]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        return self.proj(x.transpose(1, 2).flatten(2))


class TextBlock(nn.Module):
    """x + attention(norm x), then the same with two layers of four times the width.

    Args:
        dim: width D.
        heads: number of heads, dividing D.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=_EPS)
        self.attn = SelfAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=_EPS)
        self.mlp = Mlp(dim, 4 * dim, dim)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        """x: [B, L, D]; visible: bool [B, 1, L, L], True where attended; returns [B, L, D]."""
        x = x + self.attn(self.norm1(x), visible)
        return x + self.mlp(self.norm2(x))
