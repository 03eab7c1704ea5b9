"""Grids and decode orders as plain data: which cell a rank is, what it may see, what predicts it.

Knows nothing about logits, models or acceptance.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

FREE = -1
"""Entry of `Layout.forced` where the model chooses, of codes and of bits."""

NO_CELL = -1
"""Entry of `Layout.cell` at a structural rank, such as a line end or a filler query."""

ABSENT = -(2**31)
"""Entry of `Layout.sources` where a rank has fewer sources than others; far below any prefix."""

_TENSORS = ("cell", "group_end", "sources", "positions", "forced", "structure", "given")


@dataclass(frozen=True)
class Layout:
    """The order in which the cells of a grid are decoded. A rank is an index into that order.

    Ranks are cells or structure. Structural ranks are no cell: they carry ids of the model's own,
    which lie beyond its code book, and are always forced. They and the ranks that are `given` in
    every picture cost rows of a pass, but no pass: they are fed with what comes after them.

    Attributes:
        grid: (T, H, W), (H, W) or (N,): cells along each axis.
        cell: int64 [N], rank -> cell (cells count in raster order), `NO_CELL` at structural ranks.
        group_end: int64 [N], first rank that is *not* visible from this rank.
        sources: int64 [N, A], ranks whose hidden state predicts this one; -1..-P are prefix slots
            counted from the end; `ABSENT` no source.
        positions: int64 [N, 3], (frame, row, column) of the rank's cell, for position embeddings.
        forced: token fixed at each rank; int64 [N] or [B, N], or [B, N, *] as the kind of token
            has it (`TokenKind.no_force`), `FREE` where the model chooses.
        structure: int64 [N], id of every structural rank, `FREE` at cells.
        given: bool [N], ranks that are forced in every picture.
    """

    grid: tuple[int, ...]
    cell: Tensor
    group_end: Tensor
    sources: Tensor
    positions: Tensor
    forced: Tensor
    structure: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    given: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))

    def __post_init__(self) -> None:
        if self.structure.numel() == 0:
            object.__setattr__(self, "structure", torch.full_like(self.cell, FREE))
        if self.given.numel() == 0:
            object.__setattr__(self, "given", torch.zeros_like(self.cell, dtype=torch.bool))
        unnamed = (self.cell == NO_CELL) != (self.structure != FREE)
        if self.cell.is_cpu and bool(unnamed.any()):  # a layout is made there and moved later
            raise ValueError("structure must name an id at ranks that are no cell, and only there")

    @property
    def length(self) -> int:
        """Number of ranks N."""
        return self.cell.numel()

    @cached_property
    def fixed(self) -> Tensor:
        """bool [N], ranks that no pass has to draw: structural or given in every picture."""
        return (self.cell == NO_CELL) | self.given

    @cached_property
    def following(self) -> list[int] | None:
        """For every length 0..N, the first rank from there on that is drawn, N if none is; None
        where every rank is drawn.
        """
        if not bool(self.fixed.any()):
            return None
        table = [self.length]
        for rank, skipped in reversed(list(enumerate(self.fixed.tolist()))):
            table.append(table[-1] if skipped else rank)
        return table[::-1]

    @property
    def beginning(self) -> int:
        """Ranks before the first that is drawn."""
        return 0 if self.following is None else self.following[0]

    @property
    def longest_run(self) -> int:
        """Most ranks in a row that no pass draws, behind one that is drawn."""
        if self.following is None:
            return 0
        after = (end - rank for rank, end in enumerate(self.following) if rank > self.beginning)
        return max(after, default=0)

    @property
    def is_chain(self) -> bool:
        """True when rank r sees exactly the ranks up to r and is predicted from rank r - 1."""
        ranks = torch.arange(self.length, device=self.cell.device)
        single = self.sources.shape[1] == 1
        drawn = ~self.fixed
        next_token = single and bool((self.sources[:, 0] == ranks - 1)[drawn].all())
        return next_token and bool((self.group_end == ranks + 1).all())

    @property
    def is_raster(self) -> bool:
        """True when the ranks are the cells in raster order."""
        ranks = torch.arange(self.length, device=self.cell.device)
        return bool((self.cell == ranks).all())

    @property
    def group_start(self) -> Tensor:
        """int64 [N], first rank of the group that the rank belongs to."""
        return torch.searchsorted(self.group_end, self.group_end)

    @property
    def shape3d(self) -> tuple[int, int, int]:
        """The grid as (frames, rows, columns)."""
        frames, rows, columns = (1, 1, *self.grid)[-3:]
        return frames, rows, columns

    @cached_property
    def rank(self) -> Tensor:
        """int64 [cells], cell -> rank."""
        ranks = torch.argsort(self.cell)  # structural ranks come first
        return ranks[int((self.cell == NO_CELL).sum()) :]

    def with_forced(self, forced: Tensor, in_every_picture: bool = False) -> Layout:
        """The same layout with the tokens of some cells fixed, as image completion needs.

        Args:
            forced: [cells], [B, cells] or [B, cells, *] in *cell* order, see `forced`.
            in_every_picture: whether the same cells are forced in all pictures and shall be given,
                so that no pass is spent on them. That is another count of passes, and so for most
                methods another picture of a seed.

        Raises:
            ValueError: the dimension of cells has another size, or pictures have other cells.
        """
        axis = min(forced.dim() - 1, 1)
        count = len(self.rank)
        if forced.shape[axis] != count:
            raise ValueError(
                f"forced must name one token or -1 for each of the {count} cells, "
                f"got {forced.shape[axis]}"
            )
        # A structural rank takes any cell's entry; nobody reads it.
        whole = forced if forced.is_floating_point() else forced.to(torch.int64)
        by_rank = whole.index_select(axis, self.cell.clamp(min=0).to(forced.device))
        if not in_every_picture:
            return replace(self, forced=by_rank)
        if forced.is_floating_point() or forced.dim() > 2:
            raise ValueError("forced must be codes [cells] or [B, cells] to be given everywhere")
        by_picture = (by_rank != FREE).reshape(-1, self.length)
        if bool((by_picture != by_picture[:1]).any()):
            raise ValueError("forced must name the same cells in every picture, got others in some")
        given = by_picture[0] & (self.cell != NO_CELL)
        return replace(self, forced=by_rank, given=given)

    def to(self, device: torch.device | str) -> Layout:
        """The same layout with its tensors on `device`."""
        return replace(self, **{name: getattr(self, name).to(device) for name in _TENSORS})

    def cells(self, by_rank: Tensor) -> Tensor:
        """[B, N, ...] in decode order to raster order of the cells, without structural ranks."""
        return by_rank[:, self.rank.to(by_rank.device)]


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
        cell=ranks,
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
    distance, cell = by_cell.sum(1).sort(stable=True)
    positions = by_cell[cell]
    rank = torch.argsort(cell)  # cell -> rank
    strides = torch.tensor([grid[-2] * grid[-1], grid[-1], 1])
    before = [
        torch.where(positions[:, axis] > 0, rank[(cell - strides[axis]).clamp(min=0)], ABSENT)
        for axis in (2, 1, 0)[: len(grid)]
    ]
    sources = torch.stack(before, dim=1)
    sources[0] = -1
    return Layout(
        grid=tuple(grid),
        cell=cell,
        group_end=torch.searchsorted(distance, distance, right=True),
        sources=sources,
        positions=positions,
        forced=torch.full_like(cell, FREE),
    )


def _positions(grid: tuple[int, ...], least_axes: int) -> Tensor:
    """int64 [N, 3], (frame, row, column) of every cell in raster order."""
    if not least_axes <= len(grid) <= 3 or min(grid) < 1:
        least = {1: "one", 2: "two"}[least_axes]
        raise ValueError(f"grid must hold {least} to three axes of at least 1 cell, got {grid}")
    frames, rows, columns = (1, 1, *grid)[-3:]
    axes = [torch.arange(n) for n in (frames, rows, columns)]
    return torch.cartesian_prod(*axes).reshape(-1, 3)
