"""Drafts that depend on the position only, the same below every parent: spatial and Jacobi ones.

Spatial drafts copy the tokens or draw from the laws of neighbours (Teng et al. 2024, section on
token initialisation) and are made anew in every pass. Jacobi drafts come from the pass before
(arXiv 2410.01699), coupled (arXiv 2510.24211), with siblings at the rejection point as
in SJD-PAC (arXiv 2603.18599), here drawn from the law without the earlier ones. Knows nothing about
acceptance.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from visual_ar.accel.drafts.drafter import Draft, Drafter, Outcome
from visual_ar.accel.drafts.initialise import LAWS, first_drafts
from visual_ar.accel.drafts.tree import Tree
from visual_ar.accel.loop.state import DecodeState
from visual_ar.accel.rules.siblings import draw_in_turn
from visual_ar.sampling import take_rows, uniforms
from visual_ar.tokens.codes import CategoricalLaw

_ATTEMPT_OF_ADMISSION = 0


class Neighbours:
    """First drafts from the neighbourhood of committed tokens, and the laws that these need.

    Args:
        state: of B slots.
        inits: names of `initialise.INITIALISERS`.
    """

    def __init__(self, state: DecodeState, inits: tuple[str, ...]) -> None:
        self._state, self.inits = state, inits
        self._history: Tensor | None = None
        if LAWS & set(inits):
            shape = (*state.tokens.shape, state.law_width)
            self._history = torch.zeros(shape, device=state.tokens.device)

    def admit(self, slots: Tensor) -> None:
        """Forgets the laws of other pictures: no pass predicts what is given. slots: int64 [b]."""
        if self._history is not None:
            state = self._state
            self._history[slots] = state.kind.flat(state.law_width, self._history.device)

    def drafts(self, init: str, ranks: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens int64 [B, K] and their laws [B, K, V]. ranks: int64 [B, K]; u: [B, K]."""
        newest = self._state.length - 1
        tokens, q = first_drafts(init, self._state, self._history, ranks, newest, u)
        return tokens, q.expand(*tokens.shape, self._state.law_width)

    def observe(self, outcome: Outcome) -> None:
        """Notes the laws of the ranks that were committed; what is behind them nobody reads."""
        if self._history is not None:
            path = outcome.verdict.path
            ranks = outcome.first[:, None] + torch.arange(path.shape[1], device=path.device)
            pictures = torch.arange(len(path), device=path.device)[:, None]
            self._history[pictures, ranks] = outcome.p.rows(path).probabilities


class PositionDrafter(Drafter):
    """Makes candidates for every depth of a tree whose trunk comes first, and deals them out.

    All families of one depth get the same candidates, which is exact, since only one of them is
    ever reached, whatever its own tokens are.

    Attributes:
        turns: laws that the siblings of a family take turns to be drawn from, R.
    """

    turns: int = 1

    @abstractmethod
    def candidates(self, tree: Tree, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """First candidates of all depths D = trees.deepest, and laws.

        Args:
            tree: of B pictures.
            u: [B, C] in (0, 1), one for every column.

        Returns:
            tokens int64 [B, D], laws [B, M, V], and int64 [D, S], the law of every sibling.
        """

    def siblings(self, laws: Tensor, first: Tensor, u: Tensor) -> Tensor:
        """Siblings of the next ranks, see `siblings.draw_in_turn`."""
        return draw_in_turn(laws, first, u)

    def draft(self, tree: Tree, u: Tensor) -> Draft:
        """See `Drafter.draft`."""
        first, laws, rows = self.candidates(tree, u)
        forked, deepest = tree.deepest_fork, self.trees.deepest
        dealt = first[..., None].repeat(1, 1, tree.siblings)  # [B, D, S]
        if forked:
            family = tree.children[:, :forked].clamp(min=0)  # of the trunk's columns, [B, F, S]
            numbers = u.gather(1, family.flatten(1)).view(family.shape)
            turns = rows[:forked, : self.turns]
            drawn = take_rows(laws, turns.flatten().expand(len(u), -1))
            drawn = drawn.unflatten(1, turns.shape)  # [B, F, R, V]
            dealt[:, :forked] = self.siblings(drawn, first[:, :forked], numbers)
        place = (tree.depth - 1).clamp(min=0) * tree.siblings + tree.ordinal
        place = place[:, 1:]
        tokens = dealt.view(len(u), deepest * tree.siblings).gather(1, place)
        return Draft(tokens, CategoricalLaw(probabilities=laws), rows.flatten()[place])


class SpatialDrafter(PositionDrafter):
    """Drafts from the neighbours of committed tokens, made anew in every pass.

    The siblings of a family take turns among the neighbours. A neighbour whose token is copied has
    one draft to give; one whose law is drawn from has as many as there are codes.

    Args:
        state: of B slots.
        trees: the shapes it will be asked for.
        inits: neighbours, names of `initialise.INITIALISERS`; the first serves the trunk.
    """

    def __init__(self, state: DecodeState, trees: Tree, inits: tuple[str, ...]) -> None:
        super().__init__(state, trees)
        self._neighbours = Neighbours(state, inits)
        self.turns = min(len(inits), trees.siblings)
        self._rows = self._law_of_siblings(trees, len(inits)).to(state.tokens.device)

    @staticmethod
    def _law_of_siblings(trees: Tree, sources: int) -> Tensor:
        """int64 [D, S]: rows of the first source for every depth, then of the others for forks."""
        depth = torch.arange(trees.deepest)[:, None]
        source = (torch.arange(trees.siblings) % sources)[None]
        other = trees.deepest + (source - 1) * trees.deepest_fork + depth
        return torch.where((source == 0) | (depth >= trees.deepest_fork), depth, other)

    def admit(self, slots: Tensor) -> None:
        """See `Drafter.admit`."""
        self._neighbours.admit(slots)

    def candidates(self, tree: Tree, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `PositionDrafter.candidates`."""
        offsets = torch.arange(self.trees.deepest, device=u.device)
        ranks = self.state.length[:, None] + offsets
        numbers = u[:, 1 : len(offsets) + 1]
        main, *others = self._neighbours.inits
        tokens, first = self._neighbours.drafts(main, ranks, numbers)
        laws, forked = [first], tree.deepest_fork
        if forked:
            for init in others:
                some = self._neighbours.drafts(init, ranks[:, :forked], numbers[:, :forked])
                laws.append(some[1])
        return tokens, torch.cat(laws, 1), self._rows

    def observe(self, outcome: Outcome, u: Tensor) -> None:
        """See `Drafter.observe`."""
        self._neighbours.observe(outcome)


class JacobiDrafter(PositionDrafter):
    """The target model's own drafts of the pass before; see the module's docstring.

    Args:
        state: of B slots.
        trees: the shapes it will be asked for.
        init: first draft of a rank that no pass has predicted yet.
        coupling: how drafts follow from pass to pass, see `jacobi.SpeculativeJacobiDecoding`.
    """

    def __init__(self, state: DecodeState, trees: Tree, init: str, coupling: str) -> None:
        super().__init__(state, trees)
        self._coupling = coupling
        device, deepest = state.tokens.device, trees.deepest
        self._neighbours = Neighbours(state, (init,))
        self._tokens = torch.zeros(state.slots, deepest, dtype=torch.int64, device=device)
        self._q = torch.zeros(state.slots, deepest, state.law_width, device=device)
        self._rows = torch.arange(deepest, device=device)[:, None].repeat(1, trees.siblings)
        self._shortest = int(trees.trunk.min())

    def admit(self, slots: Tensor) -> None:
        """Drafts the first trunk of newly admitted slots."""
        state = self.state
        self._neighbours.admit(slots)
        ranks = state.length[:, None] + torch.arange(self.trees.deepest, device=slots.device)
        attempt = torch.full_like(ranks, _ATTEMPT_OF_ADMISSION)
        u = uniforms(state.seed[:, None], ranks, attempt)[0]
        tokens, q = self._neighbours.drafts(self._neighbours.inits[0], ranks, u)
        self._tokens[slots], self._q[slots] = tokens[slots], q[slots]

    def candidates(self, tree: Tree, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `PositionDrafter.candidates`."""
        return self._tokens, self._q, self._rows

    def siblings(self, laws: Tensor, first: Tensor, u: Tensor) -> Tensor:
        """See `PositionDrafter.siblings`.

        With noise fixed per rank the siblings of the most likely sum of log-probability and noise
        are the next ones, which is drawing without replacement (Kool et al. 2019, arXiv
        1903.06059), and they change as little from pass to pass as it does.
        """
        if self._coupling != "gumbel":
            return super().siblings(laws, first, u)
        ranks = self.state.length[:, None] + torch.arange(first.shape[1], device=u.device)
        noisy = laws[:, :, 0].log() + self.state.noise_at(ranks)
        drawn = [first]
        for _ in range(1, u.shape[-1]):
            noisy.scatter_(-1, drawn[-1][..., None], -torch.inf)
            drawn.append(noisy.argmax(-1))
        return torch.stack(drawn, -1)

    def observe(self, outcome: Outcome, u: Tensor) -> None:
        """Couples the drafts behind the pass to the laws it found, and moves on with the pictures.

        The new law of the rank at depth d + 1 is the one predicted at depth d, by the first
        descendants of the kept path where there are any, else by the trunk.
        """
        self._neighbours.observe(outcome)
        depth = torch.arange(1, self.trees.deepest + 1, device=u.device)
        p = outcome.p.rows(self._columns(outcome)[:, 1:])
        keep, redraw, enter = u[..., 1 : len(depth) + 1]
        tokens = self._couple(p, outcome.first[:, None] + depth, keep, redraw)
        laws, predicted = p.probabilities, depth <= outcome.tree.trunk[:, None]
        sure = self._shortest
        if sure < len(depth):
            # Ranks that this pass did not reach keep the draft they have; the last has none.
            found = predicted[:, sure:-1]
            old_tokens, old_laws = self._tokens[:, sure + 1 :], self._q[:, sure + 1 :]
            tokens[:, sure:-1] = torch.where(found, tokens[:, sure:-1], old_tokens)
            laws[:, sure:-1] = torch.where(found[..., None], laws[:, sure:-1], old_laws)
        there = predicted | (depth < len(depth))
        moved = (self.state.length - outcome.first - 1).clamp(min=0)  # an idle slot stands still
        self._shift(tokens, laws, there, moved, enter)

    def _couple(self, p: CategoricalLaw, ranks: Tensor, keep: Tensor, redraw: Tensor) -> Tensor:
        """New drafts int64 [B, D] from [B, D] laws of `ranks`; keep, redraw: [B, D] in (0, 1)."""
        if self._coupling == "gumbel":
            return p.draw_frozen(self.state.noise_at(ranks))
        if self._coupling == "independent":
            return p.draw(redraw)
        old, kept = CategoricalLaw(probabilities=self._q[:, 1:]), self._tokens[:, 1:]
        front, count = p.first(kept.shape[1]), kept.shape[1]
        passes = front.keep(old, kept, keep[:, :count])
        again = torch.where(passes, kept, front.redraw(old, redraw[:, :count]))
        return torch.cat([again, p.last().draw(redraw[:, -1:])], dim=1)

    def _columns(self, outcome: Outcome) -> Tensor:
        """For every depth, the column whose law becomes that of a draft. int64 [B, D + 1]."""
        tree, current = outcome.tree, outcome.verdict.last[:, None]
        columns = torch.arange(self.trees.deepest + 1, device=current.device)
        columns = columns.clamp(max=tree.columns - 1).repeat(len(current), 1)
        for _ in range(tree.deepest_branch):
            child = tree.children[..., 0].gather(1, current)
            current = torch.where(child > 0, child, current)
            columns.scatter_(1, tree.depth.gather(1, current), current)
        return columns

    def _shift(self, tokens: Tensor, laws: Tensor, there: Tensor, moved: Tensor, u: Tensor) -> None:
        """Moves the trunk behind the committed tokens and drafts what enters it.

        Args:
            tokens: int64 [B, D], for the ranks that the depths 1, 2, ... of this pass predict.
            laws: [B, D, V], their laws.
            there: bool [B, D], whether there is such a draft.
            moved: int64 [B], ranks from the one that depth 0 of this pass predicts to the last that
                is done with: the drafts kept, and what no pass draws behind them.
            u: [B, D] in (0, 1), for the drafts that enter.
        """
        deepest = self.trees.deepest
        offsets = torch.arange(deepest, device=u.device)
        source = moved[:, None] + offsets
        index = source.clamp(max=deepest - 1)
        stays = (source < deepest) & there.gather(1, index)
        ranks = self.state.length[:, None] + offsets
        init = self._neighbours.inits[0]
        entering, entering_laws = self._neighbours.drafts(init, ranks, u)
        self._tokens = torch.where(stays, tokens.gather(1, index), entering)
        self._q = torch.where(stays[..., None], take_rows(laws, index), entering_laws)
