"""What a draft head remembers of every picture: keys, values, and the model's newest states.

The cache holds, for every committed rank, what the head made of the model's own hidden state there
(Li et al. 2024, EAGLE, section 3.1); states that the head foretold are replaced as soon as the
model has its own. Knows nothing about trees, laws or acceptance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visual_ar.accel.loop.state import DecodeState
from visual_ar.assets import bundled
from visual_ar.cast import Cast
from visual_ar.sampling import take_rows

_ROOT = -1


def check_draft_head(cast: Cast, who: str) -> None:
    """Raises ValueError unless the cast has a draft head that can draft in its layout.

    who: needs the head, for the message.
    """
    head, model, layout = cast.draft_head, cast.model, cast.layout
    if head is None:
        raise ValueError(
            f"{who} needs a model with a draft head trained for it, this {type(model).__name__} "
            f"has none; {_who_has_one()}"
        )
    head.check(model)
    if layout.following is not None:
        raise ValueError(
            f"{who} needs a layout in which every rank is drawn, this one of grid {layout.grid} "
            f"has {int(layout.fixed.sum())} ranks that are not"
        )
    if head.config.grid_size**2 < layout.length:
        raise ValueError(
            f"draft_head must know every cell of the grid {layout.grid}, "
            f"got one for {head.config.grid_size} x {head.config.grid_size} cells"
        )
    if head.dtype != model.dtype:
        raise ValueError(f"draft_head must be {model.dtype} like the model, got {head.dtype}")


def _who_has_one() -> str:
    """A sentence about the bundled models."""
    names = [name for name, folder in bundled().items() if (folder / "draft_head").is_dir()]
    if names:
        return f"of the bundled models {', '.join(names)} has one"
    return "no bundled model has one; a recipe of kind draft trains one"


class HeadMemory:
    """The draft head's share of a decoding state.

    Attributes:
        head: what drafts.
        cache: its keys and values.
    """

    def __init__(self, state: DecodeState, most: int) -> None:
        """For all slots of a state, idle. most: ranks that a pass can commit, at least 1."""
        head = state.cast.draft_head
        assert head is not None
        rows, width = len(state.root), state.root.shape[-1]
        self.head = head
        self.cache = head.new_cache(rows, state.tokens.shape[1])
        self._state = state
        self._start = state.length.clone()
        self._features = state.root.new_zeros(rows, most, width)

    def admit(self, slots: Tensor) -> None:
        """Newly admitted slots start from the last prefix token, which no state goes with.

        Args:
            slots: int64 [b].
        """
        self._start = self._start.index_fill(0, slots, _ROOT)
        self._features = self._features.index_fill(0, self._state.rows(slots), 0)

    def observe(self, first: Tensor, features: Tensor) -> None:
        """Takes the model's states of a pass.

        Args:
            first: int64 [B], the first rank that the pass predicted.
            features: [R, most, D], the states that the ranks from `first` on were predicted from;
                those of ranks that were not committed are not read.
        """
        self._start, self._features = first, features

    def catch_up(self) -> Tensor:
        """Shows the head what was committed since; its state of the newest token: [R, 1, D].

        All that the last pass predicted is fed, for the sake of static shapes. What was not
        committed comes after the newest token, which therefore does not see it, and is overwritten
        before anything else could.
        """
        state = self._state
        self.cache.extent = min(state.cache.extent - state.cache.prefix + 1, self.cache.slots)
        offsets = torch.arange(self._features.shape[1], device=self._start.device)
        ranks = self._start[:, None] + offsets
        tokens = state.tokens.gather(1, ranks.clamp(min=0))
        embeddings, rows = state.inputs(state.model.embed(tokens, ranks), ranks)
        foretold = self.head(embeddings, self._features, rows, self.cache)
        # A slot that is idle has nothing new, and nobody reads what it drafts.
        newest = (state.length - 1 - self._start).clamp(min=0)[:, None]
        return take_rows(foretold, state.twice(newest))
