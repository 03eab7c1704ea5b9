"""What speculative methods share: the random numbers of their passes, and the price of a chain.

Knows nothing about who drafts or which rule accepts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from visual_ar.accel.loop.state import DecodeState
from visual_ar.accel.rules.rule import Rule
from visual_ar.sampling import bit_uniforms
from visual_ar.tokens.law import Law
from visual_ar.tokens.numbers import Numbers

_BLOCK_PICTURES = 8
_COLUMN_STREAM = 64


class Ahead:
    """Random numbers of the next passes, a few passes computed at a time at small batches.

    The hundred small operations of a counter-based generator cost as much for one pass as for
    eight.
    """

    _numbers: Tensor

    def __init__(self) -> None:
        self._left = 0

    def forget(self) -> None:
        """Drops what was computed ahead, as newly admitted pictures demand."""
        self._left = 0

    def turn(self, state: DecodeState, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Numbers of this pass, to be called once a pass.

        Args:
            state: whose next pass it is.
            compute: gets int64 [n, B], the attempts of the next n passes; [n, ...] numbers.

        Returns:
            one row of what `compute` gave.
        """
        if self._left == 0:
            self._left = max(_BLOCK_PICTURES // state.slots, 1)
            passes = torch.arange(1, self._left + 1, device=state.seed.device)[:, None]
            self._numbers = compute(state.passes + passes)
        numbers = self._numbers[-self._left]
        self._left -= 1
        return numbers


class PassNumbers(Ahead):
    """The numbers of every rank of a window, by the kind of token."""

    _base: Tensor  # int64 [B], rank of the first column that was computed

    def take(self, state: DecodeState, offsets: Tensor) -> Numbers:
        """Numbers of this pass, to be called once a pass.

        Args:
            state: whose next pass it is.
            offsets: int64 [W], ranks wanted, counted from the committed length.

        Returns:
            of [B, W] ranks.
        """
        kind, seed, attempt = state.kind, state.seed, state.passes + 1
        ranks = state.length[:, None] + offsets
        if state.captured is not None:  # a graph counts no passes on the host
            u = kind.uniforms(seed[:, None], ranks, attempt[:, None])
            return kind.numbers(u, seed, ranks, attempt)

        def compute(attempts: Tensor) -> Tensor:
            self._base = state.length
            reach = min(len(attempts) * self._stride(state), state.tokens.shape[1])
            ahead = state.length[:, None] + torch.arange(reach, device=offsets.device)
            return kind.uniforms(seed[:, None], ahead, attempts[..., None]).movedim(1, 0)

        numbers = self.turn(state, compute)  # [U, B, reach, *]
        columns = (state.length - self._base)[:, None] + offsets
        index = columns.view(*columns.shape, *[1] * (numbers.dim() - 3))
        u = numbers.gather(2, index.expand(len(numbers), *columns.shape, *numbers.shape[3:]))
        return kind.numbers(u, seed, ranks, attempt)

    @staticmethod
    def _stride(state: DecodeState) -> int:
        """Ranks by which a pass can move a picture on, at most."""
        return state.window + state.layout.longest_run


class ColumnNumbers(Ahead):
    """Uniform numbers for every column of a tree, whatever rank it stands for.

    Args:
        uses: numbers of a column.
        columns: of the largest tree.
    """

    def __init__(self, uses: int, columns: int) -> None:
        super().__init__()
        self._shape = (uses, columns)

    def take(self, state: DecodeState) -> Tensor:
        """fp32 [B, uses, columns] in (0, 1) of this pass, to be called once a pass."""

        def compute(attempts: Tensor) -> Tensor:
            # An attempt alone tells the passes of a picture apart.
            rank, count = torch.zeros_like(attempts), self._shape[0] * self._shape[1]
            u = bit_uniforms(state.seed, rank, attempts, count, stream=_COLUMN_STREAM)
            return u.unflatten(-1, self._shape)

        if state.captured is not None:  # a graph counts no passes on the host
            return compute(state.passes + 1)
        return self.turn(state, compute)


def spent_on_run(
    state: DecodeState,
    rule: Rule,
    p: Law,
    q: Law,
    drafts: Tensor,
    run: Tensor,
    exactly: bool,
    refused: Tensor | None = None,
) -> Tensor:
    """Total variation that a rule spends on the drafts that a pass tested first.

    Args:
        state: before they are committed.
        rule: which kept them.
        p: [B, K + 1] target laws.
        q: [B, K] draft laws.
        drafts: [B, K, *].
        run: int64 [B], drafts kept.
        exactly: see `Rule.spent`.
        refused: bool [B], pictures whose first draft was tested, and paid for, before.

    Returns:
        fp32 [B].
    """
    count = drafts.shape[1]
    if count == 0:
        return torch.zeros_like(state.temperature)
    spent = rule.spent(p.first(count), q, drafts, exactly)
    offsets = torch.arange(count, device=run.device)
    tested = offsets <= run[:, None]  # the drafts kept, and the one that was corrected
    if refused is not None:
        tested = tested & ~(refused[:, None] & (offsets == 0))
    exists = state.length[:, None] + offsets < state.layout.length
    return torch.where(tested & exists, spent, 0.0).sum(1)
