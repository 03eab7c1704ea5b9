"""Speculative decoding with a trained draft head that foretells the model's hidden states.

Drafting after Li et al. (2024), EAGLE, section 3.1, as LANTERN (Jang et al. 2025) uses it for
pictures, but drafts are drawn and keep the law they were drawn from: an image model's laws are so
flat that a most likely token would rarely be accepted. Verification after Leviathan et al. (2023),
Algorithm 1, or by another rule. Knows nothing about families or pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from diffusers import SchedulerMixin  # noqa: F401  (diffusers looks for it in a component's module)
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from visual_ar.accel.drafts.head_memory import HeadMemory, check_draft_head
from visual_ar.accel.loop.chain import PassNumbers, spent_on_run
from visual_ar.accel.loop.contract import Choices
from visual_ar.accel.loop.state import DecodeState, Step
from visual_ar.accel.loop.window import WindowedDecoding, check_window
from visual_ar.accel.rules.parse import OF_TABLES, parse_rule
from visual_ar.accel.rules.rule import Rule
from visual_ar.cast import Cast
from visual_ar.tokens.codes import CategoricalLaw
from visual_ar.tokens.kind import TABLE
from visual_ar.tokens.numbers import Numbers


@dataclass
class HeadBuffers:
    """What a pass hands to the next one.

    Attributes:
        memory: the draft head and what it remembers.
        numbers: uniform numbers of the next passes.
        rule: the acceptance rule with its tables.
    """

    memory: HeadMemory
    numbers: PassNumbers
    rule: Rule


class DraftHeadDecoding(WindowedDecoding):
    """Chains of drafts by the cast's draft head, lossless with a lossless rule.

    Every pass drafts a chain of W - 1 tokens after the committed ones, W - 1 steps of the head, and
    verifies it in one pass of the model. All drafts are drawn after the last verification, so that
    every rule may look ahead.

    Args:
        window: ranks predicted by a pass of the model, the drafts and one more, at least 1, or
            "auto" for the fastest on this device.
        rule: what accepts a draft, with options; see `parse_rule`.
        measure_tv: with a lossy rule, sum the total variation it spends over the whole code book
            instead of estimating an upper bound from the drafts. Slow.

    Raises:
        ValueError: an option outside its range.
    """

    lossless = True
    needs = frozenset({TABLE})
    capturable = True
    candidates: ClassVar[tuple[int, ...]] = (2, 3, 4, 5, 6, 8, 12, 16)
    choices: ClassVar[Choices] = {
        "window": ("auto", *map(str, candidates)),
        "rule": (*OF_TABLES, "block"),
    }

    @register_to_config
    def __init__(
        self, window: int | str = "auto", rule: str = "exact", measure_tv: bool = False
    ) -> None:
        self.register_to_config(window=check_window(window))
        self._rule = parse_rule(rule)
        self.lossless = self._rule.lossless

    def check(self, cast: Cast) -> None:
        """See `Decoding.check`. The model must have a draft head that knows its grid."""
        super().check(cast)
        self._rule.check(cast.model.tokens, cast.tokenizer)
        check_draft_head(cast, type(self).__name__)

    def init(self, cast: Cast, slots: int, guided: bool = True, window: int = 1) -> DecodeState:
        """See `Decoding.init`."""
        state = super().init(cast, slots, guided, window)
        state.method = HeadBuffers(
            memory=HeadMemory(state, window),
            numbers=PassNumbers(),
            rule=self._rule.bind(cast.tokenizer, cast.model.device),
        )
        return state

    def prepare(self, state: DecodeState, slots: Tensor) -> None:
        """Forgets what newly admitted slots held."""
        buffers: HeadBuffers = state.method
        buffers.numbers.forget()
        buffers.memory.admit(slots)

    def step(self, state: DecodeState) -> Step:
        """One pass: draft a chain, predict it, keep a leading run, correct it or add one more."""
        buffers: HeadBuffers = state.method
        offsets = torch.arange(state.window, device=state.length.device)
        ranks = state.length[:, None] + offsets  # [B, W]
        numbers = buffers.numbers.take(state, offsets)  # of [B, W]
        drafts, q = self._draft(state, ranks[:, :-1], numbers.first[:, :-1])
        newest = state.tokens.gather(1, (ranks[:, :1] - 1).clamp(min=0))
        features = state.forward(torch.cat([newest, drafts], dim=1), ranks - 1)
        p = state.law(features, ranks)
        run, tokens = self._verify(buffers.rule, p, q, drafts, numbers)
        spent = None
        if not self.lossless:
            spent = spent_on_run(state, buffers.rule, p, q, drafts, run, self.config.measure_tv)
        buffers.memory.observe(state.length, features)
        committed = state.commit(tokens, run + 1)
        return state.report(committed, state.window, spent, drafts.shape[1])

    def _draft(self, state: DecodeState, ranks: Tensor, u: Tensor) -> tuple[Tensor, CategoricalLaw]:
        """Draws a chain of drafts.

        Args:
            state: between passes.
            ranks: int64 [B, K], the ranks to draft, from the committed length on.
            u: [B, K] in (0, 1).

        Returns:
            int64 [B, K], and their laws [B, K].
        """
        model, memory = state.model, state.method.memory
        drafts: list[Tensor] = []
        laws: list[Tensor] = []
        for column in range(ranks.shape[1]):
            rank = ranks[:, column : column + 1]
            if column == 0:
                feature = memory.catch_up()
            else:
                before = state.twice(rank - 1)
                x = model.embed(state.twice(drafts[-1]), before)
                feature = memory.head(x, feature, before, memory.cache)
            law = state.law(feature, rank)
            drafts.append(law.draw(u[:, column : column + 1]))
            laws.append(law.probabilities)
        if not drafts:
            nothing = torch.zeros(*ranks.shape, model.vocab_size, device=ranks.device)
            return ranks, CategoricalLaw(probabilities=nothing)
        return torch.cat(drafts, 1), CategoricalLaw(probabilities=torch.cat(laws, 1))

    @staticmethod
    def _verify(
        rule: Rule, p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor, numbers: Numbers
    ) -> tuple[Tensor, Tensor]:
        """Drafts kept, int64 [B], and the tokens up to the one after them, int64 [B, W].

        p: [B, W] laws; q: [B, W - 1] laws of `drafts` int64 [B, W - 1]; numbers: of [B, W] ranks.
        """
        bonus = p.last().draw(numbers.fresh[:, -1:])
        count = drafts.shape[1]
        if count == 0:
            return torch.zeros_like(bonus[:, 0]), bonus
        head = numbers.head(count)
        run = rule.run(p.first(count), q, drafts, head.test)
        # What stands behind the correction is drafted anew, so it may be anything.
        fresh = bonus.expand(-1, count + 1)
        return run, rule.fill(p, q, drafts, run, fresh, head).tokens
