"""What methods share that verify one chain of drafts a picture: their random numbers, their price.

Knows nothing about who drafts or which rule accepts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visual_ar.accel.decoding import DecodeState
from visual_ar.accel.rule import Rule
from visual_ar.sampling import CategoricalLaw, uniforms

_BLOCK_PICTURES = 8


class PassNumbers:
    """Uniform numbers of the next passes, a few passes computed at a time at small batches.

    The hundred small operations of a counter-based generator cost as much for one pass as for
    eight.
    """

    def __init__(self) -> None:
        self._ahead = 0

    def forget(self) -> None:
        """Drops what was computed ahead, as newly admitted pictures demand."""
        self._ahead = 0

    def take(self, state: DecodeState, offsets: Tensor) -> Tensor:
        """Numbers of this pass, to be called once a pass.

        Args:
            state: whose next pass it is.
            offsets: int64 [W], ranks wanted, counted from the committed length.

        Returns:
            fp32 [4, B, W] in (0, 1).
        """
        if state.captured is not None:  # a graph counts no passes on the host
            ranks = state.length[:, None] + offsets
            return uniforms(state.seed[:, None], ranks, state.passes[:, None] + 1)
        if self._ahead == 0:
            block = max(_BLOCK_PICTURES // state.slots, 1)
            reach = min(block * state.window, state.tokens.shape[1])
            passes = torch.arange(1, block + 1, device=offsets.device)[:, None, None]
            ranks = state.length[:, None] + torch.arange(reach, device=offsets.device)
            attempts = state.passes[:, None] + passes
            self._numbers = uniforms(state.seed[:, None], ranks[None], attempts)
            self._base, self._ahead = state.length, block
        numbers = self._numbers[:, -self._ahead]
        self._ahead -= 1
        columns = (state.length - self._base)[:, None] + offsets
        return numbers.gather(2, columns.expand(4, -1, -1))


def spent_on_run(
    state: DecodeState,
    rule: Rule,
    p: CategoricalLaw,
    q: CategoricalLaw,
    drafts: Tensor,
    run: Tensor,
    exactly: bool,
) -> Tensor:
    """Total variation that a rule spends on the tokens a pass commits.

    Args:
        state: before they are committed.
        rule: which kept them.
        p: [B, K + 1] target laws.
        q: [B, K] draft laws.
        drafts: int64 [B, K].
        run: int64 [B], drafts kept.
        exactly: see `Rule.spent`.

    Returns:
        fp32 [B].
    """
    count = drafts.shape[1]
    if count == 0:
        return torch.zeros_like(state.temperature)
    spent = rule.spent(p.first(count), q, drafts, exactly)
    offsets = torch.arange(count, device=run.device)
    tested = offsets <= run[:, None]  # the drafts kept, and the one that was corrected
    exists = state.length[:, None] + offsets < state.layout.length
    return (spent * (tested & exists)).sum(1)
