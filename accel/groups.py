"""Group decoding: every pass draws all tokens of the next group of the layout, each by itself.

The one loop behind orders that predict several tokens at once, such as the next-neighbour order of
He et al. (2025), arXiv:2503.10696, Algorithm 1, or blocks and sets. Knows nothing about what groups
look like on the grid; layouts and heads say that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import SchedulerMixin  # noqa: F401  (diffusers looks for it in a component's module)
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from visual_ar.accel.loop.contract import Decoding
from visual_ar.accel.loop.state import DecodeState, Step
from visual_ar.cast import Cast
from visual_ar.conditioning.condition import Condition
from visual_ar.layout import Layout
from visual_ar.sampling import Sampling


@dataclass
class GroupBuffers:
    """What passes hand on, and what the layout says about the groups.

    A pass happens at some lengths only: a length is reached with a group that was drawn and all
    ranks behind it that no pass draws.

    Attributes:
        start: int64 [N + 1], for every such length the first rank that no pass was fed, -1 for the
            first; at N, that of the last pass.
        end: int64 [N + 1], `Layout.group_end`; N at N.
        widths: for every length, ranks that a pass needs: of those fed and of the next group.
        sources: int64 [N + W, A], `Layout.sources`, at least -P.
        hidden: [R, P + N + W, A, D], hidden states of rank r at P + r.
        u: fp32 [B, N + W, *], the numbers that draw each rank.
        prefix: P.
    """

    start: Tensor
    end: Tensor
    widths: list[int]
    sources: Tensor
    hidden: Tensor
    u: Tensor
    prefix: int

    @classmethod
    def of(cls, state: DecodeState) -> GroupBuffers:
        """Buffers for a state whose window is at least as wide as the widest pass."""
        layout, device, prefix = state.layout, state.tokens.device, state.cast.prefix
        ways = layout.sources.shape[1]
        starts, widths = _passes(layout)
        spare = layout.sources.new_full((state.window, ways), -1)
        width, rows = state.tokens.shape[1], len(state.root)
        shape = (rows, prefix + width, ways, state.model.hidden_size)
        numbers = (state.slots, width, *state.kind.number_shape)
        return cls(
            start=torch.tensor(starts, device=device),
            end=torch.cat([layout.group_end, layout.group_end[-1:]]),
            widths=widths,
            sources=torch.cat([layout.sources, spare]).clamp(min=-prefix),
            hidden=torch.zeros(shape, dtype=state.root.dtype, device=device),
            u=torch.zeros(numbers, device=device),
            prefix=prefix,
        )

    def keep(self, hidden: Tensor, ranks: Tensor, rows: Tensor | None = None) -> None:
        """Stores the hidden states of some ranks.

        Args:
            hidden: [R, Q, D] or [R, Q, A, D].
            ranks: int64 [R, Q], from -P.
            rows: int64 [R], of the buffer; None is all of them.
        """
        if rows is None:
            rows = torch.arange(len(hidden), device=hidden.device)
        states = hidden if hidden.dim() == 4 else hidden[:, :, None]
        self.hidden[rows[:, None], ranks + self.prefix] = states

    def of_sources(self, ranks: Tensor) -> Tensor:
        """What `predict` takes. ranks: int64 [R, Q]; returns [R, Q, D], or [R, Q, A, D]."""
        columns = self.sources[ranks] + self.prefix  # [R, Q, A]
        rows = torch.arange(len(ranks), device=ranks.device)[:, None, None]
        ways = torch.arange(columns.shape[-1], device=ranks.device)
        found = self.hidden[rows, columns, ways]
        return found.squeeze(2) if len(ways) == 1 else found


def _passes(layout: Layout) -> tuple[list[int], list[int]]:
    """First rank to feed and ranks of the pass, for every length at which one happens."""
    length, ends = layout.length, layout.group_end.tolist()
    following = layout.following or list(range(length + 1))
    starts, widths = [0] * (length + 1), [1] * (length + 1)
    at, before = following[0], following[0] - 1
    while at < length:
        starts[at], widths[at] = before, max(at - before, ends[at] - at)
        at, before = following[ends[at]], at
    starts[length] = before
    return starts, widths


class GroupDecoding(Decoding):
    """Draws group after group of any layout, tokens of one group independently of each other.

    Its law is the model's own: the product of the laws of all tokens, each given the groups before
    its own. A layout of single ranks is thereby decoded token by token.
    """

    lossless = True
    skips = True
    capturable = True

    @register_to_config
    def __init__(self) -> None:
        pass

    def check_layout(self, layout: Layout) -> None:
        """Raises ValueError unless ranks fall into groups that earlier groups predict."""
        end = layout.group_end
        ascending = not bool((end[1:] < end[:-1]).any())
        if not ascending or bool((torch.searchsorted(end, end, right=True) != end).any()):
            raise ValueError(
                f"{type(self).__name__} needs a layout of groups that follow each other, the "
                f"groups of this one of grid {layout.grid} overlap"
            )
        own = layout.sources >= layout.group_start[:, None]
        if bool(own[~layout.fixed].any()):
            raise ValueError(
                f"{type(self).__name__} needs a layout whose groups are predicted from earlier "
                f"ones, this one of grid {layout.grid} predicts some rank from its own group"
            )

    def init(self, cast: Cast, slots: int, guided: bool = True, window: int = 1) -> DecodeState:
        """See `Decoding.init`. The window is at least as wide as the widest pass."""
        self.check(cast)
        window = max(window, *_passes(cast.layout)[1])
        state = super().init(cast, slots, guided, window)
        state.method = GroupBuffers.of(state)
        return state

    def choose_window(self, cast: Cast, condition: Condition, sampling: Sampling) -> int:
        """Ranks of the widest pass."""
        return max(_passes(cast.layout)[1])

    def prefilled(self, state: DecodeState, rows: Tensor, hidden: Tensor, ranks: Tensor) -> None:
        """See `Decoding.prefilled`: prefix slots and ranks given first may be sources."""
        state.method.keep(hidden, ranks, rows)

    def prepare(self, state: DecodeState, slots: Tensor) -> None:
        """Draws the numbers of newly admitted slots, all at once: a pass has few to draw.

        Attempt 0: a rank is drawn once, in a pass that the layout fixes.
        """
        ranks = torch.arange(state.tokens.shape[1], device=slots.device)
        u = state.kind.uniforms(state.seed[slots, None], ranks, torch.zeros_like(ranks))
        state.method.u[slots] = u[0]

    def step(self, state: DecodeState) -> Step:
        """One group for every unfinished picture."""
        law, ranks = self.next_laws(state)
        committed = self.commit_group(state, law.draw(self.numbers(state, ranks)))
        return state.report(committed, ranks.shape[1])

    @staticmethod
    def numbers(state: DecodeState, ranks: Tensor) -> Tensor:
        """The numbers that draw each rank: [B, w, *]. ranks: int64 [B, w]."""
        pictures = torch.arange(state.slots, device=ranks.device)[:, None]
        return state.method.u[pictures, ranks]

    def next_laws(self, state: DecodeState) -> tuple[Any, Tensor]:
        """Feeds the group before the next one, and returns the laws [B, w] and their ranks.

        Ranks are int64 [B, w], of the next group and, where it is smaller than w, some more, whose
        laws mean nothing. w is the window, or on a CPU what the pictures need in this pass.
        """
        buffers: GroupBuffers = state.method
        offsets = torch.arange(self._width(state), device=state.length.device)
        fed = buffers.start[state.length][:, None] + offsets
        scratch = state.layout.length + offsets
        fed = torch.where(fed < state.length[:, None], fed, scratch)
        hidden = state.forward_alone(state.take(fed.clamp(min=0)), fed)
        buffers.keep(hidden, state.twice(fed))
        ranks = state.length[:, None] + offsets
        return state.law(buffers.of_sources(state.twice(ranks)), ranks), ranks

    @staticmethod
    def _width(state: DecodeState) -> int:
        """Ranks of a pass. A CPU's lengths can be read without a wait, which halves its work."""
        if state.captured is not None or not state.length.is_cpu:
            return state.window
        widths, limit = state.method.widths, state.layout.length
        needed = [widths[length] for length in state.length.tolist() if length < limit]
        return max(needed, default=1)

    @staticmethod
    def commit_group(state: DecodeState, tokens: Tensor) -> Tensor:
        """Commits the next group. tokens: [B, w, *], see `next_laws`; returns int64 [B]."""
        buffers: GroupBuffers = state.method
        return state.commit(tokens, buffers.end[state.length] - state.length)
