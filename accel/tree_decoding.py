"""Speculative decoding over a tree of drafts, several at one position, whoever makes them.

Recursive rejection without replacement (Jeon et al. 2024, arXiv 2402.14160), or a lossy rule in its
place, on trees whose shape is fixed or follows each picture's own past acceptance. One pass
verifies a whole tree: its drafts lie in the cache behind the last committed token and see their
ancestors only. Knows nothing about families or pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import ClassVar

import torch
from diffusers import SchedulerMixin  # noqa: F401  (diffusers looks for it in a component's module)
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from visual_ar.accel.drafts.adaptive import ADAPTATIONS, Pace, ladder
from visual_ar.accel.drafts.drafter import Drafter, Outcome, Verdict
from visual_ar.accel.drafts.drafter_kinds import DRAFTERS, parse_drafter
from visual_ar.accel.drafts.initialise import INITIALISERS
from visual_ar.accel.drafts.tree import MOST_COLUMNS, Tree, keep_path, shapes, visible
from visual_ar.accel.kernels.reference import COUPLINGS
from visual_ar.accel.loop.chain import ColumnNumbers
from visual_ar.accel.loop.contract import Choices
from visual_ar.accel.loop.host_copy import HostCopy
from visual_ar.accel.loop.state import DecodeState, Step
from visual_ar.accel.loop.window import WindowedDecoding, check_window
from visual_ar.accel.rules.parse import OF_TABLES, parse_rule
from visual_ar.accel.rules.rule import TableRule
from visual_ar.accel.tree_acceptance import judge
from visual_ar.cast import Cast
from visual_ar.tokens.kind import TABLE

_TEST, _DRAW, _OBSERVE = 0, 1, 2
_NUMBERS = 5


@dataclass
class TreeBuffers:
    """What a pass hands to the next one.

    Attributes:
        trees: table of M shapes.
        sizes: int64 [M], columns that exist in each, ascending.
        tree: the next one of every picture.
        drafter: makes the drafts.
        pace: what every picture accepted so far.
        numbers: of every column: to test, to draw, and three to observe with.
        columns: columns of the next pass.
        widest: columns that the next pass needs, for the host.
        rule: the acceptance rule with its tables.
    """

    trees: Tree
    sizes: Tensor
    tree: Tree
    drafter: Drafter
    pace: Pace
    numbers: ColumnNumbers
    columns: int
    widest: HostCopy
    rule: TableRule


class TreeDecoding(WindowedDecoding):
    """Speculation with several drafts at one position, lossless with a lossless rule.

    Args:
        window: ranks predicted along the trunk of a tree, at least 1, or "auto" for the fastest on
            this device. A trunk is never shorter than `tree` is high.
        tree: drafts below every draft at the first positions, such as "3x2": three for the next
            position, two below each of these. "1" is a chain.
        drafter: who drafts the nodes of a tree: "jacobi", the model's own guesses of the pass
            before, with new siblings where that pass rejected; "head", the model's trained draft
            head; or neighbours joined by "+", such as "left-law+above-law", of which the first
            drafts the trunk and all take turns as siblings. See `initialise.INITIALISERS`.
        coupling: how Jacobi drafts follow from pass to pass, see `SpeculativeJacobiDecoding`; with
            "gumbel" siblings follow too.
        init: first draft of a rank that the Jacobi drafter has not seen yet.
        adapt: what follows a picture's past acceptance: "none"; the "length" of the trunk, up to
            the window; or the "shape", branches turning into trunk while long runs are accepted.
        rule: what accepts a draft, with options; see `parse_rule`. Siblings are tested in turn,
            each against the rule's correction of those before it. With a lossy one the total
            variation spent is an upper bound, estimated from the drafts.

    Raises:
        ValueError: an option outside its range, a tree with more drafts at one position than the
            drafter has, or a rule that judges chains only.
    """

    lossless = True
    needs = frozenset({TABLE})
    requires = frozenset({"trees"})
    skips = True
    capturable = True
    choices: ClassVar[Choices] = {
        **WindowedDecoding.choices,
        "drafter": DRAFTERS,
        "coupling": COUPLINGS,
        "init": INITIALISERS,
        "adapt": ADAPTATIONS,
        "rule": OF_TABLES,
    }

    @register_to_config
    def __init__(
        self,
        window: int | str = "auto",
        tree: str = "3x2",
        drafter: str = "jacobi",
        coupling: str = "maximal",
        init: str = "uniform",
        adapt: str = "none",
        rule: str = "exact",
    ) -> None:
        self.register_to_config(window=check_window(window))
        self._branching = parse_tree(tree)
        if adapt not in ADAPTATIONS:
            raise ValueError(f"adapt must be one of {', '.join(ADAPTATIONS)}, got {adapt!r}")
        if not any(map(self._fits, self.candidates if window == "auto" else (int(window),))):
            raise ValueError(
                f"tree {tree} with window {window} must have fewer than {MOST_COLUMNS} drafts; "
                "make the window or the branching smaller"
            )
        self._kind = parse_drafter(drafter, init, coupling)
        self.needs_noise = drafter == "jacobi" and coupling == "gumbel"
        most = self._kind.siblings
        if most is not None and max(self._branching) > most:
            raise ValueError(
                f"tree {tree} needs {max(self._branching)} drafts at one position, drafter "
                f"{drafter} copies {most}; jacobi and the laws of neighbours (left-law, above-law) "
                "have as many as there are codes"
            )
        self._rule = _rule_of_trees(rule, drafter)
        self.lossless = self._rule.lossless

    @classmethod
    def spatial(cls) -> TreeDecoding:
        """Drafts from the laws of neighbours only, which cost nothing and need no past."""
        return cls(window=4, tree="2", drafter="left-law+above-law")

    @classmethod
    def adaptive(cls) -> TreeDecoding:
        """The Jacobi drafter with trees that follow each picture's past acceptance."""
        return cls(window=32, adapt="shape")

    def _ladder(self, window: int) -> list[list[int]]:
        """The shapes that trees may have with a window, as parents."""
        trunk = max(window - 1, len(self._branching))
        return ladder(self.config.adapt, self._branching, trunk)

    def windows(self) -> tuple[int, ...]:
        """See `WindowedDecoding.windows`."""
        return tuple(filter(self._fits, self.candidates))

    def _fits(self, window: int) -> bool:
        """Whether the trees of a window are not too large."""
        return max(map(len, self._ladder(window))) < MOST_COLUMNS

    def check(self, cast: Cast) -> None:
        """See `Decoding.check`."""
        super().check(cast)
        self._kind.check(cast)
        self._rule.check(cast.model.tokens, cast.tokenizer)

    def init(self, cast: Cast, slots: int, guided: bool = True, window: int = 1) -> DecodeState:
        """See `Decoding.init`."""
        device = cast.model.device
        trees = shapes(self._ladder(window), device)
        state = super().init(cast, slots, guided, trees.columns)
        sizes, rule = trees.exists.sum(1), self._rule.bind(cast.tokenizer, device)
        assert isinstance(rule, TableRule)
        state.method = TreeBuffers(
            trees=trees,
            sizes=sizes,
            tree=trees.pick(torch.zeros_like(state.length)),
            drafter=self._kind.make(state, trees),
            pace=Pace(trees.trunk, slots),
            numbers=ColumnNumbers(_NUMBERS, trees.columns),
            columns=trees.columns,
            widest=HostCopy(state.tokens.device, trees.columns),
            rule=rule,
        )
        return state

    def prepare(self, state: DecodeState, slots: Tensor) -> None:
        """Drafts for newly admitted slots, and forgets what their last pictures accepted."""
        buffers: TreeBuffers = state.method
        buffers.numbers.forget()
        buffers.pace.admit(slots)
        buffers.drafter.admit(slots)
        self._choose_shapes(state)

    def step(self, state: DecodeState) -> Step:
        """One pass: draft a tree, predict behind every draft, keep a path, correct its end."""
        buffers: TreeBuffers = state.method
        tree = buffers.tree.narrow(buffers.columns)
        u = buffers.numbers.take(state)
        draft = buffers.drafter.draft(tree, u[:, _DRAW])
        first = state.length
        feed = state.tokens.gather(1, (first[:, None] - 1).clamp(min=0))
        ranks = first[:, None] - 1 + tree.depth
        root = state.twice(first) - 1 + state.cache.prefix
        hidden = state.forward(
            torch.cat([feed, draft.tokens], 1),
            ranks,
            visible(state.twice(tree.sees), state.cache, root),
            root[:, None] + torch.arange(tree.columns, device=root.device),
        )
        p = state.law(hidden, ranks + 1)
        verdict = judge(tree, p, draft, u[:, _TEST], buffers.rule)
        path, run = state.twice(verdict.path), state.twice(verdict.run)
        keep_path(state.cache, root, path, run, tree.deepest_branch)
        spent = _spent_on_path(state, verdict)
        token = verdict.correction.draw(u[:, _OBSERVE, :1])[:, 0]
        committed = state.commit(_committed(draft.tokens, verdict, token), verdict.run + 1)
        outcome = Outcome(tree, draft, first, hidden, p, verdict, token)
        buffers.drafter.observe(outcome, u[:, _OBSERVE:].transpose(0, 1))
        if len(buffers.sizes) > 1:
            buffers.pace.observe(verdict.run)
            self._choose_shapes(state)
        drafted = buffers.drafter.evaluations
        return state.report(committed, tree.columns, spent, drafted)

    @torch.inference_mode()
    def advance(self, state: DecodeState) -> Step:
        """See `Decoding.advance`. Columns that nobody uses are cut where the host knows them."""
        buffers: TreeBuffers = state.method
        if buffers.widest.lag == 0:
            buffers.columns = buffers.widest.read()
        return super().advance(state)

    @staticmethod
    def _choose_shapes(state: DecodeState) -> None:
        buffers: TreeBuffers = state.method
        shape = buffers.pace.shape().masked_fill(state.done, 0)
        buffers.tree = buffers.trees.pick(shape)
        if state.captured is None:  # a graph has one shape, the widest
            buffers.widest.push(buffers.sizes[shape].max())


def parse_tree(text: str | int) -> tuple[int, ...]:
    """Children at the first depths, from a text such as "3x2".

    Raises:
        ValueError: not whole numbers of at least 1 joined by x, or more drafts than a tree holds.
    """
    parts = str(text).split("x")
    if not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise ValueError(
            f"tree must be whole numbers of at least 1 joined by x, such as 3x2, got {text!r}"
        )
    branching = tuple(map(int, parts))
    if sum(accumulate(branching, mul)) >= MOST_COLUMNS:
        raise ValueError(f"tree must have fewer than {MOST_COLUMNS} drafts, got {text!r}")
    return branching


def _rule_of_trees(rule: str, drafter: str) -> TableRule:
    """Reads a rule. Raises ValueError unless it tests every draft by itself."""
    parsed = parse_rule(rule)
    if not isinstance(parsed, TableRule):
        raise ValueError(
            f"rule {rule} judges the drafts of one chain, and cannot judge the tree that drafter "
            f"{drafter} fills; the methods draft-head, and jacobi with coupling 'independent', "
            "have chains for it"
        )
    return parsed


def _spent_on_path(state: DecodeState, verdict: Verdict) -> Tensor | None:
    """fp32 [B], what a lossy rule spends on the tokens of a pass; before they are committed."""
    if verdict.spent is None:
        return None
    offsets = torch.arange(verdict.spent.shape[1], device=verdict.spent.device)
    exists = state.length[:, None] + offsets < state.layout.length
    return (verdict.spent * exists).sum(1)


def _committed(drafts: Tensor, verdict: Verdict, token: Tensor) -> Tensor:
    """Tokens of the kept path, then the corrected one; what follows is of no use.

    Args:
        drafts: int64 [B, K].
        verdict: of the pass.
        token: int64 [B].

    Returns:
        int64 [B, deepest + 1].
    """
    kept = drafts.gather(1, (verdict.path[:, 1:] - 1).clamp(min=0))
    tokens = torch.cat([kept, token[:, None]], 1)
    return tokens.scatter(1, verdict.run[:, None], token[:, None])
