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
from visual_ar.conditioning import Condition
from visual_ar.layout import Layout
from visual_ar.models.token_model import TokenModel
from visual_ar.sampling import Sampling, bit_uniforms, uniforms
from visual_ar.tokenizers.visual_tokenizer import VisualTokenizer


@dataclass
class GroupBuffers:
    """What passes hand on, and what the layout says about the groups.

    Attributes:
        start: int64 [N + 1], first rank to feed before rank r is predicted: that of the group
            before the group of r, -1 for the first group; at N, that of the last group.
        end: int64 [N + 1], `Layout.group_end`; N at N.
        widths: for every length, ranks that a pass needs: of the group fed and of the next one.
        sources: int64 [N + W, A], `Layout.sources`, at least -1.
        hidden: [R, 1 + N + W, A, D], hidden states of rank r at 1 + r.
        u: fp32 [B, N + W], or of bits [B, N + W, d], the number that draws each rank.
    """

    start: Tensor
    end: Tensor
    widths: list[int]
    sources: Tensor
    hidden: Tensor
    u: Tensor

    @classmethod
    def of(cls, state: DecodeState) -> GroupBuffers:
        """Buffers for a state whose window is at least the largest group."""
        layout, device = state.layout, state.tokens.device
        ways = layout.sources.shape[1]
        first = layout.group_start
        before = torch.where(first > 0, first[(first - 1).clamp(min=0)], -1)
        last, full = first[-1:], layout.group_end[-1:]
        spare = layout.sources.new_full((state.window, ways), -1)
        width, rows = state.tokens.shape[1], len(state.root)
        start, end = torch.cat([before, last]), torch.cat([layout.group_end, full])
        lengths = torch.arange(len(end), device=device)
        return cls(
            start=start,
            end=end,
            widths=torch.maximum(lengths - start, end - lengths).tolist(),
            sources=torch.cat([layout.sources, spare]).clamp(min=-1),
            hidden=torch.zeros(
                rows,
                1 + width,
                ways,
                state.model.hidden_size,
                dtype=state.root.dtype,
                device=device,
            ),
            u=torch.zeros(state.tokens.shape, device=device),
        )

    def keep(self, hidden: Tensor, ranks: Tensor) -> None:
        """Stores the hidden states of some ranks.

        Args:
            hidden: [R, Q, D] or [R, Q, A, D].
            ranks: int64 [R, Q], from -1.
        """
        rows = torch.arange(len(hidden), device=hidden.device)[:, None]
        self.hidden[rows, ranks + 1] = hidden if hidden.dim() == 4 else hidden[:, :, None]

    def of_sources(self, ranks: Tensor) -> Tensor:
        """What `predict` takes. ranks: int64 [R, Q]; returns [R, Q, D], or [R, Q, A, D]."""
        columns = self.sources[ranks] + 1  # [R, Q, A]
        rows = torch.arange(len(ranks), device=ranks.device)[:, None, None]
        ways = torch.arange(columns.shape[-1], device=ranks.device)
        found = self.hidden[rows, columns, ways]
        return found.squeeze(2) if len(ways) == 1 else found


class GroupDecoding(Decoding):
    """Draws group after group of any layout, tokens of one group independently of each other.

    Its law is the model's own: the product of the laws of all tokens, each given the groups before
    its own. A layout of single ranks is thereby decoded token by token.
    """

    lossless = True
    also_serves = frozenset({"bits", "subcodes"})

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
        if bool((layout.sources >= layout.group_start[:, None]).any()):
            raise ValueError(
                f"{type(self).__name__} needs a layout whose groups are predicted from earlier "
                f"ones, this one of grid {layout.grid} predicts some rank from its own group"
            )

    def init(
        self,
        model: TokenModel,
        layout: Layout,
        slots: int,
        guided: bool = True,
        window: int = 1,
        tokenizer: VisualTokenizer | None = None,
    ) -> DecodeState:
        """See `Decoding.init`. The window is at least the largest group."""
        self.check(model, layout, tokenizer)
        window = max(window, layout.largest_group)
        state = super().init(model, layout, slots, guided, window, tokenizer)
        state.method = GroupBuffers.of(state)
        return state

    def choose_window(
        self,
        model: TokenModel,
        layout: Layout,
        condition: Condition,
        sampling: Sampling,
        tokenizer: VisualTokenizer | None = None,
    ) -> int:
        """Ranks of the largest group."""
        return layout.largest_group

    def prepare(self, state: DecodeState, slots: Tensor) -> None:
        """Draws the numbers of newly admitted slots, all at once: a pass has few to draw.

        Attempt 0: a rank is drawn once, in a pass that the layout fixes.
        """
        seed = state.seed[slots, None]
        ranks = torch.arange(state.tokens.shape[1], device=slots.device)
        attempt = torch.zeros_like(ranks)
        if state.bits:
            state.method.u[slots] = bit_uniforms(seed, ranks, attempt, state.bits)
        else:
            state.method.u[slots] = uniforms(seed, ranks, attempt)[0]

    def step(self, state: DecodeState) -> Step:
        """One group for every unfinished picture."""
        law, ranks = self.next_laws(state)
        committed = self.commit_group(state, law.sample(self.numbers(state, ranks)))
        return state.report(committed, ranks.shape[1])

    @staticmethod
    def numbers(state: DecodeState, ranks: Tensor) -> Tensor:
        """The number that draws each rank: [B, w], or [B, w, d]. ranks: int64 [B, w]."""
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
        hidden = state.forward(state.take(fed.clamp(min=0)), fed)
        buffers.keep(hidden, state.twice(fed))
        ranks = state.length[:, None] + offsets
        return state.law(buffers.of_sources(state.twice(ranks)), ranks), ranks

    @staticmethod
    def _width(state: DecodeState) -> int:
        """Ranks of a pass. A CPU's lengths can be read without a wait, which halves its work."""
        if not state.length.is_cpu:
            return state.window
        widths, limit = state.method.widths, state.layout.length
        needed = [widths[length] for length in state.length.tolist() if length < limit]
        return max(needed, default=1)

    @staticmethod
    def commit_group(state: DecodeState, tokens: Tensor) -> Tensor:
        """Commits the next group. tokens: [B, w], see `next_laws`; returns int64 [B]."""
        buffers: GroupBuffers = state.method
        return state.commit(tokens, buffers.end[state.length] - state.length)
