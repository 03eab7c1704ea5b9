"""The contract between a tree of drafts and whoever fills it; knows no method and no model family.

A drafter is made for one decoding state and owns its buffers there. The shape of the tree is given
to it, so that a shape can never depend on the drafts in it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

from visual_ar.accel.drafts.tree import Tree
from visual_ar.accel.loop.state import DecodeState
from visual_ar.tokens.codes import CategoricalLaw


class Draft(NamedTuple):
    """Drafts for the columns 1..K of a tree, and the laws they were really drawn from.

    The drafts below one parent are drawn without replacement: a draft was drawn from its own row of
    `q` without the tokens of its earlier siblings, renormalised. A draft for which that leaves no
    mass counts as not made.

    Attributes:
        tokens: int64 [B, K].
        q: [B, M] laws.
        rows: int64 [B, K], which of the laws each draft was drawn from.
    """

    tokens: Tensor
    q: CategoricalLaw
    rows: Tensor


class Verdict(NamedTuple):
    """What is kept of a tree.

    Attributes:
        path: int64 [B, deepest + 1], kept column of every depth up to `run`, column 0 first.
        run: int64 [B], drafts kept.
        last: int64 [B], the last kept column.
        correction: [B, 1] laws of the token behind it.
        spent: fp32 [B, deepest], total variation that a lossy rule spent at every depth from 1 on,
            0 where no draft was tested; None when the rule is lossless.
    """

    path: Tensor
    run: Tensor
    last: Tensor
    correction: CategoricalLaw
    spent: Tensor | None = None


class Outcome(NamedTuple):
    """What a pass over a tree found.

    Attributes:
        tree: of Q = K + 1 columns.
        draft: what filled it.
        first: int64 [B], the rank that column 0 predicts; column c predicts first + its depth.
        hidden: [R, Q, D] hidden states of the columns, conditional rows first; that of column
            verdict.last predicted `token`.
        p: [B, Q] laws that the columns predict.
        verdict: which path was kept.
        token: int64 [B], committed behind the path, at rank first + verdict.run; the next pass has
            it in column 0.
    """

    tree: Tree
    draft: Draft
    first: Tensor
    hidden: Tensor
    p: CategoricalLaw
    verdict: Verdict
    token: Tensor


class Drafter(ABC):
    """Fills trees for the pictures of one state. To be exact it must keep to two rules.

    A draft may depend on what earlier ranks hold and on earlier passes, never on a rank behind its
    own; and it is drawn from the law it reports, with the number it is given.

    Attributes:
        state: tokens, lengths, options and cache of B slots.
        trees: the shapes it will be asked for.
    """

    def __init__(self, state: DecodeState, trees: Tree) -> None:
        self.state, self.trees = state, trees

    @property
    def evaluations(self) -> int:
        """Laws for which `draft` runs a model of its own, for one picture."""
        return 0

    @abstractmethod
    def admit(self, slots: Tensor) -> None:
        """Forgets what was in some slots; their prefix is in the cache. slots: int64 [b]."""

    @abstractmethod
    def draft(self, tree: Tree, u: Tensor) -> Draft:
        """Drafts the columns of a tree behind the committed tokens, `state.tokens` up to
        `state.length`. A column at depth d is for rank length - 1 + d.

        Args:
            tree: of B pictures and Q columns. Columns that do not exist get any token and row.
            u: [B, C] in (0, 1), C at least Q, one for every column.
        """

    @abstractmethod
    def observe(self, outcome: Outcome, u: Tensor) -> None:
        """Learns what the pass found, after the tokens were committed.

        Args:
            outcome: of the pass over what `draft` returned.
            u: [3, B, C] in (0, 1), three for every column. All are fresh, except those of column 0.
        """
