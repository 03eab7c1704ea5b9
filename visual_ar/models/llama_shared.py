"""What generators of the LlamaGen kind share: prefixes, rotations, caches and how weights start.

Sun et al. (2024), arXiv:2406.06525, section 2.2, with the published parameter names. Knows nothing
about heads or orders.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visual_ar.cache import KVCache
from visual_ar.conditioning.condition import Condition
from visual_ar.layers import Linear, rotations_2d
from visual_ar.models.token_model import TokenModel
from visual_ar.tokens.codes import Codes
from visual_ar.tokens.kind import TokenKind

_INITIAL_STD = 0.02


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
        self.register_buffer("uncond_embedding", torch.empty(caption_length, caption_dim))
        nn.init.normal_(self.uncond_embedding, std=caption_dim**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        """features: [R, P, C]; returns [R, P, D]."""
        return self.cap_proj(features)


class ConditionedModel(TokenModel):
    """A model whose prefix is one class or the features of a caption.

    Its configuration has `dim`, `n_head`, `vocab_size`, `grid_size`, `num_classes`, `caption_dim`
    and `caption_length`.

    Attributes:
        cls_embedding: turns a condition into prefix tokens.
        layers: the blocks.
    """

    cls_embedding: LabelEmbedder | CaptionEmbedder
    layers: nn.ModuleList
    _rotations: Tensor | None = None  # not a buffer: it stays complex64 in every dtype

    @property
    def tokens(self) -> TokenKind:
        """Codes of the configuration's vocabulary."""
        return Codes(self.vocab_size)

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

    def same_columns(self, given: Tensor) -> bool:
        """Whether one column of every prefix stands for all, with and without a condition.

        Read off the features themselves: whoever wrote an encoder need not say so.

        Args:
            given: see `condition`.
        """
        embedder = self.cls_embedding
        if self.prefix_length == 1 or isinstance(embedder, LabelEmbedder):
            return False
        both = (given.detach(), embedder.uncond_embedding)
        return all(bool((features == features[..., :1, :]).all()) for features in both)

    def new_cache(self, rows: int, slots: int, prefix: int) -> KVCache:
        """See `TokenModel.new_cache`."""
        return KVCache(
            layers=len(self.layers),
            rows=rows,
            heads=self.config.n_head,
            slots=slots,
            head_dim=self.config.dim // self.config.n_head,
            prefix=prefix,
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

    def rotation_table(self, device: torch.device) -> Tensor:
        """complex64 [P + H W, d_h / 2], by cell; the rotations of the prefix are zero.

        A published quirk: so a prefix key scores 0 against every query, and a prefix query attends
        evenly to all that it sees; every published checkpoint was trained that way.
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


def prefix_embedder(
    dim: int, num_classes: int | None, caption_dim: int | None, caption_length: int
) -> LabelEmbedder | CaptionEmbedder:
    """What turns the condition into prefix tokens.

    Args:
        dim: width D.
        num_classes: classes of a class-conditional model.
        caption_dim: width C of the caption features of a text-conditional model.
        caption_length: number of caption features.

    Raises:
        ValueError: neither or both of `num_classes` and `caption_dim` are given.
    """
    if (num_classes is None) == (caption_dim is None):
        raise ValueError(
            "exactly one of num_classes and caption_dim must be given, "
            f"got num_classes={num_classes}, caption_dim={caption_dim}"
        )
    if num_classes is not None:
        return LabelEmbedder(num_classes, dim)
    assert caption_dim is not None
    return CaptionEmbedder(caption_dim, caption_length, dim)


def full_mask(mask: Tensor, end: Tensor) -> Tensor:
    """What the positions of whole sequences see: padding is hidden except from itself.

    Args:
        mask: bool [B, P], False marks padding columns of the prefix.
        end: int64 [S], first position that each one does not see.

    Returns:
        bool [B, 1, S, S], True where attended.
    """
    length = len(end)
    seen = F.pad(mask, (0, length - mask.shape[1]), value=True)
    before = torch.arange(length, device=end.device) < end[:, None]
    itself = torch.eye(length, dtype=torch.bool, device=end.device)
    return ((before & seen[:, None]) | itself)[:, None]


def initialise(module: nn.Module) -> None:
    """Draws the weights of a linear map or an embedding; for `nn.Module.apply`."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=_INITIAL_STD)
