"""Speculative Jacobi decoding: a model verifies the tokens it drafted in its own previous pass.

Teng et al. (2024), arXiv 2410.01699, Algorithm 1, with batches that advance raggedly, exact laws
for first drafts, and couplings of consecutive drafts (arXiv 2510.24211): drafts that change less
from pass to pass are accepted more often, and any coupling that leaves each draft's marginal law
alone keeps the output law. Knows nothing about families or pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import SchedulerMixin  # noqa: F401  (diffusers looks for it in a component's module)
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from visual_ar.accel import bit_jacobi
from visual_ar.accel.drafts.initialise import LAWS, check_initialiser, first_drafts
from visual_ar.accel.kernels import dispatch
from visual_ar.accel.kernels.specialise import codes_of, covers
from visual_ar.accel.loop.chain import PassNumbers, spent_on_run
from visual_ar.accel.loop.fused import verify_window
from visual_ar.accel.loop.state import DecodeState, Step
from visual_ar.accel.loop.window import WindowedDecoding, check_window
from visual_ar.accel.rules import acceptance
from visual_ar.accel.rules.bit_rules import BitRule, Bitwise
from visual_ar.accel.rules.parse import Exact, parse_rule
from visual_ar.accel.rules.rule import Rule
from visual_ar.layout import Layout
from visual_ar.models.token_model import TokenModel
from visual_ar.sampling import CategoricalLaw, uniforms
from visual_ar.tokenizers.visual_tokenizer import VisualTokenizer

COUPLINGS = ("independent", "maximal", "gumbel")
_ACCEPT, _RESIDUAL, _FRESH, _INITIAL = range(4)


@dataclass
class JacobiBuffers:
    """What a pass hands to the next one.

    Attributes:
        q: fp32 [B, W - 1, V], law of the draft at rank length + j.
        history: fp32 [B, N + scratch, V], latest law of every rank; None when no draft reads it.
        numbers: uniform numbers of the next passes.
        rule: the acceptance rule with its tables.
    """

    q: Tensor
    history: Tensor | None
    numbers: PassNumbers
    rule: Rule


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
        rule: acceptance rule of the drafts that are tested, see `rules.parse_rule`. The redrawn
            tail is coupled by the exact test whatever the rule, so that its laws stay known. On
            bits "exact" tests whole tokens and "bitwise" every bit, both lossless.
        measure_tv: with a lossy rule, sum the total variation it spends over the whole code book
            instead of estimating an upper bound from the drafts. Slow.

    Raises:
        ValueError: an option outside its range, or a rule that this coupling makes inexact.
    """

    lossless = True
    also_serves = frozenset({"bits", "subcodes"})
    capturable = True

    @register_to_config
    def __init__(
        self,
        window: int | str = "auto",
        coupling: str = "maximal",
        init: str = "uniform",
        rule: str = "exact",
        measure_tv: bool = False,
    ) -> None:
        check_window(window)
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
        return covers(self._rule) and dispatch.choose(device).backend == "cuda"

    def check(
        self, model: TokenModel, layout: Layout, tokenizer: VisualTokenizer | None = None
    ) -> None:
        """See `Decoding.check`."""
        super().check(model, layout, tokenizer)
        check_initialiser(self.config.init, layout)
        if not model.bits:
            self._rule.check(tokenizer)
            return
        self._bit_rule(model)
        if self.config.measure_tv:
            raise ValueError(
                "measure_tv must be False for a model of bits, whose 2^d tokens no sum "
                "goes over, got True"
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
        """See `Decoding.init`."""
        state = super().init(model, layout, slots, guided, window, tokenizer)
        if state.bits:
            rule, coupling = self._bit_rule(model), self.config.coupling
            state.method = bit_jacobi.buffers_for(state, rule, coupling, self.config.init)
            return state
        assert not isinstance(self._rule, BitRule)  # refused by `check`
        device, vocabulary, width = state.tokens.device, model.vocab_size, state.tokens.shape[1]
        history = torch.zeros(slots, width, vocabulary, device=device)
        state.method = JacobiBuffers(
            q=torch.zeros(slots, window - 1, vocabulary, device=device),
            history=history if self.config.init in LAWS else None,
            numbers=PassNumbers(),
            rule=self._rule.bind(tokenizer, model.device),
        )
        return state

    def _bit_rule(self, model: TokenModel) -> BitRule:
        """The rule's form for the model's bits. Raises ValueError when it has none."""
        rule = self._rule.on_bits()
        if "bits" in model.capabilities:
            return rule
        if not rule.lossless:
            raise ValueError(
                f"rule must be exact for a model of sub-codes, whose tokens have no neighbours to "
                f"count, got {self.config.rule}"
            )
        return Bitwise()

    def prepare(self, state: DecodeState, slots: Tensor) -> None:
        """Drafts the first window of newly admitted slots."""
        if state.bits:
            bit_jacobi.prepare(state, slots)
            return
        buffers = state.method
        buffers.numbers.forget()
        offsets = torch.arange(state.window - 1, device=slots.device)
        ranks = state.length[:, None] + offsets
        u = uniforms(state.seed[:, None], ranks, torch.zeros_like(ranks))[_INITIAL]
        newest = state.length - 1
        tokens, q = first_drafts(self.config.init, state, buffers.history, ranks, newest, u)
        state.tokens[slots[:, None], ranks[slots]] = tokens[slots]
        buffers.q[slots] = q.expand_as(buffers.q)[slots]

    def step(self, state: DecodeState) -> Step:
        """One pass: predict the window, keep the leading run of drafts, redraw the rest."""
        if state.bits:
            return bit_jacobi.step(state)
        buffers: JacobiBuffers = state.method
        offsets = torch.arange(state.window, device=state.length.device)
        ranks = state.length[:, None] + offsets  # [B, W]
        feed = state.tokens.gather(1, (ranks - 1).clamp(min=0))
        hidden = state.forward(feed, ranks - 1)
        drafts = state.tokens.gather(1, ranks[:, :-1])
        q = CategoricalLaw(probabilities=buffers.q)
        if state.fused:
            verdict = verify_window(
                state,
                hidden,
                ranks,
                drafts,
                buffers.q,
                self.config.rule,
                self.config.coupling,
                codes_of(buffers.rule),
            )
            p = CategoricalLaw(probabilities=verdict.laws)
            run, tokens, initial = verdict.run, verdict.tokens, verdict.initial
        else:
            u = buffers.numbers.take(state, offsets)  # [4, B, W]
            p = state.law(hidden, ranks)
            run = self._run(p, q, drafts, buffers.rule, u)
            tokens, initial = self._redraw(state, p, q, drafts, run, ranks, u), u[_INITIAL]
        newest = ranks[:, -1]
        spent = None
        if not self.lossless:
            spent = spent_on_run(state, buffers.rule, p, q, drafts, run, self.config.measure_tv)
        committed = state.commit(tokens, run + 1)
        self._shift(state, buffers, p, run + 1, newest, initial)
        return state.report(committed, state.window, spent)

    def _run(
        self, p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor, rule: Rule, u: Tensor
    ) -> Tensor:
        """How many drafts are kept: int64 [B]. p: [B, W]; q: [B, W - 1]; u: [4, B, W]."""
        if drafts.shape[1] == 0:
            return torch.zeros_like(drafts[:, :1]).sum(1)
        return rule.run(p.first(drafts.shape[1]), q, drafts, u[_ACCEPT, :, :-1])

    def _redraw(
        self,
        state: DecodeState,
        p: CategoricalLaw,
        q: CategoricalLaw,
        drafts: Tensor,
        run: Tensor,
        ranks: Tensor,
        u: Tensor,
    ) -> Tensor:
        """Tokens of the window after the pass: kept drafts, the correction, the new tail.

        Args:
            p: [B, W] laws; q: [B, W - 1] laws of `drafts` int64 [B, W - 1].
            run: int64 [B], kept drafts.
            ranks: int64 [B, W]; u: [4, B, W].

        Returns:
            int64 [B, W].
        """
        rule, count = state.method.rule, drafts.shape[1]
        maximal = self.config.coupling == "maximal" and count > 0
        if maximal:
            passes = acceptance.exact(p.first(count), q, drafts, u[_ACCEPT, :, :-1])
            numbers = (u[_RESIDUAL, :, :-1], u[_FRESH, :, -1:])
            fresh = acceptance.couple(p, q, drafts, passes, *numbers)
        elif self.config.coupling == "gumbel":
            fresh = p.sample_gumbel(state.noise_at(ranks))
        else:
            fresh = p.sample(u[_FRESH])
        if count == 0 or (maximal and isinstance(rule, Exact)):
            return fresh  # whose leading run and correction are already the rule's
        return rule.fill(p, q, drafts, run, fresh, u[_RESIDUAL, :, :-1])

    def _shift(
        self,
        state: DecodeState,
        buffers: JacobiBuffers,
        p: CategoricalLaw,
        moved: Tensor,
        newest: Tensor,
        u: Tensor,
    ) -> None:
        """Moves the window behind the committed tokens and drafts the ranks that enter it.

        Args:
            p: [B, W] laws of this pass. They become q, for the tokens just drawn from them.
            moved: int64 [B], ranks the window moves by.
            newest: int64 [B], last rank that has a token.
            u: [B, W] numbers for first drafts.
        """
        window = state.window
        if buffers.history is not None:
            all_ranks = newest[:, None] - torch.arange(window - 1, -1, -1, device=moved.device)
            pictures = torch.arange(state.slots, device=moved.device)[:, None]
            buffers.history[pictures, all_ranks] = p.probabilities
        row = moved[:, None] + torch.arange(window - 1, device=moved.device)
        ranks = state.length[:, None] + torch.arange(window - 1, device=moved.device)
        initial, initial_q = first_drafts(
            self.config.init, state, buffers.history, ranks, newest, u[:, :-1]
        )
        enters = row >= window
        tokens = torch.where(enters, initial, state.tokens.gather(1, ranks))
        state.tokens.scatter_(1, ranks, tokens)
        carried = p.rows(row.clamp(max=window - 1)).probabilities
        buffers.q = torch.where(enters[..., None], initial_q, carried)
