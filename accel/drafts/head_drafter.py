"""Fills trees of drafts with a trained draft head, which foretells the model's hidden states.

The static trees of LANTERN++ (Park et al. 2025, arXiv 2502.06352): siblings are drawn without
replacement from the law of their parent, and that law is kept. Knows nothing about acceptance.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from visual_ar.accel.drafts.drafter import Draft, Drafter, Outcome
from visual_ar.accel.drafts.head_memory import HeadMemory
from visual_ar.accel.drafts.tree import Tree, visible
from visual_ar.accel.loop.state import DecodeState
from visual_ar.accel.rules.siblings import draw_in_turn
from visual_ar.sampling import take_rows
from visual_ar.tokens.codes import CategoricalLaw


class _Filling(NamedTuple):
    """A tree that is being filled.

    Attributes:
        tokens: int64 [B, Q + 1]; the last column takes what is drawn for no column.
        q: fp32 [B, Q of the largest tree, V], law of the children of every column.
        features: [R, Q, D], the states that the head foretold in every column.
        seen: bool [R, 1, Q, extent], what the columns attend to.
    """

    tokens: Tensor
    q: Tensor
    features: Tensor
    seen: Tensor


class HeadDrafter(Drafter):
    """One step of the head for every depth of a tree: all columns of a depth that have children.

    Columns stand at different depths in different shapes. A step is made for every column that has
    its depth in any shape, and counts for the pictures whose shape it is.
    """

    def __init__(self, state: DecodeState, trees: Tree) -> None:
        super().__init__(state, trees)
        self._memory = HeadMemory(state, trees.deepest + 1)
        depth, parents = trees.depth.tolist(), trees.parents.tolist()
        found: list[set[int]] = [set() for _ in range(trees.deepest)]
        for shape, parent in zip(depth, parents, strict=True):
            for column in parent:
                found[shape[column]].add(column)
        self._parents = [sorted(level) for level in found]
        self._levels: dict[int, list[Tensor]] = {}
        self._q = torch.zeros(
            state.slots, trees.columns, state.law_width, device=state.tokens.device
        )

    @property
    def evaluations(self) -> int:
        """See `Drafter.evaluations`."""
        return sum(map(len, self._parents))

    def admit(self, slots: Tensor) -> None:
        """See `Drafter.admit`."""
        self._memory.admit(slots)

    def draft(self, tree: Tree, u: Tensor) -> Draft:
        """See `Drafter.draft`."""
        state, memory = self.state, self._memory
        newest = memory.catch_up()
        rows, device, columns = len(newest), u.device, tree.columns
        tokens = torch.zeros(state.slots, columns + 1, dtype=torch.int64, device=device)
        filling = _Filling(
            tokens=tokens,
            q=self._q,
            features=newest.new_zeros(rows, columns, newest.shape[-1]),
            seen=visible(state.twice(tree.sees), memory.cache, state.twice(state.length)),
        )
        filling.features[:, :1] = newest
        for depth, parents in enumerate(self._levels_of(columns)):
            if depth > 0:
                self._foretell(tree, filling, depth, parents)
            self._draw(tree, filling, depth, parents, u)
        return Draft(tokens[:, 1:-1], CategoricalLaw(probabilities=filling.q), tree.parents[:, 1:])

    def observe(self, outcome: Outcome, u: Tensor) -> None:
        """See `Drafter.observe`. Keeps the states along the path; u is not read."""
        path = self.state.twice(outcome.verdict.path)
        self._memory.observe(outcome.first, take_rows(outcome.hidden, path))

    def _levels_of(self, columns: int) -> list[Tensor]:
        """Columns with children by depth, int64 [G], of trees cut to some columns; made once."""
        if columns not in self._levels:
            kept = [[c for c in level if c < columns] for level in self._parents]
            device = self.trees.depth.device
            self._levels[columns] = [torch.tensor(c, device=device) for c in kept if c]
        return self._levels[columns]

    def _foretell(self, tree: Tree, filling: _Filling, depth: int, columns: Tensor) -> None:
        """A step of the head for drafts at one depth, from the states foretold for their parents.

        columns: int64 [G].
        """
        state, memory = self.state, self._memory
        here = tree.depth[:, columns] == depth
        ranks = (state.length - 1)[:, None] + tree.depth[:, columns]
        x = state.twice(state.model.embed(filling.tokens[:, columns], ranks))
        before = take_rows(filling.features, state.twice(tree.parents[:, columns]))
        slots = state.twice(state.length)[:, None] + columns
        states = memory.head(
            x, before, state.twice(ranks), memory.cache, filling.seen[:, :, columns], slots
        )
        now = state.twice(here)[..., None]
        filling.features[:, columns] = torch.where(now, states, filling.features[:, columns])

    def _draw(self, tree: Tree, filling: _Filling, depth: int, parents: Tensor, u: Tensor) -> None:
        """Draws the children of columns at one depth, each without its earlier siblings.

        parents: int64 [G]; u: [B, C].
        """
        state, tokens = self.state, filling.tokens
        here = tree.depth[:, parents] == depth
        ranks = state.length[:, None] + tree.depth[:, parents]
        law = state.law(filling.features[:, parents], ranks).probabilities  # [B, G, V]
        if len(self.trees.parents) > 1:  # in another shape a column has another depth
            law = torch.where(here[..., None], law, filling.q[:, parents])
        filling.q[:, parents] = law
        kids = tree.children[:, parents]  # [B, G, S]
        numbers = u.gather(1, kids.clamp(min=0).flatten(1)).view(kids.shape)
        first = CategoricalLaw(probabilities=law).draw(numbers[..., 0])
        drawn = draw_in_turn(law[:, :, None], first, numbers)
        there = here[..., None] & (kids >= 0)
        tokens.scatter_(1, torch.where(there, kids, tree.columns).flatten(1), drawn.flatten(1))
