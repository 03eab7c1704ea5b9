"""A draft head: one decoder layer that foretells a generator's next hidden state, to draft tokens.

Li et al. (2024), "EAGLE: speculative sampling requires rethinking feature uncertainty", section
3.1, with the generator's own output head read from its foretold states. Knows which generator it
was made for; knows nothing about acceptance or pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  (diffusers looks for it here)
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from visual_ar import eight_bit
from visual_ar.cache import KVCache
from visual_ar.eight_bit import EightBitModel
from visual_ar.layers import (
    Block,
    Linear,
    Pass,
    RMSNorm,
    check_heads,
    default_ffn_dim,
    rotations_2d,
)
from visual_ar.models.token_model import TokenModel

_PROBES = 16
_TOLERANCE = 2.0**-6  # above what rounding to bfloat16 changes


class DraftHead(EightBitModel, ConfigMixin):
    """fc over [embedding of token r; hidden state it was predicted from], then a LlamaGen block.

    Its result stands for the hidden state of rank r, so that the generator's output head makes of
    it a law for rank r + 1. Rank -1 is the last prefix token; the state it is given is zero. What
    the prefix says is in the states already, so the head sees no other column of it.

    Args:
        dim: width D of the generator.
        n_head: heads of the block; D / n_head must be a multiple of 4.
        vocab_size: codes V of the generator.
        grid_size: rows and columns of its grid.
        ffn_dim: width of the feed-forward; by default that of `LlamaGen`.
        made_for: `fingerprint` of the generator; None fits every one of this width and code book.

    Raises:
        ValueError: the heads do not fit the width.
    """

    config_name = "config.json"
    _repeated_blocks = ["Block"]  # noqa: RUF012  (read by diffusers' compile_repeated_blocks)

    @register_to_config
    def __init__(
        self,
        dim: int = 768,
        n_head: int = 12,
        vocab_size: int = 16384,
        grid_size: int = 16,
        ffn_dim: int | None = None,
        made_for: list[float] | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, n_head)
        self.fc = Linear(2 * dim, dim)
        self.layer = Block(dim, n_head, ffn_dim or default_ffn_dim(dim))
        self.norm = RMSNorm(dim)
        self._rotations: Tensor | None = None  # not a buffer: it stays complex64 in every dtype

    @classmethod
    def start_from(cls, model: Any) -> DraftHead:
        """A head that foretells the state it is given, seen through the last block.

        model: a `LlamaGen`, of whose blocks this class is one.
        """
        config = model.config
        head = cls(
            dim=config.dim,
            n_head=config.n_head,
            vocab_size=config.vocab_size,
            grid_size=config.grid_size,
            ffn_dim=config.ffn_dim,
            made_for=fingerprint(model),
        )
        head.layer.load_state_dict(model.layers[-1].state_dict())
        head.norm.load_state_dict(model.norm.state_dict())
        with torch.no_grad():
            head.fc.weight.copy_(torch.eye(config.dim).repeat(1, 2))
        return head

    def check(self, model: TokenModel) -> None:
        """Raises ValueError unless the head was made for `model`."""
        config = self.config
        for name, made, given in (
            ("width", config.dim, model.hidden_size),
            ("number of codes", config.vocab_size, model.vocab_size),
        ):
            if made != given:
                raise ValueError(
                    f"draft_head must be made for the model it drafts for, whose {name} is "
                    f"{given}, got one for {made}"
                )
        if config.made_for is None:
            return
        expected, found = torch.tensor(config.made_for), torch.tensor(fingerprint(model))
        allowed = torch.tensor(_allowances(model)) + _TOLERANCE * found.abs()
        if not bool(((expected - found).abs() <= allowed).all()):
            raise ValueError(
                "draft_head must be made for the model it drafts for, got one for other weights "
                f"of {type(model).__name__}; a recipe of kind draft trains one"
            )

    def new_cache(self, rows: int, ranks: int) -> KVCache:
        """An empty cache for the ranks -1 .. ranks - 1 of every row."""
        config = self.config
        return KVCache(
            layers=1,
            rows=rows,
            heads=config.n_head,
            slots=1 + ranks,
            head_dim=config.dim // config.n_head,
            prefix=1,
            dtype=self.dtype,
            device=self.device,
        )

    def forward(
        self,
        embeddings: Tensor,
        features: Tensor,
        ranks: Tensor,
        cache: KVCache | None = None,
        visible: Tensor | None = None,
        slots: Tensor | None = None,
    ) -> Tensor:
        """Foretells hidden states.

        Args:
            embeddings: [R, Q, D], of the tokens at `ranks`.
            features: [R, Q, D], the states that these tokens were predicted from, zero at rank -1.
            ranks: int64 [R, Q] from -1 on; ranks past the picture take its last position.
            cache: written at `slots`; None attends within the Q positions, causally.
            visible: bool [R, 1, Q, S] or broadcastable, True where attended, instead of the causal
                rule.
            slots: int64 [R, Q] of the cache; None is 1 + rank. Drafts of one rank need one each.

        Returns:
            [R, Q, D], for `predict` of the generator.
        """
        table = self._rotation_table(embeddings.device)
        rotation = table[ranks.clamp(0, len(table) - 1)][:, :, None, None]
        slots = ranks + 1 if slots is None else slots
        if cache is not None and visible is None:
            visible = cache.visible(slots)
        x = self.fc(torch.cat([embeddings, features], dim=-1))
        mask = None
        if visible is not None:
            mask = x.new_zeros(visible.shape).masked_fill_(~visible, -torch.inf)
        return self.norm(self.layer(x, 0, Pass(rotation, mask, cache, slots)))

    def _rotation_table(self, device: torch.device) -> Tensor:
        """complex64 [N, d_h / 2]."""
        if self._rotations is None or self._rotations.device != device:
            head_dim = self.config.dim // self.config.n_head
            with torch.inference_mode(False):  # a table made while sampling must serve training
                self._rotations = rotations_2d(self.config.grid_size, head_dim, device)
        return self._rotations


def fingerprint(model: nn.Module) -> list[float]:
    """Sixteen weights from all over a model: nearly alike in every dtype, unlike any other's.

    A model that adds something to another (`delta_prefix`) has the other's.
    """
    return [float(row[place]) for row, place in _probes(model)]


def _allowances(model: nn.Module) -> list[float]:
    """How far rounding to 8 bits may move each weight of a `fingerprint`."""
    return [eight_bit.largest_error(row) for row, _ in _probes(model)]


def _probes(model: nn.Module) -> Iterator[tuple[Tensor, int]]:
    """The weights of a `fingerprint`: the row that each one is in, and its place there."""
    added = getattr(model, "delta_prefix", None)
    named = dict(model.named_parameters())
    own = sorted(name for name in named if added is None or not name.startswith(added))
    matrices = [name for name in own if named[name].ndim > 1]
    for probe in range(_PROBES):
        name = matrices[probe * len(matrices) // _PROBES]
        rows = named[name].detach().flatten(1)
        index = rows.numel() * (probe + 1) // (_PROBES + 1)
        row, place = index // rows.shape[1], index % rows.shape[1]
        scale = named.get(name.removesuffix("weight") + "scale")  # of a map that has 8 bits
        yield rows[row] if scale is None else rows[row] * scale[row].detach(), place
