"""Grids and decode orders as plain data: which cell a rank is, what it may see, what predicts it.

Knows nothing about logits, models or acceptance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

FREE = -1
"""Value of `Layout.forced` where the model chooses the token."""

ABSENT = -2
"""Value of `Layout.sources` where a rank has fewer sources than others."""


@dataclass(frozen=True)
class Layout:
    """The order in which the cells of a grid are decoded. A rank is an index into that order.

    Attributes:
        grid: (T, H, W), (H, W) or (N,): cells along each axis.
        order: int64 [N], rank -> cell (cells count in raster order).
        group_end: int64 [N], first rank that is *not* visible from this rank.
        sources: int64 [N, A], ranks whose hidden state predicts this one; -1 is the prefix's last,
            `ABSENT` no source.
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
    def group_start(self) -> Tensor:
        """int64 [N], first rank of the group that the rank belongs to."""
        return torch.searchsorted(self.group_end, self.group_end)

    @property
    def largest_group(self) -> int:
        """Ranks of the largest group: what a pass that draws whole groups has to predict."""
        return int((self.group_end - self.group_start).max())

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
    positions = _positions(grid, least_axes=1)
    ranks = torch.arange(len(positions))
    return Layout(
        grid=tuple(grid),
        order=ranks,
        group_end=ranks + 1,
        sources=(ranks - 1)[:, None],
        positions=positions,
        forced=torch.full_like(ranks, FREE),
    )


def neighbour_layout(grid: tuple[int, ...]) -> Layout:
    """Next-neighbour order: group s holds every cell at Manhattan distance s from the first one.

    He et al. (2025), "Neighboring autoregressive modeling for efficient visual generation",
    section 3.2: H + W - 1 groups for pictures, T + H + W - 2 for clips. A rank sees all groups up
    to its own. Its sources are the cells before it along each axis: left, above, previous frame.

    Args:
        grid: two or three positive integers, (H, W) or (T, H, W).

    Raises:
        ValueError: the grid has another number of axes, or an axis below 1.
    """
    by_cell = _positions(grid, least_axes=2)
    distance, order = by_cell.sum(1).sort(stable=True)
    positions = by_cell[order]
    rank = torch.argsort(order)  # cell -> rank
    strides = torch.tensor([grid[-2] * grid[-1], grid[-1], 1])
    before = [
        torch.where(positions[:, axis] > 0, rank[(order - strides[axis]).clamp(min=0)], ABSENT)
        for axis in (2, 1, 0)[: len(grid)]
    ]
    sources = torch.stack(before, dim=1)
    sources[0] = -1
    return Layout(
        grid=tuple(grid),
        order=order,
        group_end=torch.searchsorted(distance, distance, right=True),
        sources=sources,
        positions=positions,
        forced=torch.full_like(order, FREE),
    )


def _positions(grid: tuple[int, ...], least_axes: int) -> Tensor:
    """int64 [N, 3], (frame, row, column) of every cell in raster order."""
    if not least_axes <= len(grid) <= 3 or min(grid) < 1:
        least = {1: "one", 2: "two"}[least_axes]
        raise ValueError(f"grid must hold {least} to three axes of at least 1 cell, got {grid}")
    frames, rows, columns = (1, 1, *grid)[-3:]
    axes = [torch.arange(n) for n in (frames, rows, columns)]
    return torch.cartesian_prod(*axes).reshape(-1, 3)
