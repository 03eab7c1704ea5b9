"""The NAR transformer (He et al. 2025, arXiv:2503.10696) and the map from its checkpoints.

Next-neighbour prediction over a grid of a picture or a clip: one head for every axis, each after a
block more than the one before, and a token's logits are the mean over the neighbours that exist.
Knows nothing about decoding methods, tokenizers or text encoders.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from diffusers import ModelMixin  # noqa: F401  (diffusers looks for it in a component's module)
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from visual_ar.cache import KVCache
from visual_ar.conditioning.condition import Condition
from visual_ar.layers import Block, Linear, Pass, RMSNorm, check_heads, default_ffn_dim
from visual_ar.layout import ABSENT, Layout, neighbour_layout
from visual_ar.models.llama_shared import (
    ConditionedModel,
    full_mask,
    initialise,
    prefix_embedder,
)
from visual_ar.models.llamagen import grid_from_name, parameters_of, read_config

SIZES: dict[str, tuple[int, int, int]] = {
    "NAR-B": (12, 12, 768),
    "NAR-M": (18, 16, 1024),
    "NAR-L": (24, 16, 1024),
    "NAR-LP": (30, 20, 1280),
    "NAR-XL": (36, 20, 1280),
    "NAR-XXL": (48, 24, 1536),
}
"""Published sizes: layers before the first head, heads of attention, width."""

_VIDEO_GRID = 16  # rows and columns of the published video models
_IMAGE_HEADS = {
    "norm": "norms.0",
    "output": "outputs.0",
    "medusa_norm": "norms.1",
    "medusa_output": "outputs.1",
}
_VIDEO_HEADS = {
    f"{part}_{axis}": f"{part}s.{number}"
    for number, axis in enumerate("RDB")
    for part in ("norm", "output")
}


class _Tables(NamedTuple):
    """What the order of the grid fixes, on one device. S = P + N slots.

    Attributes:
        cell: int64 [S], P + cell of the rank in each slot; prefix slots stand for themselves.
        end: int64 [S], first slot that each slot does not see.
        sources: int64 [N, A], see `Layout.sources`.
        present: bool [N, A], which sources exist.
    """

    cell: Tensor
    end: Tensor
    sources: Tensor
    present: Tensor


class NAR(ConditionedModel):
    """The NAR transformer. Give `num_classes` or `caption_dim`, not both.

    The heads predict the cell to the right, below and, of clips, in the next frame.

    Args:
        dim: width D.
        n_layer: blocks before the first head; every further head has one more.
        n_head: heads of attention; D / n_head must be a multiple of 4.
        vocab_size: number of codes V.
        grid_size: rows and columns of the grid.
        frames: frames of a clip; None is a picture. Clips have learned positions, pictures rotary.
        num_classes: classes of a class-conditional model.
        caption_dim: width C of the caption features of a text-conditional model.
        caption_length: number of caption features, the prefix length of a text-conditional model.
        ffn_dim: width of the feed-forward; by default 2/3 of 4 D rounded up to a multiple of 256.
        dropout: of embeddings and residual branches, in training.

    Raises:
        ValueError: neither or both conditions are given, or the heads do not fit the width.
    """

    capabilities = frozenset({"some sources"})
    _repeated_blocks = ["Block"]  # noqa: RUF012  (read by diffusers' compile_repeated_blocks)

    @register_to_config
    def __init__(
        self,
        dim: int = 768,
        n_layer: int = 12,
        n_head: int = 12,
        vocab_size: int = 16384,
        grid_size: int = 16,
        frames: int | None = None,
        num_classes: int | None = None,
        caption_dim: int | None = None,
        caption_length: int = 120,
        ffn_dim: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.cls_embedding = prefix_embedder(dim, num_classes, caption_dim, caption_length)
        check_heads(dim, n_head)
        self.tok_embeddings = nn.Embedding(vocab_size, dim)
        axes = len(self.grid)
        hidden_dim = ffn_dim or default_ffn_dim(dim)
        blocks = n_layer + axes - 1
        self.layers = nn.ModuleList(Block(dim, n_head, hidden_dim, dropout) for _ in range(blocks))
        self.norms = nn.ModuleList(RMSNorm(dim) for _ in range(axes))
        self.outputs = nn.ModuleList(Linear(dim, vocab_size) for _ in range(axes))
        self._known: _Tables | None = None  # not buffers: they are computed where they are needed
        self.apply(initialise)
        for weight in self.head_weights:
            nn.init.zeros_(weight)
        if frames is not None:
            length = self.prefix_length + math.prod(self.grid)
            self.abs_pe = nn.Parameter(torch.randn(1, length, dim) * 0.02)

    @property
    def head_weights(self) -> list[Tensor]:
        """[V, D] of every head."""
        return list(self.outputs.parameters())

    @property
    def grid(self) -> tuple[int, ...]:
        """Cells along each axis, (H, W) or (T, H, W)."""
        side, frames = self.config.grid_size, self.config.frames
        return (side, side) if frames is None else (frames, side, side)

    def layout(self, grid: tuple[int, ...]) -> Layout:
        """The next-neighbour order of the grid the model was trained for.

        Raises:
            ValueError: another grid.
        """
        if tuple(grid) != self.grid:
            raise ValueError(f"grid must be {self.grid} for this model, got {tuple(grid)}")
        return neighbour_layout(self.grid)

    def embed(self, tokens: Tensor, ranks: Tensor) -> Tensor:
        """Embeddings of tokens, whatever their rank. tokens: int64 [R, Q]; returns [R, Q, D]."""
        return self.tok_embeddings(tokens)

    def forward(
        self,
        x: Tensor,
        ranks: Tensor,
        cache: KVCache | None = None,
        visible: Tensor | None = None,
        slots: Tensor | None = None,
    ) -> Tensor:
        """Runs the blocks and the norms of the heads.

        Args:
            x: [R, Q, D] input embeddings.
            ranks: int64 [R, Q] from -P on; ranks past the grid take its last position.
            cache: written at `slots`; None runs x as whole sequences from rank -P on.
            visible: bool [R, 1, Q, S], True where attended; None is the prefix and all groups up
                to the rank's own.
            slots: int64 [R, Q] of the cache; None is P + rank.

        Returns:
            [R, Q, A, D] hidden states, one for every head, ready for `predict`.
        """
        positions = ranks + self.prefix_length
        slots = positions if slots is None else slots
        tables = self._tables(x.device)
        if visible is None:
            end = tables.end[positions.clamp(max=len(tables.end) - 1)]
            if cache is None:
                visible = full_mask(x.new_ones(1, self.prefix_length, dtype=torch.bool), end[0])
            else:
                visible = cache.visible(slots, end)
        mask = x.new_zeros(visible.shape).masked_fill_(~visible, -torch.inf)
        return self._run(x, positions, mask, cache, slots)

    def _run(
        self,
        x: Tensor,
        positions: Tensor,
        mask: Tensor,
        cache: KVCache | None = None,
        slots: Tensor | None = None,
    ) -> Tensor:
        """`forward` behind its masks.

        Args:
            x: [R, Q, D].
            positions: int64 [R, Q], P + rank.
            mask: [R, 1, Q, S] added to scores.
            cache: None attends within x.
            slots: int64 [R, Q] of the cache; None without one.
        """
        tables = self._tables(x.device)
        cell = tables.cell[positions.clamp(max=len(tables.cell) - 1)]
        rotation = None
        if self.config.frames is None:
            rotation = self.rotation_table(x.device)[cell][:, :, None, None]
        if self.training:
            x = F.dropout(x, self.config.dropout)
        if self.config.frames is not None:
            x = x + self.abs_pe[0, cell]
        shared = Pass(rotation, mask, cache, slots)
        states = []
        first = len(self.layers) - len(self.norms)
        for layer, block in enumerate(self.layers):
            x = block(x, layer, shared)
            if layer >= first:
                states.append(self.norms[layer - first](x))
        return torch.stack(states, dim=2)

    def predict(self, hidden: Tensor, ranks: Tensor, present: Tensor | None = None) -> Tensor:
        """The mean over the heads whose source exists.

        Args:
            hidden: [R, Q, A, D], from every source its own head's hidden state.
            ranks: int64 [R, Q], the ranks predicted.
            present: bool [R, Q, A], the sources to read; None is all that exist. Logits without a
                source are 0.

        Returns:
            fp32 logits [R, Q, V].
        """
        if present is None:
            present = self._tables(hidden.device).present[ranks.clamp(0, math.prod(self.grid) - 1)]
        share = present / present.sum(-1, keepdim=True).clamp(min=1)
        shared = hidden * share.to(hidden.dtype)[..., None]  # D numbers instead of V logits
        logits, *others = (
            head(shared[:, :, axis]).float() for axis, head in enumerate(self.outputs)
        )
        for more in others:
            logits = logits + more
        return logits

    def logits(self, tokens: Tensor, condition: Condition, same_columns: bool = False) -> Tensor:
        """Logits of every token of whole pictures given the groups before it, for training.

        Args:
            tokens: int64 [B, N] in decode order.
            condition: of B rows.
            same_columns: the columns of the prefix are copies of one another and none is padding.
                Then one of them, weighed by their number, does for all, and costs less.

        Returns:
            fp32 [B, N, V].
        """
        batch, prefix = len(tokens), self.prefix_length
        tables = self._tables(tokens.device)
        ranks = torch.arange(-prefix, tokens.shape[1], device=tokens.device).expand(batch, -1)
        x = torch.cat([condition.prefix, self.embed(tokens, ranks[:, prefix:])], dim=1)
        visible = full_mask(condition.mask, tables.end)
        mask = x.new_zeros(visible.shape).masked_fill_(~visible, -torch.inf)
        positions = ranks + prefix
        if same_columns:
            x, positions = x[:, prefix - 1 :], positions[:, prefix - 1 :]
            mask = mask[:, :, prefix - 1 :, prefix - 1 :]
            mask[..., 0] = math.log(prefix)
        hidden = self._run(x, positions, mask)
        columns = tables.sources.clamp(min=-1) + (hidden.shape[1] - tokens.shape[1])
        of_axes = [hidden[:, columns[:, axis], axis] for axis in range(len(self.grid))]
        return self.predict(torch.stack(of_axes, dim=2), ranks[:, prefix:])

    def _tables(self, device: torch.device) -> _Tables:
        if self._known is None or self._known.cell.device != device:
            with torch.inference_mode(False):  # tables made while sampling must serve training
                layout = neighbour_layout(self.grid)
                prefix = torch.arange(self.prefix_length)
                self._known = _Tables(
                    cell=torch.cat([prefix, layout.cell + len(prefix)]).to(device),
                    end=torch.cat([prefix + 1, layout.group_end + len(prefix)]).to(device),
                    sources=layout.sources.to(device),
                    present=(layout.sources != ABSENT).to(device),
                )
        return self._known


def convert_official(
    state: Mapping[str, Tensor], name: str = "", grid: int | None = None
) -> tuple[dict[str, int | None], dict[str, Tensor]]:
    """Configuration and parameters of a published checkpoint of the image or the video model.

    Args:
        state: the parameters, out of whatever the file wraps them in.
        name: file name; the picture size in it gives the grid of an image model.
        grid: rows and columns of the grid, when the name does not tell; 16 for a video model.

    Returns:
        arguments of `NAR`, and its state dict.

    Raises:
        ValueError: parameters are missing, the size is not a published one, or the grid is unknown
            or does not fit.
    """
    state = parameters_of(state)
    video = "output_R.weight" in state
    heads = _VIDEO_HEADS if video else _IMAGE_HEADS
    config = read_config(state, "NAR", SIZES, extra_layers=2 if video else 1)
    renamed = {_rename(key, heads): value for key, value in state.items()}
    if not video:
        return config | {"grid_size": grid or grid_from_name(name)}, renamed
    side = grid or _VIDEO_GRID
    if "abs_pe" not in state:
        raise ValueError("the checkpoint lacks the parameter abs_pe")
    length = state["abs_pe"].shape[1] - 1  # one prefix token
    if length % side**2:
        raise ValueError(f"grid must divide the {length} cells of a clip into frames, got {side}")
    return config | {"grid_size": side, "frames": length // side**2}, renamed


def _rename(key: str, heads: Mapping[str, str]) -> str:
    part, dot, rest = key.partition(".")
    return f"{heads.get(part, part)}{dot}{rest}"
