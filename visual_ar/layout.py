"""Grids and decode orders as plain data: which cell a rank is, what it may see, what predicts it.

Knows nothing about logits, models or acceptance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

FREE = -1
"""Value of `Layout.forced` where the model chooses the token."""


@dataclass(frozen=True)
class Layout:
    """The order in which the cells of a grid are decoded. A rank is an index into that order.

    Attributes:
        grid: (T, H, W), (H, W) or (N,): cells along each axis.
        order: int64 [N], rank -> cell (cells count in raster order).
        group_end: int64 [N], first rank that is *not* visible from this rank.
        sources: int64 [N, A], ranks whose hidden state predicts this one; -1 is the prefix's last.
        positions: int64 [N, 3], (frame, row, column) of the rank's cell, for position embeddings.
        forced: int64 [N] or [B, N], token id fixed at that rank, or -1 where the model chooses.
    """

    grid: tuple[int, ...]
    order: Tensor
    group_end: Tensor
    sources: Tensor
    positions: Tensor
    forced: Tensor

    @property
    def length(self) -> int:
        """Number of tokens of a picture, N."""
        return self.order.numel()

    @property
    def is_chain(self) -> bool:
        """True when rank r sees exactly the ranks up to r and is predicted from rank r - 1."""
        ranks = torch.arange(self.length, device=self.order.device)
        next_token = self.sources.shape[1] == 1 and bool((self.sources[:, 0] == ranks - 1).all())
        return next_token and bool((self.group_end == ranks + 1).all())

    @property
    def shape3d(self) -> tuple[int, int, int]:
        """The grid as (frames, rows, columns)."""
        frames, rows, columns = (1, 1, *self.grid)[-3:]
        return frames, rows, columns

    def with_forced(self, forced: Tensor) -> Layout:
        """The same layout with the tokens of some cells fixed, as image completion needs.

        Args:
            forced: int64 [N], [B, N] or [B, N, d] in *cell* order, -1 where the model chooses.

        Raises:
            ValueError: the dimension of cells is not N.
        """
        cells = 1 if forced.dim() == 3 else -1
        if forced.shape[cells] != self.length:
            raise ValueError(
                f"forced must name one token or -1 for each of the {self.length} cells, "
                f"got {forced.shape[cells]}"
            )
        by_rank = forced.to(torch.int64).index_select(cells, self.order.to(forced.device))
        return replace(self, forced=by_rank)

    def to(self, device: torch.device | str) -> Layout:
        """The same layout with its tensors on `device`."""
        names = ("order", "group_end", "sources", "positions", "forced")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def cells(self, by_rank: Tensor) -> Tensor:
        """Reorders [B, N, ...] from decode order to raster order of the cells."""
        inverse = torch.argsort(self.order).to(by_rank.device)
        return by_rank[:, inverse]


def raster_layout(grid: tuple[int, ...]) -> Layout:
    """Next-token order: frame by frame, row by row, left to right; every rank sees all before it.

    Args:
        grid: one to three positive integers, (T, H, W), (H, W) or (N,).

    Raises:
        ValueError: the grid has no or more than three axes, or an axis below 1.
    """
    if not 1 <= len(grid) <= 3 or min(grid) < 1:
        raise ValueError(f"grid must hold one to three axes of at least 1 cell, got {grid}")
    frames, rows, columns = (1, 1, *grid)[-3:]
    axes = [torch.arange(n) for n in (frames, rows, columns)]
    positions = torch.cartesian_prod(*axes).reshape(-1, 3)
    ranks = torch.arange(frames * rows * columns)
    return Layout(
        grid=tuple(grid),
        order=ranks,
        group_end=ranks + 1,
        sources=(ranks - 1)[:, None],
        positions=positions,
        forced=torch.full_like(ranks, FREE),
    )
