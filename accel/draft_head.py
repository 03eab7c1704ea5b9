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

from visual_ar.accel.chain import PassNumbers, spent_on_run
from visual_ar.accel.decoding import DecodeState, Step
from visual_ar.accel.rule import Rule
from visual_ar.accel.rules import parse_rule
from visual_ar.accel.window import WindowedDecoding, check_window
from visual_ar.assets import bundled
from visual_ar.cache import KVCache
from visual_ar.layout import Layout
from visual_ar.models.base import TokenModel
from visual_ar.models.draft_head import DraftHead
from visual_ar.sampling import CategoricalLaw, take_rows
from visual_ar.tokenizers.base import VisualTokenizer

_ACCEPT, _RESIDUAL, _BONUS, _DRAFT = range(4)
_ROOT = -1


@dataclass
class HeadBuffers:
    """What a pass hands to the next one.

    Attributes:
        head: what drafts.
        cache: its keys and values; those of committed ranks come from the model's own states.
        start: int64 [B], first rank that the head has not seen with the model's own state.
        features: [R, W, D], the model's states that the ranks from `start` on were predicted from.
        numbers: uniform numbers of the next passes.
        rule: the acceptance rule with its tables.
    """

    head: DraftHead
    cache: KVCache
    start: Tensor
    features: Tensor
    numbers: PassNumbers
    rule: Rule


class DraftHeadDecoding(WindowedDecoding):
    """Chains of drafts by the model's draft head, lossless with a lossless rule.

    Every pass drafts a chain of W - 1 tokens after the committed ones, W - 1 steps of the head, and
    verifies it in one pass of the model. All drafts are drawn after the last verification, so that
    every rule may look ahead.

    Args:
        window: ranks predicted by a pass of the model, the drafts and one more, at least 1, or
            "auto" for the fastest on this device.
        rule: acceptance rule of the drafts, see `rules.parse_rule`.
        measure_tv: with a lossy rule, sum the total variation it spends over the whole code book
            instead of estimating an upper bound from the drafts. Slow.

    Raises:
        ValueError: an option outside its range.
    """

    lossless = True
    candidates: ClassVar[tuple[int, ...]] = (2, 3, 4, 5, 6, 8, 12, 16)

    @register_to_config
    def __init__(
        self, window: int | str = "auto", rule: str = "exact", measure_tv: bool = False
    ) -> None:
        check_window(window)
        self._rule = parse_rule(rule)
        self.lossless = self._rule.lossless

    def check(
        self, model: TokenModel, layout: Layout, tokenizer: VisualTokenizer | None = None
    ) -> None:
        """See `Decoding.check`. The model must have a draft head that knows its grid."""
        super().check(model, layout, tokenizer)
        self._rule.check(tokenizer)
        head = model.draft_head
        if head is None:
            raise ValueError(
                f"{type(self).__name__} needs a model with a draft head trained for it, this "
                f"{type(model).__name__} has none; {_who_has_one()}"
            )
        if head.config.grid_size**2 < layout.length:
            raise ValueError(
                f"draft_head must know every cell of the grid {layout.grid}, "
                f"got one for {head.config.grid_size} x {head.config.grid_size} cells"
            )
        if head.dtype != model.dtype:
            raise ValueError(f"draft_head must be {model.dtype} like the model, got {head.dtype}")

    def init(
        self,
        model: TokenModel,
        layout: Layout,
        slots: int,
        guided: bool = True,
        window: int = 1,
        tokenizer: VisualTokenizer | None = None,
    ) -> DecodeState:
        """See `Decoding.init`."""
        state = super().init(model, layout, slots, guided, window, tokenizer)
        head = model.draft_head
        assert head is not None
        rows = len(state.root)
        state.method = HeadBuffers(
            head=head,
            cache=head.new_cache(rows, state.tokens.shape[1]),
            start=state.length,
            features=state.root.new_zeros(rows, window, model.hidden_size),
            numbers=PassNumbers(),
            rule=self._rule.bind(tokenizer),
        )
        return state

    def prepare(self, state: DecodeState, slots: Tensor) -> None:
        """Newly admitted slots start from the last prefix token, which no state goes with."""
        buffers: HeadBuffers = state.method
        buffers.numbers.forget()
        buffers.start = buffers.start.index_fill(0, slots, _ROOT)
        buffers.features = buffers.features.index_fill(0, state.rows(slots), 0)

    def step(self, state: DecodeState) -> Step:
        """One pass: draft a chain, predict it, keep a leading run, correct it or add one more."""
        buffers: HeadBuffers = state.method
        offsets = torch.arange(state.window, device=state.length.device)
        ranks = state.length[:, None] + offsets  # [B, W]
        u = buffers.numbers.take(state, offsets)  # [4, B, W]
        drafts, q = self._draft(state, ranks[:, :-1], u[_DRAFT, :, :-1])
        newest = state.tokens.gather(1, (ranks[:, :1] - 1).clamp(min=0))
        features = state.forward(torch.cat([newest, drafts], dim=1), ranks - 1)
        p = state.law(features, ranks)
        run, tokens = self._verify(buffers.rule, p, q, drafts, u)
        spent = None
        if not self.lossless:
            spent = spent_on_run(state, buffers.rule, p, q, drafts, run, self.config.measure_tv)
        buffers.start, buffers.features = state.length, features
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
        model, head, cache = state.model, state.method.head, state.method.cache
        drafts, laws = [], []
        for column in range(ranks.shape[1]):
            rank = ranks[:, column : column + 1]
            if column == 0:
                feature = self._catch_up(state)
            else:
                before, rows = state.twice(rank - 1), state.twice(drafts[-1])
                feature = head(model.embed(rows, before), feature, before, cache)
            law = state.law(feature, rank)
            drafts.append(law.sample(u[:, column : column + 1]))
            laws.append(law.probabilities)
        if not drafts:
            nothing = torch.zeros(*ranks.shape, model.vocab_size, device=ranks.device)
            return ranks, CategoricalLaw(probabilities=nothing)
        return torch.cat(drafts, 1), CategoricalLaw(probabilities=torch.cat(laws, 1))

    @staticmethod
    def _catch_up(state: DecodeState) -> Tensor:
        """Shows the head what the last pass committed; its state of the newest token: [R, 1, D].

        All that the last pass predicted is fed, for the sake of static shapes. What was not
        committed comes after the newest token, which therefore does not see it, and is overwritten
        before anything else could.
        """
        buffers: HeadBuffers = state.method
        buffers.cache.extent = min(state.cache.extent - state.cache.prefix + 1, buffers.cache.slots)
        offsets = torch.arange(state.window, device=buffers.start.device)
        ranks = buffers.start[:, None] + offsets
        embeddings = state.embed(state.tokens.gather(1, ranks.clamp(min=0)), ranks)
        foretold = buffers.head(embeddings, buffers.features, state.twice(ranks), buffers.cache)
        # A slot that is idle has nothing new, and nobody reads what it drafts.
        newest = (state.length - 1 - buffers.start).clamp(min=0)[:, None]
        return take_rows(foretold, state.twice(newest))

    @staticmethod
    def _verify(
        rule: Rule, p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor, u: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Drafts kept, int64 [B], and the tokens up to the one after them, int64 [B, W].

        p: [B, W] laws; q: [B, W - 1] laws of `drafts` int64 [B, W - 1]; u: [4, B, W].
        """
        bonus = p.last().sample(u[_BONUS, :, -1:])
        count = drafts.shape[1]
        if count == 0:
            return torch.zeros_like(bonus[:, 0]), bonus
        run = rule.run(p.first(count), q, drafts, u[_ACCEPT, :, :-1])
        # What stands behind the correction is drafted anew, so it may be anything.
        fresh = bonus.expand(-1, count + 1)
        return run, rule.fill(p, q, drafts, run, fresh, u[_RESIDUAL, :, :-1])


def _who_has_one() -> str:
    """A sentence about the bundled models."""
    names = [name for name, folder in bundled().items() if (folder / "draft_head").is_dir()]
    if names:
        return f"of the bundled models {', '.join(names)} has one"
    return "no bundled model has one; a recipe of kind draft trains one"
