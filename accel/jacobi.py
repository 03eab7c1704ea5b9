"""Speculative Jacobi decoding: a model verifies the tokens it drafted in its own previous pass.

Teng et al. (2024), arXiv 2410.01699, Algorithm 1, with batches that advance raggedly, exact laws
for first drafts, and couplings of consecutive drafts (arXiv 2510.24211): drafts that change less
from pass to pass are accepted more often, and any coupling that leaves each draft's marginal law
alone keeps the output law. Knows nothing about families or pixels.

Where no sum goes over all tokens, a draw from norm((p - q)+) has no bound on its proposals: a pass
makes a fixed number of them, and where none is kept the picture waits, its refused draft and that
draft's law with it, and asks again in the next pass; the tail behind goes on meanwhile. So the law
stays exact and the host reads nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from diffusers import SchedulerMixin  # noqa: F401  (diffusers looks for it in a component's module)
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from visual_ar.accel.drafts.initialise import INITIALISERS, LAWS, check_initialiser, first_drafts
from visual_ar.accel.kernels import dispatch
from visual_ar.accel.kernels.reference import COUPLINGS
from visual_ar.accel.loop.chain import PassNumbers, spent_on_run
from visual_ar.accel.loop.contract import Choices
from visual_ar.accel.loop.fused import verify_window
from visual_ar.accel.loop.state import DecodeState, Step
from visual_ar.accel.loop.window import WindowedDecoding, check_window
from visual_ar.accel.rules.parse import RULES, parse_rule
from visual_ar.accel.rules.rule import Rule, redraw
from visual_ar.cast import Cast
from visual_ar.sampling import take_rows
from visual_ar.tokens.kind import TABLE, TEST
from visual_ar.tokens.law import Law, Redrawn
from visual_ar.tokens.numbers import Numbers


@dataclass
class JacobiBuffers:
    """What a pass hands to the next one.

    Attributes:
        q: fp32 [B, W - 1, F], features of the law of the draft at rank length + j.
        history: fp32 [B, N + scratch, F], latest features of every rank; None when no draft reads
            them.
        numbers: uniform numbers of the next passes.
        rule: the acceptance rule with its tables.
        refused: bool [B], whether the first draft was refused before and its replacement is sought;
            None for tokens of which a replacement is always found.
    """

    q: Tensor
    history: Tensor | None
    numbers: PassNumbers
    rule: Rule
    refused: Tensor | None = None


class SpeculativeJacobiDecoding(WindowedDecoding):
    """Self-speculation, lossless with a lossless rule; see the module's docstring.

    Args:
        window: ranks predicted by a pass, at least 1, or "auto" for the fastest on this device.
        coupling: how a rejected tail is redrawn. "independent" draws anew from the new laws (the
            published method); "maximal" keeps a draft whenever the accept test passes at its own
            position, else draws from the residual (of tokens of bits, bit by bit); "gumbel" draws
            with noise fixed per rank.
        init: first draft of a rank that enters the window: "uniform"; "random" (uniform, recorded
            as a point mass, as published); "left", "above" or "previous-frame" copies the nearest
            token there; "left-law" or "above-law" draws from the law last seen there.
        rule: what accepts a draft that is tested, with options such as "omega/omega=1.2"; see
            `parse_rule`. The redrawn tail is coupled by the exact test whatever the rule, so that
            its laws stay known. On bits "exact" tests whole tokens and "bitwise" every bit, both
            lossless.
        measure_tv: with a lossy rule, sum the total variation it spends over the whole code book
            instead of estimating an upper bound from the drafts. Slow.

    Raises:
        ValueError: an option outside its range, or a rule that this coupling makes inexact.
    """

    lossless = True
    needs = frozenset({TEST})
    skips = True
    capturable = True
    choices: ClassVar[Choices] = {
        **WindowedDecoding.choices,
        "coupling": COUPLINGS,
        "init": INITIALISERS,
        "rule": tuple(RULES),
    }

    @register_to_config
    def __init__(
        self,
        window: int | str = "auto",
        coupling: str = "maximal",
        init: str = "uniform",
        rule: str = "exact",
        measure_tv: bool = False,
    ) -> None:
        self.register_to_config(window=check_window(window))
        if coupling not in COUPLINGS:
            raise ValueError(f"coupling must be one of {', '.join(COUPLINGS)}, got {coupling!r}")
        self.needs_noise = coupling == "gumbel"
        self._rule = parse_rule(rule)
        self.lossless = self._rule.lossless
        if self._rule.fresh_only and coupling != "independent":
            raise ValueError(
                f"rule {rule} looks ahead and needs drafts that are all drawn after the last "
                f"verification: coupling must be 'independent', got {coupling!r}"
            )

    @classmethod
    def published(cls) -> SpeculativeJacobiDecoding:
        """The settings of the paper's code: window 16, random first drafts as point masses."""
        return cls(window=16, coupling="independent", init="random")

    def fuses(self, device: torch.device) -> bool:
        """See `Decoding.fuses`."""
        return self._rule.structure is not None and dispatch.choose(device).backend == "cuda"

    def check(self, cast: Cast) -> None:
        """See `Decoding.check`."""
        super().check(cast)
        check_initialiser(self.config.init, cast.layout)
        kind = cast.model.tokens
        self._rule.check(kind, cast.tokenizer)
        if self.config.measure_tv and TABLE not in kind.offers:
            raise ValueError(
                f"measure_tv must be False for tokens that are {kind.name}, which no sum goes "
                "over, got True"
            )

    def init(self, cast: Cast, slots: int, guided: bool = True, window: int = 1) -> DecodeState:
        """See `Decoding.init`."""
        state = super().init(cast, slots, guided, window)
        device, features = state.tokens.device, state.law_width
        history = None
        if self.config.init in LAWS:
            history = torch.zeros(slots, state.tokens.shape[1], features, device=device)
        state.method = JacobiBuffers(
            q=torch.zeros(slots, window - 1, features, device=device),
            history=history,
            numbers=PassNumbers(),
            rule=self._rule.bind(cast.tokenizer, device),
            refused=torch.zeros_like(state.done) if state.kind.waits else None,
        )
        return state

    def prepare(self, state: DecodeState, slots: Tensor) -> None:
        """Drafts the first window of newly admitted slots."""
        buffers: JacobiBuffers = state.method
        buffers.numbers.forget()
        if buffers.refused is not None:
            buffers.refused[slots] = False
        if buffers.history is not None:  # of an earlier picture; no pass predicts what is given
            buffers.history[slots] = state.kind.flat(state.law_width, slots.device)
        ranks = state.length[:, None] + torch.arange(state.window - 1, device=slots.device)
        attempt = torch.zeros_like(state.length)
        u = state.kind.uniforms(state.seed[:, None], ranks, attempt[:, None])
        first = state.kind.numbers(u, state.seed, ranks, attempt).first
        newest = state.length - 1
        tokens, q = first_drafts(self.config.init, state, buffers.history, ranks, newest, first)
        state.tokens[slots[:, None], ranks[slots]] = tokens[slots]
        buffers.q[slots] = q.expand_as(buffers.q)[slots]

    def step(self, state: DecodeState) -> Step:
        """One pass: predict the window, keep the leading run of drafts, redraw the rest."""
        buffers: JacobiBuffers = state.method
        offsets = torch.arange(state.window, device=state.length.device)
        ranks = state.length[:, None] + offsets  # [B, W]
        feed = state.take((ranks - 1).clamp(min=0))
        hidden = state.forward(feed, ranks - 1)
        drafts = state.take(ranks[:, :-1])
        q = state.law_from(buffers.q)
        if state.fused:
            p, run, (tokens, found), initial = self._fused(state, hidden, ranks, drafts)
        else:
            numbers = buffers.numbers.take(state, offsets)
            p, initial = state.law(hidden, ranks), numbers.first
            run, (tokens, found) = self._judge(state, p, q, drafts, ranks, numbers)
        newest = ranks[:, -1]
        spent = None
        if not self.lossless:
            known = (p, q, drafts, run, self.config.measure_tv, buffers.refused)
            spent = spent_on_run(state, buffers.rule, *known)
        moved = run + 1 if found is None else run + found.to(run.dtype)
        committed = state.commit(tokens, moved)
        if buffers.refused is not None:
            buffers.refused = torch.zeros_like(state.done) if found is None else ~found
        self._shift(state, p, ranks[:, 0], newest, initial[:, :-1])
        return state.report(committed, state.window, spent)

    def _fused(
        self, state: DecodeState, hidden: Tensor, ranks: Tensor, drafts: Tensor
    ) -> tuple[Law, Tensor, Redrawn, Tensor]:
        """Laws, run, window and numbers for first drafts, as `_judge`, by the kernel."""
        buffers: JacobiBuffers = state.method
        form = buffers.rule.kernel_form()
        verdict = verify_window(
            state,
            hidden,
            ranks,
            drafts,
            buffers.q,
            self.config.rule,
            self.config.coupling,
            None if form is None else form.codes,
        )
        return state.law_from(verdict.laws), verdict.run, Redrawn(verdict.tokens), verdict.initial

    def _judge(
        self,
        state: DecodeState,
        p: Law,
        q: Law,
        drafts: Tensor,
        ranks: Tensor,
        numbers: Numbers,
    ) -> tuple[Tensor, Redrawn]:
        """Tests the drafts and redraws what is behind the first that fails.

        Args:
            state: before the pass is committed.
            p: [B, W] laws.
            q: [B, W - 1] laws of the drafts.
            drafts: [B, W - 1, *].
            ranks: int64 [B, W].
            numbers: of `ranks`.

        Returns:
            drafts kept, int64 [B], and the window's tokens after the pass, see `Rule.fill`.
        """
        buffers: JacobiBuffers = state.method
        count = drafts.shape[1]
        fresh = None
        if self.config.coupling == "gumbel":
            fresh = p.draw_frozen(state.noise_at(ranks))
        elif self.config.coupling == "independent" or count == 0:
            fresh = p.draw(numbers.fresh)
        if count == 0:
            assert fresh is not None
            return torch.zeros_like(state.length), Redrawn(fresh)
        rule, test = buffers.rule, numbers.test[:, :-1]
        run = rule.run(p.first(count), q, drafts, test, buffers.refused)
        return run, redraw(rule, p, q, drafts, run, numbers, fresh)

    def _shift(self, state: DecodeState, p: Law, first: Tensor, newest: Tensor, u: Tensor) -> None:
        """Moves the window behind the committed tokens and drafts the ranks that enter it.

        Args:
            state: after the pass was committed.
            p: [B, W] laws of this pass. They become q, for the tokens just drawn from them.
            first: int64 [B], first rank that the pass predicted.
            newest: int64 [B], last rank that has a token.
            u: [B, W - 1, *] numbers for first drafts.
        """
        buffers, window = state.method, state.window
        device = newest.device
        if buffers.history is not None:
            predicted = newest[:, None] - torch.arange(window - 1, -1, -1, device=device)
            pictures = torch.arange(state.slots, device=device)[:, None]
            buffers.history[pictures, predicted] = p.features
        offsets = torch.arange(window - 1, device=device)
        ranks = state.length[:, None] + offsets
        row = ranks - first[:, None]
        initial, initial_q = first_drafts(
            self.config.init, state, buffers.history, ranks, newest, u
        )
        enters = row >= window
        state.put(ranks, torch.where(state.kind.spread(enters), initial, state.take(ranks)))
        carried = p.rows(row.clamp(max=window - 1)).features
        carried = torch.where(enters[..., None], initial_q, carried)
        if buffers.refused is not None and window > 1:
            # A refused draft whose replacement is sought keeps its law.
            old = take_rows(buffers.q, row.clamp(max=window - 2))
            waits = buffers.refused[:, None, None] & (offsets == 0)[:, None]
            carried = torch.where(waits, old, carried)
        buffers.q = carried
