"""The LlamaGen transformer (Sun et al. 2024, arXiv:2406.06525) and the map from its checkpoints.

Class- or text-conditional next-token prediction over a square grid of codes, with the published
parameter names. Knows nothing about decoding methods, tokenizers or text encoders.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import ModelMixin  # noqa: F401  (diffusers looks for it in a component's module)
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from visual_ar.cache import KVCache
from visual_ar.conditioning.condition import Condition
from visual_ar.layers import Block, Linear, Pass, RMSNorm, check_heads, default_ffn_dim
from visual_ar.layout import Layout, raster_layout
from visual_ar.models.llama_shared import (
    ConditionedModel,
    full_mask,
    initialise,
    prefix_embedder,
)

SIZES: dict[str, tuple[int, int, int]] = {
    "GPT-B": (12, 12, 768),
    "GPT-L": (24, 16, 1024),
    "GPT-XL": (36, 20, 1280),
    "GPT-XXL": (48, 24, 1536),
    "GPT-XXXL": (48, 40, 2560),
    "GPT-1B": (22, 32, 2048),
    "GPT-3B": (24, 32, 3200),
    "GPT-7B": (32, 32, 4096),
}
"""Published sizes: layers, heads, width."""

Adapt = Callable[[int, Tensor], Tensor]
"""What a derived model does to the input [R, Q, D] of block i; i = n_layer is the last norm."""

_DOWNSAMPLE = 16  # pixels a cell in every published generator
_NOT_PARAMETERS = re.compile(r"(^|\.)(freqs_cis|causal_mask)$|\.kv_cache\.")


class LlamaGen(ConditionedModel):
    """The LlamaGen transformer. Give `num_classes` or `caption_dim`, not both.

    Args:
        dim: width D.
        n_layer: number of blocks.
        n_head: heads of a block; D / n_head must be a multiple of 4.
        vocab_size: number of codes V.
        grid_size: rows and columns of the grid.
        num_classes: classes of a class-conditional model.
        caption_dim: width C of the caption features of a text-conditional model.
        caption_length: number of caption features, the prefix length of a text-conditional model.
        ffn_dim: width of the feed-forward; by default 2/3 of 4 D rounded up to a multiple of 256.
        dropout: of embeddings and residual branches, in training.

    Raises:
        ValueError: neither or both conditions are given, or the heads do not fit the width.
    """

    capabilities = frozenset({"trees"})
    _repeated_blocks = ["Block"]  # noqa: RUF012  (read by diffusers' compile_repeated_blocks)

    @register_to_config
    def __init__(
        self,
        dim: int = 768,
        n_layer: int = 12,
        n_head: int = 12,
        vocab_size: int = 16384,
        grid_size: int = 16,
        num_classes: int | None = None,
        caption_dim: int | None = None,
        caption_length: int = 120,
        ffn_dim: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self._build()

    def _build(self) -> None:
        """Makes the parts that the configuration says, for this class and those of other tokens."""
        config = self.config
        dim, n_head = config.dim, config.n_head
        self.cls_embedding = prefix_embedder(
            dim, config.num_classes, config.caption_dim, config.caption_length
        )
        check_heads(dim, n_head)
        self.tok_embeddings: Any = self._token_embedding()
        hidden_dim = config.ffn_dim or default_ffn_dim(dim)
        self.layers = nn.ModuleList(
            Block(dim, n_head, hidden_dim, config.dropout) for _ in range(config.n_layer)
        )
        self.norm = RMSNorm(dim)
        self.output: Any = self._head()
        self.apply(initialise)
        self._zero_head()

    def _zero_head(self) -> None:
        nn.init.zeros_(self.output.weight)

    def _token_embedding(self) -> nn.Module:
        return nn.Embedding(self.vocab_size, self.config.dim)

    def _head(self) -> nn.Module:
        return Linear(self.config.dim, self.vocab_size)

    @property
    def head_weights(self) -> list[Tensor]:
        """[V, D] of the one head."""
        return [self.output.weight]

    def layout(self, grid: tuple[int, ...]) -> Layout:
        """The raster order of the grid the model was trained for.

        Raises:
            ValueError: another grid.
        """
        expected = (self.config.grid_size, self.config.grid_size)
        if tuple(grid) != expected:
            raise ValueError(f"grid must be {expected} for this model, got {tuple(grid)}")
        return raster_layout(expected)

    def embed(self, tokens: Tensor, ranks: Tensor) -> Tensor:
        """Embeddings [R, Q, D] of tokens, whatever their rank. tokens: int64 [R, Q] or as bits."""
        return self.tok_embeddings(tokens)

    def forward(
        self,
        x: Tensor,
        ranks: Tensor,
        cache: KVCache | None = None,
        visible: Tensor | None = None,
        slots: Tensor | None = None,
    ) -> Tensor:
        """Runs the blocks and the last norm.

        Args:
            x: [R, Q, D] input embeddings.
            ranks: int64 [R, Q] from -P on; ranks past the picture take its last position.
            cache: written at `slots`; None attends within x.
            visible: bool [R, 1, Q, S], True where attended; None is causal.
            slots: int64 [R, Q] of the cache; None is P + rank.

        Returns:
            [R, Q, D] hidden states, ready for `predict`.
        """
        return self._forward(x, ranks, cache, visible, slots)

    def _forward(
        self,
        x: Tensor,
        ranks: Tensor,
        cache: KVCache | None,
        visible: Tensor | None,
        slots: Tensor | None,
        adapt: Adapt | None = None,
    ) -> Tensor:
        positions = ranks + self.prefix_length
        slots = positions if slots is None else slots
        if cache is not None and visible is None:
            visible = cache.visible(slots)
        mask = None
        if visible is not None:
            mask = torch.where(visible, 0.0, -torch.inf).to(x.dtype)
        return self._run(x, positions, mask, cache, slots, adapt)

    def _run(
        self,
        x: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        cache: KVCache | None = None,
        slots: Tensor | None = None,
        adapt: Adapt | None = None,
    ) -> Tensor:
        """`forward` behind its masks.

        Args:
            x: [R, Q, D].
            positions: int64 [R, Q], P + rank.
            mask: [R, 1, Q, S] added to scores.
            cache: None attends within x.
            slots: int64 [R, Q] of the cache; None without one.
        """
        table = self.rotation_table(x.device)
        rotation = table[positions.clamp(max=len(table) - 1)][:, :, None, None]
        shared = Pass(rotation, mask, cache, slots)
        if self.training:
            x = F.dropout(x, self.config.dropout)
        for layer, block in enumerate(self.layers):
            x = block(x if adapt is None else adapt(layer, x), layer, shared)
        return self.norm(x if adapt is None else adapt(len(self.layers), x))

    def predict(self, hidden: Tensor, ranks: Tensor) -> Tensor:
        """fp32 logits [R, Q, V] of the token after each hidden state. hidden: [R, Q, D]."""
        return self.output(hidden).float()

    def features(self, tokens: Tensor, condition: Condition, same_columns: bool = False) -> Tensor:
        """Hidden states from which every token of whole pictures is predicted, for training.

        Args:
            tokens: int64 [B, N] in decode order, or bool [B, N, d].
            condition: of B rows.
            same_columns: the columns of the prefix are copies of one another and none is padding.
                Then one of them, weighed by their number, does for all, and costs less.

        Returns:
            [B, N, D], column r the state of rank r - 1.
        """
        batch, length = tokens.shape[:2]
        prefix = self.prefix_length
        ranks = torch.arange(-prefix, length - 1, device=tokens.device).expand(batch, -1)
        x = torch.cat([condition.prefix, self.embed(tokens, ranks)[:, :-1]], dim=1)
        if same_columns:
            x, ranks = x[:, prefix - 1 :], ranks[:, prefix - 1 :]
            mask = x.new_full((length, length), -torch.inf).triu(1)
            mask[:, 0] = math.log(prefix)
            return self._run(x, ranks + prefix, mask)
        end = torch.arange(1, x.shape[1] + 1, device=x.device)
        visible = None if prefix == 1 else full_mask(condition.mask, end)
        return self.forward(x, ranks, visible=visible)[:, prefix - 1 :]

    def logits(self, tokens: Tensor, condition: Condition, same_columns: bool = False) -> Tensor:
        """Logits of every token of whole pictures given those before it, for training.

        Arguments as for `features`. Returns fp32 [B, N, V].
        """
        ranks = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[:2])
        return self.predict(self.features(tokens, condition, same_columns), ranks)


def convert_official(
    state: Mapping[str, Tensor], name: str = "", grid: int | None = None
) -> tuple[dict[str, int | None], dict[str, Tensor]]:
    """Configuration and parameters of a published checkpoint, which stores no configuration.

    Args:
        state: the parameters, out of whatever the file wraps them in.
        name: file name, such as c2i_B_256.pt; the picture size in it gives the grid.
        grid: rows and columns of the grid, when the name does not tell.

    Returns:
        arguments of `LlamaGen`, and its state dict.

    Raises:
        ValueError: parameters are missing, the size is not a published one, or the grid is unknown.
    """
    state = parameters_of(state)
    config = read_config(state, "LlamaGen", SIZES)
    return config | {"grid_size": grid or grid_from_name(name)}, state


def parameters_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What was trained, without the tables and caches that some published files hold too."""
    return {key: value for key, value in state.items() if not _NOT_PARAMETERS.search(key)}


def read_config(
    state: Mapping[str, Tensor],
    family: str,
    sizes: Mapping[str, tuple[int, int, int]],
    extra_layers: int = 0,
) -> dict[str, int | None]:
    """All arguments of a model that its parameters tell; they do not tell the grid.

    Args:
        state: the parameters, with the published names of LlamaGen.
        family: name of the family, for the message.
        sizes: published sizes, layers, heads and width by name.
        extra_layers: blocks that the sizes do not count.

    Raises:
        ValueError: parameters are missing or the size is not a published one.
    """
    vocab_size, dim = shape_of(state, "tok_embeddings.weight")
    layers = {int(key.split(".")[1]) for key in state if key.startswith("layers.")}
    n_layer = len(layers) - extra_layers
    heads = {(depth, width): heads for depth, heads, width in sizes.values()}
    if (n_layer, dim) not in heads:
        raise ValueError(
            f"a {family} checkpoint must have a published size ({', '.join(sizes)}), "
            f"got {n_layer} layers of width {dim}"
        )
    config: dict[str, int | None] = {
        "dim": dim,
        "n_layer": n_layer,
        "n_head": heads[n_layer, dim],
        "vocab_size": vocab_size,
        "ffn_dim": shape_of(state, "layers.0.feed_forward.w1.weight")[0],
    }
    if "cls_embedding.uncond_embedding" in state:
        length, width = shape_of(state, "cls_embedding.uncond_embedding")
        return config | {"caption_length": length, "caption_dim": width}
    classes = shape_of(state, "cls_embedding.embedding_table.weight")[0] - 1
    return config | {"num_classes": classes}


def shape_of(state: Mapping[str, Tensor], key: str) -> tuple[int, int]:
    """Rows and columns of a matrix; ValueError where the checkpoint lacks it."""
    if key not in state:
        raise ValueError(f"the checkpoint lacks the parameter {key}")
    rows, columns = state[key].shape
    return rows, columns


def grid_from_name(name: str) -> int:
    """Rows and columns of the grid, by the picture size in a file name such as c2i_B_256.pt."""
    sizes = re.findall(r"(?<!\d)(256|384|512)(?!\d)", name)
    if len(set(sizes)) != 1:
        raise ValueError(
            f"cannot tell the grid from the file name {name!r}; give it with --grid, "
            "for example 16 for 256x256 pictures"
        )
    return int(sizes[0]) // _DOWNSAMPLE
