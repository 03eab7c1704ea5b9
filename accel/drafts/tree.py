"""Trees of drafts as plain data: parents, depths, who sees whom, and where keys and values go.

A pass feeds the last committed token in column 0 and one draft in every further column. Knows
nothing about laws, acceptance, or who drafted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from visual_ar.cache import KVCache

MOST_COLUMNS = 200


@dataclass(frozen=True)
class Tree:
    """Trees of Q columns, one for each of B pictures (or of M shapes to pick from).

    Attributes:
        parents: int64 [B, Q], column of the parent, always a smaller one; 0 for column 0 itself.
        depth: int64 [B, Q], 0 for column 0; how many ranks a column is behind it.
        ordinal: int64 [B, Q], place among the siblings, which are drawn and judged in this order.
        sees: bool [B, Q, Q], True at a column's ancestors and at itself.
        exists: bool [B, Q], False in columns that a smaller shape leaves unused; they come last.
        children: int64 [B, Q, S], columns in the order of their ordinals, then -1.
        trunk: int64 [B], how many columns 1, 2, ... are each the first child of the one before.
        deepest: largest depth of any column.
        deepest_fork: largest depth of a column that has siblings; 0 in a chain.
        deepest_branch: largest depth of a column off the trunk; 0 in a chain.
    """

    parents: Tensor
    depth: Tensor
    ordinal: Tensor
    sees: Tensor
    exists: Tensor
    children: Tensor
    trunk: Tensor
    deepest: int
    deepest_fork: int
    deepest_branch: int

    @property
    def columns(self) -> int:
        """Number of columns Q, column 0 included."""
        return self.parents.shape[1]

    @property
    def siblings(self) -> int:
        """Largest number of children S."""
        return self.children.shape[2]

    @property
    def bush(self) -> int:
        """Depth behind which only the trunk goes on, whose column at depth d is column d."""
        return max(self.deepest_fork, self.deepest_branch)

    def pick(self, shape: Tensor) -> Tree:
        """One shape a picture. shape: int64 [B], rows of this table of shapes."""
        fields = ("parents", "depth", "ordinal", "sees", "exists", "children", "trunk")
        return replace(self, **{name: getattr(self, name)[shape] for name in fields})

    def narrow(self, columns: int) -> Tree:
        """The first columns, which must hold every column that exists."""
        return replace(
            self,
            parents=self.parents[:, :columns],
            depth=self.depth[:, :columns],
            ordinal=self.ordinal[:, :columns],
            sees=self.sees[:, :columns, :columns],
            exists=self.exists[:, :columns],
            children=self.children[:, :columns],
        )


def grow(branching: Sequence[int], trunk: int) -> list[int]:
    """Parents of the columns 1, 2, ... of a bush with a trunk.

    At depth d every column has `branching[d]` children, as at the rejection point of SJD-PAC (arXiv
    2603.18599); behind the bush only the trunk, the line of first children, goes on. It comes
    first, so that its columns lie in the cache where their ranks belong.

    Args:
        branching: children of a column at depth 0, 1, ...; each at least 1.
        trunk: length of the trunk, at least the length of `branching`.

    Returns:
        column of the parent of every column from 1 on.
    """
    parents = list(range(trunk))
    level = [0]
    for depth, children in enumerate(branching):
        following = []
        for column in level:
            on_trunk = column == depth
            if on_trunk:
                following.append(depth + 1)
            for _ in range(children - on_trunk):
                parents.append(column)
                following.append(len(parents))
        level = following
    return parents


def shapes(all_parents: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> Tree:
    """A table of M shapes with as many columns as the largest needs.

    Args:
        all_parents: of every shape, the parent columns of its columns 1, 2, ...
        device: where to put the table.

    Raises:
        ValueError: a parent does not come before its child, a shape has no draft, or one has more
            than 199 of them.
    """
    for parents in all_parents:
        if not 1 <= len(parents) < MOST_COLUMNS:
            raise ValueError(
                f"a tree must have 1 to {MOST_COLUMNS - 1} drafts, got {len(parents)}; "
                "make the window or the branching smaller"
            )
        if any(not 0 <= parent <= column for column, parent in enumerate(parents)):
            raise ValueError(f"parents must come before their children, got {list(parents)}")
    columns = 1 + max(map(len, all_parents))
    described = [_describe(parents) for parents in all_parents]
    most = max(len(kids) for shape in described for kids in shape.children)

    def table(rows: list[list[int]], width: int, fill: int = 0) -> Tensor:
        return torch.tensor([row + [fill] * (width - len(row)) for row in rows], device=device)

    sees = torch.eye(columns, dtype=torch.bool, device=device).repeat(len(described), 1, 1)
    for shape, seen in zip(described, sees, strict=True):
        for column, parent in enumerate(shape.parents[1:], 1):
            seen[column] |= seen[parent]
    return Tree(
        parents=table([s.parents for s in described], columns),
        depth=table([s.depth for s in described], columns),
        ordinal=table([s.ordinal for s in described], columns),
        sees=sees,
        exists=table([[1] * len(s.parents) for s in described], columns).bool(),
        children=torch.stack(
            [table(s.children + [[]] * (columns - len(s.children)), most, -1) for s in described]
        ),
        trunk=torch.tensor([s.trunk for s in described], device=device),
        deepest=max(max(s.depth) for s in described),
        deepest_fork=max(_deepest(s, s.ordinal) for s in described),
        deepest_branch=max(_deepest(s, s.off_trunk) for s in described),
    )


@dataclass(frozen=True)
class _Shape:
    parents: list[int]
    depth: list[int]
    ordinal: list[int]
    children: list[list[int]]
    trunk: int

    @property
    def off_trunk(self) -> list[int]:
        return [int(column > self.trunk) for column in range(len(self.parents))]


def _describe(parents: Sequence[int]) -> _Shape:
    everyone = [0, *parents]
    depth, ordinal = [0], [0]
    children: list[list[int]] = [[] for _ in everyone]
    for column, parent in enumerate(everyone[1:], 1):
        depth.append(depth[parent] + 1)
        ordinal.append(len(children[parent]))
        children[parent].append(column)
    trunk = 0
    while children[trunk][:1] == [trunk + 1]:
        trunk += 1
    return _Shape(everyone, depth, ordinal, children, trunk)


def _deepest(shape: _Shape, counts: list[int]) -> int:
    """Largest depth of a column that counts, 0 when none does."""
    return max(depth * (count > 0) for depth, count in zip(shape.depth, counts, strict=True))


def visible(sees: Tensor, cache: KVCache, root: Tensor) -> Tensor:
    """What the columns of a pass may attend to: all up to column 0, then their own ancestors.

    Args:
        sees: bool [R, Q, Q], see `Tree`.
        cache: column c of a row lies in its slot root + c.
        root: int64 [R], the slot of column 0.

    Returns:
        bool [R, 1, Q, extent].
    """
    columns = sees.shape[-1]
    behind = torch.arange(cache.extent, device=root.device) - root[:, None]  # [R, extent]
    inside = (behind > 0) & (behind < columns)
    index = behind.clamp(0, columns - 1)[:, None].expand(-1, columns, -1)
    before = cache.visible(root[:, None])  # [R, 1, 1, extent]
    return before | (sees.gather(2, index) & inside[:, None])[:, None]


def keep_path(cache: KVCache, root: Tensor, path: Tensor, run: Tensor, branches: int) -> None:
    """Moves keys and values of a kept path to the slots where its ranks belong.

    Args:
        cache: whose rows hold the columns from slot `root` on.
        root: int64 [R], the slot of column 0.
        path: int64 [R, D + 1], kept column of every depth up to `run`.
        run: int64 [R], depth of the last kept column.
        branches: `Tree.deepest_branch`; deeper columns are on the trunk and lie right.
    """
    if branches == 0:
        return
    depth = torch.arange(1, branches + 1, device=root.device)
    column = torch.where(depth <= run[:, None], path[:, 1 : branches + 1], depth)
    cache.move(root[:, None] + column, root[:, None] + depth)
