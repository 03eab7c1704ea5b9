"""Hybrid decoding: a model of another order drafts many tokens, a next-token model verifies them.

Speculative sampling (Leviathan et al. 2023, arXiv 2211.17192, Algorithm 1) across two decode
orders. A draft of such a model may depend on drafts that are verified after it, so a draft is
either kept until it is tested, once, against the law it was drawn from, whatever came before it; or
its law reads nothing but committed tokens. Drawing anew what was not kept is exact only in the
second form. Knows nothing about families or pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from diffusers import SchedulerMixin  # noqa: F401  (diffusers looks for it in a component's module)
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from visual_ar.accel.groups import GroupBuffers, GroupDecoding
from visual_ar.accel.loop.contract import Choices
from visual_ar.accel.loop.state import DecodeState, Step
from visual_ar.accel.loop.window import WindowedDecoding, check_window
from visual_ar.accel.rules.rule import leading_run
from visual_ar.cast import Cast
from visual_ar.conditioning.condition import Condition
from visual_ar.layout import ABSENT, Layout
from visual_ar.models.token_model import TokenModel
from visual_ar.sampling import Sampling, take_rows, uniforms
from visual_ar.tokens.codes import CategoricalLaw
from visual_ar.tokens.kind import TABLE

FORMS = ("whole", "ahead")
_ACCEPT, _RESIDUAL, _FRESH = range(3)


@dataclass(frozen=True)
class Crossing:
    """How the drafting and the verifying order of one grid meet.

    Attributes:
        layout: of the drafter.
        drafted: int64 [N], verifying rank -> drafting rank.
        verified: int64 [N], drafting rank -> verifying rank.
        groups: number of groups of the drafter.
    """

    layout: Layout
    drafted: Tensor
    verified: Tensor
    groups: int

    @classmethod
    def of(cls, drafter: TokenModel, verifying: Layout) -> Crossing:
        """Of a drafter's order of the same grid; ValueError if it has none."""
        layout = drafter.layout(verifying.grid).to(verifying.cell.device)
        drafted = torch.argsort(layout.cell)[verifying.cell]
        return cls(layout, drafted, torch.argsort(drafted), len(layout.group_end.unique()))

    def seen(self, prefix: int, slots: int) -> Tensor:
        """What a drafting position sees that may see no cell verified later.

        Args:
            prefix: number of prefix slots P.
            slots: number of all slots S.

        Returns:
            bool [S, S], query slot by key slot.
        """
        length, device = self.layout.length, self.drafted.device
        ranks = torch.arange(length, device=device)
        in_order = ranks < self.layout.group_end[:, None]
        earlier = self.verified <= self.verified[:, None]
        table = torch.eye(slots, dtype=torch.bool, device=device)
        table[:, :prefix] = True
        table[prefix : prefix + length, prefix : prefix + length] = in_order & earlier
        return table


@dataclass
class HybridBuffers:
    """What a pass hands to the next one.

    Attributes:
        crossing: of the two orders.
        q: fp32 [B, N + W, V], law of the draft at each rank; None where drafts last one pass.
        drafting: the drafter's state of the same slots; None where it drafts whole pictures.
        seen: bool [S, S], see `Crossing.seen`; None likewise.
        fed: int64 [B], first rank that the drafter was not fed.
        evaluations: of the drafter's head, in all, that no step has reported.
    """

    crossing: Crossing
    q: Tensor | None
    drafting: DecodeState | None
    seen: Tensor | None
    fed: Tensor
    evaluations: int = 0
    group: GroupDecoding = field(default_factory=GroupDecoding)


class HybridDecoding(WindowedDecoding):
    """Verifies the drafts of the cast's `draft_model`, with the exact law of the next-token model.

    Args:
        window: drafts that a pass verifies, at least 1, or "auto" for the fastest on this device.
        drafts: how much the draft model drafts at once: "whole" draws the whole picture with the
            drafter when it is admitted, in the drafter's own few passes, and keeps every draft
            until it is tested; "ahead" lets the drafter see committed tokens only, one pass before
            each pass of the model, and draws the next ranks from the neighbours that are known (a
            row at once from the row above).

    Raises:
        ValueError: an option outside its range.
    """

    lossless = True
    needs = frozenset({TABLE})
    choices: ClassVar[Choices] = {**WindowedDecoding.choices, "drafts": FORMS}

    @register_to_config
    def __init__(self, window: int | str = "auto", drafts: str = "whole") -> None:
        self.register_to_config(window=check_window(window))
        if drafts not in FORMS:
            raise ValueError(f"drafts must be one of {', '.join(FORMS)}, got {drafts!r}")

    def check(self, cast: Cast) -> None:
        """See `Decoding.check`."""
        super().check(cast)
        drafter, model = cast.draft_model, cast.model
        if drafter is None:
            raise ValueError(
                f"{type(self).__name__} needs a model with a draft model (draft_with), "
                f"{type(model).__name__} has none"
            )
        if TABLE not in drafter.tokens.offers:
            raise ValueError(
                "draft_model must name the law of every draft, the tokens of "
                f"{type(drafter).__name__} are {drafter.tokens.name}"
            )
        if drafter.vocab_size != model.vocab_size:
            raise ValueError(
                f"draft_model must share the tokenizer's {model.vocab_size} codes, "
                f"got {drafter.vocab_size} codes"
            )
        GroupDecoding().check(Cast(drafter, drafter.layout(cast.layout.grid)))
        if self.config.drafts == "ahead" and "some sources" not in drafter.capabilities:
            raise ValueError(
                "drafts='ahead' needs a drafter that predicts from some of its sources, "
                f"{type(drafter).__name__} has {sorted(drafter.capabilities)}"
            )

    def init(self, cast: Cast, slots: int, guided: bool = True, window: int = 1) -> DecodeState:
        """See `Decoding.init`."""
        state = super().init(cast, slots, guided, window)
        crossing = Crossing.of(self._drafter(state), state.layout)
        buffers = HybridBuffers(crossing, None, None, None, torch.full_like(state.length, -1))
        if self.config.drafts == "ahead":
            drafting = self._drafting(state, buffers, slots)
            buffers.drafting = drafting
            buffers.seen = crossing.seen(drafting.cache.prefix, drafting.cache.slots)
        else:
            shape = (*state.tokens.shape, state.law_width)
            buffers.q = torch.zeros(shape, device=state.tokens.device)
        state.method = buffers
        return state

    @torch.inference_mode()
    def admit(
        self, state: DecodeState, slots: Tensor, condition: Condition, sampling: Sampling
    ) -> None:
        """See `Decoding.admit`. The condition holds the drafter's prefix as well.

        Raises:
            ValueError: it does not.
        """
        if condition.draft is None:
            raise ValueError("condition must hold the drafter's prefix (draft), got none")
        super().admit(state, slots, condition, sampling)
        buffers: HybridBuffers = state.method
        if sampling.guidance.dim() == 2:  # by rank
            by_rank = sampling.guidance[:, buffers.crossing.verified.to(sampling.guidance.device)]
            sampling = sampling._replace(guidance=by_rank)
        if buffers.drafting is not None:
            buffers.fed[slots] = -1
            self._start(state, buffers.drafting, slots, slots, condition.draft, sampling)
            return
        drafting = self._drafting(state, buffers, len(slots))
        everyone = torch.arange(len(slots), device=slots.device)
        self._start(state, drafting, slots, everyone, condition.draft, sampling)
        self._draft_whole(state, drafting, slots)

    def step(self, state: DecodeState) -> Step:
        """One pass: verify the window, keep the leading run of drafts, correct the next one."""
        buffers: HybridBuffers = state.method
        window = state.window
        offsets = torch.arange(window, device=state.length.device)
        ranks = state.length[:, None] + offsets  # [B, W]
        u = uniforms(state.seed[:, None], ranks, state.passes[:, None] + 1)
        if buffers.q is None:
            q = self._draft_ahead(state, ranks, u[_FRESH])
        else:
            q = state.law_from(take_rows(buffers.q, ranks))
        feed = state.tokens.gather(1, (ranks - 1).clamp(min=0))
        p = state.law(state.forward(feed, ranks - 1), ranks)
        drafts = state.tokens.gather(1, ranks)
        run = leading_run(p.keep(q, drafts, u[_ACCEPT]))
        # No token follows a whole run for free: the draft behind it must be tested as well.
        at = run.clamp(max=window - 1)[:, None]
        corrected = p.rows(at).redraw(q.rows(at), u[_RESIDUAL].gather(1, at))
        tokens = torch.where(offsets == run[:, None], corrected, drafts)
        step = state.report(state.commit(tokens, (run + 1).clamp(max=window)), window)
        evaluations, buffers.evaluations = buffers.evaluations, 0
        return step._replace(head_evaluations=step.head_evaluations + evaluations)

    @staticmethod
    def _drafter(state: DecodeState) -> TokenModel:
        drafter = state.cast.draft_model
        assert drafter is not None
        return drafter

    def _drafting(self, state: DecodeState, buffers: HybridBuffers, slots: int) -> DecodeState:
        """A state of the drafter for some pictures."""
        cast = Cast(self._drafter(state), buffers.crossing.layout)
        return buffers.group.init(cast, slots, state.guided, state.window)

    @staticmethod
    def _start(
        state: DecodeState,
        drafting: DecodeState,
        slots: Tensor,
        places: Tensor,
        condition: Condition,
        sampling: Sampling,
    ) -> None:
        """Admits pictures to the drafter, with the tokens that are forced on the model.

        Args:
            state: of the model.
            drafting: of the drafter.
            slots: int64 [b], of the pictures in `state`.
            places: int64 [b], where they go in `drafting`.
            condition: [b] or [2b] rows of the drafter.
            sampling: options of the b pictures, by drafting rank.
        """
        buffers: HybridBuffers = state.method
        buffers.group.admit(drafting, places, condition, sampling)
        if state.forced is not None:
            if drafting.forced is None:
                shape = drafting.tokens.shape
                drafting.forced = drafting.kind.no_force(*shape, device=places.device)
            forced = state.forced[slots][:, buffers.crossing.verified]
            drafting.forced[places, : forced.shape[1]] = forced

    @staticmethod
    def _draft_whole(state: DecodeState, drafting: DecodeState, slots: Tensor) -> None:
        """Draws whole pictures, and records the law of every draft.

        Args:
            state: of the model; `slots` get the drafts.
            drafting: of the drafter, with the pictures of `slots` in order.
            slots: int64 [b].
        """
        buffers: HybridBuffers = state.method
        assert buffers.q is not None
        crossing, everyone = (
            buffers.crossing,
            torch.arange(len(slots), device=slots.device)[:, None],
        )
        laws = buffers.q.new_zeros(*drafting.tokens.shape, buffers.q.shape[-1])
        for _ in range(crossing.groups):
            law, ranks = buffers.group.next_laws(drafting)
            laws[everyone, ranks] = law.features
            # Of attempt 0, which no test uses: a draft and its test must share no number.
            tokens = law.draw(buffers.group.numbers(drafting, ranks))
            buffers.group.commit_group(drafting, tokens)
            buffers.evaluations += ranks.numel()
        length = crossing.layout.length
        state.tokens[slots, :length] = drafting.tokens[:, crossing.drafted]
        buffers.q[slots, :length] = laws[:, crossing.drafted]

    def _draft_ahead(self, state: DecodeState, ranks: Tensor, u: Tensor) -> CategoricalLaw:
        """Feeds the drafter what was committed, and drafts the window from what it then knows.

        Args:
            state: of the model, whose window gets the drafts.
            ranks: int64 [B, W], to draft.
            u: [B, W] in (0, 1).

        Returns:
            the laws [B, W] of the drafts.
        """
        buffers: HybridBuffers = state.method
        drafting, crossing = buffers.drafting, buffers.crossing
        assert drafting is not None
        self._feed_ahead(state, drafting, buffers)
        groups: GroupBuffers = drafting.method
        last = crossing.layout.length - 1
        wanted = crossing.drafted[ranks.clamp(max=last)]
        sources = crossing.layout.sources[wanted]  # [B, W, A]
        committed = crossing.verified[sources.clamp(min=0)] < state.length[:, None, None]
        present = torch.where(sources >= 0, committed, sources != ABSENT)
        hidden = groups.of_sources(state.twice(wanted))
        rows = (state.twice(wanted), state.twice(present))
        model: Any = drafting.model  # one with "some sources", as `check` made sure
        law = drafting.warped(model.predict(hidden, *rows), wanted)
        state.tokens.scatter_(1, ranks, law.draw(u))
        buffers.evaluations += ranks.numel()
        return law

    @staticmethod
    def _feed_ahead(state: DecodeState, drafting: DecodeState, buffers: HybridBuffers) -> None:
        """Shows the drafter the tokens that were committed since the last pass."""
        crossing, length = buffers.crossing, state.layout.length
        offsets = torch.arange(state.window, device=state.length.device)
        fed = buffers.fed[:, None] + offsets  # verifying ranks, from -1
        known = fed < state.length[:, None]
        inside = fed.clamp(0, length - 1)
        ranks = torch.where(fed < 0, fed, crossing.drafted[inside])
        ranks = torch.where(known, ranks, length + offsets)
        assert buffers.seen is not None
        prefix = drafting.cache.prefix
        visible = drafting.twice(buffers.seen[ranks + prefix])  # [R, W, S]
        visible[..., :prefix] &= drafting.cache.prefix_mask[:, None]
        tokens = state.tokens.gather(1, inside)
        hidden = drafting.forward_alone(tokens, ranks, visible[:, None])
        groups: GroupBuffers = drafting.method
        groups.keep(hidden, drafting.twice(ranks))
        buffers.fed = state.length.clone()
