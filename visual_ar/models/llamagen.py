"""The LlamaGen transformer (Sun et al. 2024, arXiv:2406.06525) and the map from its checkpoints.

Class- or text-conditional next-token prediction over a square grid of codes, with the published
parameter names. Knows nothing about decoding methods, tokenizers or text encoders.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ModelMixin  # noqa: F401  (diffusers looks for it in a component's module)
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from visual_ar.cache import KVCache
from visual_ar.conditioning import Condition
from visual_ar.layers import Block, Linear, Pass, RMSNorm, rotations_2d
from visual_ar.layout import Layout, raster_layout
from visual_ar.models.base import TokenModel

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

_DOWNSAMPLE = 16  # pixels a cell in every published generator
_INITIAL_STD = 0.02
_NOT_PARAMETERS = re.compile(r"(^|\.)(freqs_cis|causal_mask)$|\.kv_cache\.")


class LabelEmbedder(nn.Module):
    """Class embeddings; the last row stands for no class. Used as a prefix of one token."""

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, dim)

    def forward(self, labels: Tensor) -> Tensor:
        """labels: int64 [R]; returns [R, 1, D]."""
        return self.embedding_table(labels)[:, None]


class CaptionProjection(nn.Module):
    """A two-layer perceptron with tanh-approximated GELU, from caption features to the width."""

    def __init__(self, caption_dim: int, dim: int) -> None:
        super().__init__()
        self.fc1 = Linear(caption_dim, dim)
        self.fc2 = Linear(dim, dim)

    def forward(self, features: Tensor) -> Tensor:
        """features: [R, P, C]; returns [R, P, D]."""
        return self.fc2(F.gelu(self.fc1(features), approximate="tanh"))


class CaptionEmbedder(nn.Module):
    """Projects caption features; features that stand for no caption are a buffer, never trained."""

    uncond_embedding: Tensor  # [P, C]

    def __init__(self, caption_dim: int, caption_length: int, dim: int) -> None:
        super().__init__()
        self.cap_proj = CaptionProjection(caption_dim, dim)
        nothing = torch.randn(caption_length, caption_dim) / caption_dim**0.5
        self.register_buffer("uncond_embedding", nothing)

    def forward(self, features: Tensor) -> Tensor:
        """features: [R, P, C]; returns [R, P, D]."""
        return self.cap_proj(features)


class LlamaGen(TokenModel):
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

    capabilities = frozenset({"categorical"})
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
        dim, num_classes, caption_dim = config.dim, config.num_classes, config.caption_dim
        if (num_classes is None) == (caption_dim is None):
            raise ValueError(
                "exactly one of num_classes and caption_dim must be given, "
                f"got num_classes={num_classes}, caption_dim={caption_dim}"
            )
        if dim % (4 * config.n_head):
            raise ValueError(f"dim must be a multiple of 4 n_head = {4 * config.n_head}, got {dim}")
        self.cls_embedding: LabelEmbedder | CaptionEmbedder
        if num_classes is not None:
            self.cls_embedding = LabelEmbedder(num_classes, dim)
        elif caption_dim is not None:
            self.cls_embedding = CaptionEmbedder(caption_dim, config.caption_length, dim)
        self.tok_embeddings: Any = self._token_embedding()
        hidden_dim = config.ffn_dim or default_ffn_dim(dim)
        self.layers = nn.ModuleList(
            Block(dim, config.n_head, hidden_dim, config.dropout) for _ in range(config.n_layer)
        )
        self.norm = RMSNorm(dim)
        self.output: Any = self._head()
        self._rotations: Tensor | None = None  # not a buffer: it stays complex64 in every dtype
        self.apply(_initialise)
        self._zero_head()

    def _zero_head(self) -> None:
        nn.init.zeros_(self.output.weight)

    def _token_embedding(self) -> nn.Module:
        return nn.Embedding(self.vocab_size, self.config.dim)

    def _head(self) -> nn.Module:
        return Linear(self.config.dim, self.vocab_size)

    @property
    def vocab_size(self) -> int:
        """Number of codes V."""
        return self.config.vocab_size

    @property
    def hidden_size(self) -> int:
        """Width D."""
        return self.config.dim

    @property
    def prefix_length(self) -> int:
        """1 for a class, the caption length for text."""
        return 1 if self.config.caption_dim is None else self.config.caption_length

    def layout(self, grid: tuple[int, ...]) -> Layout:
        """The raster order of the grid the model was trained for.

        Raises:
            ValueError: another grid.
        """
        expected = (self.config.grid_size, self.config.grid_size)
        if tuple(grid) != expected:
            raise ValueError(f"grid must be {expected} for this model, got {tuple(grid)}")
        return raster_layout(expected)

    def new_cache(self, rows: int, slots: int) -> KVCache:
        """An empty cache. slots: of every row, the prefix included."""
        return KVCache(
            layers=self.config.n_layer,
            rows=rows,
            heads=self.config.n_head,
            slots=slots,
            head_dim=self.config.dim // self.config.n_head,
            prefix=self.prefix_length,
            dtype=self.dtype,
            device=self.device,
        )

    def condition(
        self,
        given: Tensor,
        mask: Tensor | None = None,
        guided: bool = True,
        drop: Tensor | None = None,
    ) -> Condition:
        """Prefixes of B pictures, with their unconditional twins when guided.

        Args:
            given: int64 [B] class labels in [0, num_classes), num_classes itself meaning no class;
                or [B, P, C] caption features, left-padded.
            mask: bool [B, P], False marks padding of the captions. None is no padding.
            guided: append the unconditional rows, which keep the mask of their caption.
            drop: bool [B], pictures whose condition is left out, for training with guidance.

        Raises:
            ValueError: the condition is of the wrong kind or shape, or a label is out of range.
        """
        embedder = self.cls_embedding
        if isinstance(embedder, LabelEmbedder):
            self._check_labels(given)
            nothing = torch.full_like(given, self.config.num_classes)
        else:
            self._check_features(given, mask)
            given = given.to(self.dtype)
            nothing = embedder.uncond_embedding.to(self.dtype).expand_as(given)
        if drop is not None:
            given = torch.where(drop.view(-1, *[1] * (given.dim() - 1)), nothing, given)
        if guided:
            given = torch.cat([given, nothing])
        prefix = embedder(given)
        if mask is None:
            return Condition(prefix, prefix.new_ones(prefix.shape[:2], dtype=torch.bool))
        return Condition(prefix, mask.repeat(2, 1) if guided else mask)

    def embed(self, tokens: Tensor, ranks: Tensor) -> Tensor:
        """Embeddings [R, Q, D] of tokens, whatever their rank. tokens: int64 [R, Q] or as bits."""
        return self.tok_embeddings(tokens)

    def forward(
        self,
        x: Tensor,
        ranks: Tensor,
        cache: KVCache | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Runs the blocks and the last norm.

        Args:
            x: [R, Q, D] input embeddings.
            ranks: int64 [R, Q] from -P on; ranks past the picture take its last position.
            cache: written at slots P + rank; None attends within x.
            visible: bool [R, 1, Q, S], True where attended; None is causal.

        Returns:
            [R, Q, D] hidden states, ready for `predict`.
        """
        slots = ranks + self.prefix_length
        if cache is not None and visible is None:
            visible = cache.visible(slots)
        mask = None
        if visible is not None:
            mask = x.new_zeros(visible.shape).masked_fill_(~visible, -torch.inf)
        return self._run(x, slots, mask, cache)

    def _run(
        self, x: Tensor, slots: Tensor, mask: Tensor | None, cache: KVCache | None = None
    ) -> Tensor:
        """`forward` behind its masks. slots: int64 [R, Q]; mask: [R, 1, Q, S] added to scores."""
        table = self._rotation_table(x.device)
        rotation = table[slots.clamp(max=len(table) - 1)][:, :, None, None]
        shared = Pass(rotation, mask, cache, slots)
        if self.training:
            x = F.dropout(x, self.config.dropout)
        for layer, block in enumerate(self.layers):
            x = block(x, layer, shared)
        return self.norm(x)

    def predict(self, hidden: Tensor, ranks: Tensor) -> Tensor:
        """fp32 logits [R, Q, V] of the token after each hidden state. hidden: [R, Q, D]."""
        return self.output(hidden).float()

    def logits(self, tokens: Tensor, condition: Condition, same_columns: bool = False) -> Tensor:
        """Logits of every token of whole pictures: fp32 [B, N, V]. See `hidden_states`."""
        ranks = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[:2])
        return self.predict(self.hidden_states(tokens, condition, same_columns), ranks)

    def hidden_states(
        self, tokens: Tensor, condition: Condition, same_columns: bool = False
    ) -> Tensor:
        """What predicts every token of whole pictures given those before it, for training.

        Args:
            tokens: int64 [B, N] in decode order, or bool [B, N, d].
            condition: of B rows.
            same_columns: the columns of the prefix are copies of one another and none is padding.
                Then one of them, weighed by their number, does for all, and costs less.

        Returns:
            [B, N, D].
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
        visible = None if prefix == 1 else _visible(condition.mask, length - 1)
        return self.forward(x, ranks, visible=visible)[:, prefix - 1 :]

    def _rotation_table(self, device: torch.device) -> Tensor:
        """complex64 [P + N, d_h / 2]. Published quirk: the rotations of the prefix are zero.

        So a prefix key scores 0 against every query, and a prefix query attends evenly to all that
        it sees; every published checkpoint was trained that way.
        """
        if self._rotations is None or self._rotations.device != device:
            head_dim = self.config.dim // self.config.n_head
            with torch.inference_mode(False):  # a table made while sampling must serve training
                grid = rotations_2d(self.config.grid_size, head_dim, device)
                prefix = grid.new_zeros(self.prefix_length, head_dim // 2)
                self._rotations = torch.cat([prefix, grid])
        return self._rotations

    def _check_labels(self, labels: Tensor) -> None:
        if labels.dim() != 1 or labels.is_floating_point():
            raise ValueError(
                f"class labels must be an integer tensor of shape [B], got {labels.dtype} "
                f"{list(labels.shape)}"
            )
        limit = self.config.num_classes
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) <= limit:
            raise ValueError(f"class labels must be in [0, {limit}], got {labels.tolist()}")

    def _check_features(self, features: Tensor, mask: Tensor | None) -> None:
        shape = (self.config.caption_length, self.config.caption_dim)
        if features.dim() != 3 or tuple(features.shape[1:]) != shape:
            raise ValueError(
                f"caption features must have shape [B, {shape[0]}, {shape[1]}], "
                f"got {list(features.shape)}"
            )
        if mask is not None and mask.shape != features.shape[:2]:
            raise ValueError(
                f"the caption mask must have shape {list(features.shape[:2])}, "
                f"got {list(mask.shape)}"
            )


def default_ffn_dim(dim: int) -> int:
    """Feed-forward width of the published sizes: 2/3 of 4 D, rounded up to a multiple of 256."""
    return -(-int(2 * 4 * dim / 3) // 256) * 256


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
    state = {key: value for key, value in state.items() if not _NOT_PARAMETERS.search(key)}
    vocab_size, dim = _shape(state, "tok_embeddings.weight")
    layers = {int(key.split(".")[1]) for key in state if key.startswith("layers.")}
    n_layer = len(layers)
    heads = {(depth, width): heads for depth, heads, width in SIZES.values()}
    if (n_layer, dim) not in heads:
        raise ValueError(
            f"a LlamaGen checkpoint must have a published size ({', '.join(SIZES)}), "
            f"got {n_layer} layers of width {dim}"
        )
    config: dict[str, int | None] = {
        "dim": dim,
        "n_layer": n_layer,
        "n_head": heads[n_layer, dim],
        "vocab_size": vocab_size,
        "grid_size": grid or _grid_from_name(name),
        "ffn_dim": _shape(state, "layers.0.feed_forward.w1.weight")[0],
    }
    if "cls_embedding.uncond_embedding" in state:
        length, width = _shape(state, "cls_embedding.uncond_embedding")
        config |= {"caption_length": length, "caption_dim": width}
    else:
        config["num_classes"] = _shape(state, "cls_embedding.embedding_table.weight")[0] - 1
    return config, state


def _shape(state: Mapping[str, Tensor], key: str) -> tuple[int, int]:
    if key not in state:
        raise ValueError(f"the LlamaGen checkpoint lacks the parameter {key}")
    rows, columns = state[key].shape
    return rows, columns


def _grid_from_name(name: str) -> int:
    sizes = re.findall(r"(?<!\d)(256|384|512)(?!\d)", name)
    if len(set(sizes)) != 1:
        raise ValueError(
            f"cannot tell the grid from the file name {name!r}; give it with --grid, "
            "for example 16 for 256x256 pictures"
        )
    return int(sizes[0]) // _DOWNSAMPLE


def _visible(mask: Tensor, tokens: int) -> Tensor:
    """The causal mask with padding hidden except from itself. mask: bool [B, P]; [B, 1, S, S]."""
    seen = F.pad(mask, (0, tokens), value=True)
    causal = torch.ones(seen.shape[1], seen.shape[1], dtype=torch.bool, device=mask.device).tril()
    itself = torch.eye(seen.shape[1], dtype=torch.bool, device=mask.device)
    return ((causal & seen[:, None]) | itself)[:, None]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=_INITIAL_STD)
