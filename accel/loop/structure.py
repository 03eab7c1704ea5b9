"""Ranks that cost rows of a pass but no pass: structure, and tokens given in every picture.

Once the rank before them is committed they are too, and they are fed with what comes after them.
Knows layouts; knows nothing about methods or laws.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visual_ar.layout import NO_CELL, Layout
from visual_ar.models.token_model import TokenModel


class Structure:
    """Tables of a layout in which some ranks are fixed.

    Args:
        layout: on the device of the state.
        scratch: first scratch rank that no window uses; there are `lead` of them.
    """

    def __init__(self, layout: Layout, scratch: int) -> None:
        device, following = layout.cell.device, layout.following
        assert following is not None
        self.following = torch.tensor(following, device=device)
        """int64 [N + 1], for every length the first rank from there on that is drawn."""
        self.lead = layout.longest_run
        """Ranks before a feed that may not have been fed yet."""
        self.ranks = (layout.cell == NO_CELL).nonzero()[:, 0]
        """int64 [S], the structural ranks."""
        drawn = torch.cat([torch.zeros_like(self.following[:1]), (~layout.fixed).long().cumsum(0)])
        self._drawn = drawn
        self._ids = layout.structure
        self._places = torch.arange(-self.lead, 0, device=device)
        self._scratch = scratch + torch.arange(self.lead, device=device)

    @staticmethod
    def of(layout: Layout, scratch: int) -> Structure | None:
        """The tables, None where every rank is drawn."""
        return None if layout.following is None else Structure(layout, scratch)

    def ranks_before(self, ranks: Tensor) -> Tensor:
        """The `lead` ranks before a feed, scratch where there is none. [B, Q]; int64 [B, lead]."""
        before = ranks[:, :1] + self._places
        return torch.where(before >= 0, before, self._scratch)

    def drawn(self, before: Tensor, after: Tensor) -> Tensor:
        """Tokens that a pass has drawn or kept between two lengths. int64 [B] all three."""
        return self._drawn[after] - self._drawn[before]

    def are_cells(self, ranks: Tensor) -> Tensor:
        """Whether ranks are no structure. int64 [B, Q]; returns bool [B, Q]."""
        return self._ids[ranks.clamp(0, len(self._ids) - 1)] < 0

    def embed(self, model: TokenModel, x: Tensor, ranks: Tensor) -> Tensor:
        """Embeddings with those of structural ids in place. [B, Q, D]; ranks: int64 [B, Q]."""
        last = len(self._ids) - 1
        ids = torch.where(ranks <= last, self._ids[ranks.clamp(0, last)], -1)
        structural = (ids >= 0) & (ranks >= 0)
        return torch.where(structural[..., None], model.embed_structure(ids.clamp(min=0)), x)
