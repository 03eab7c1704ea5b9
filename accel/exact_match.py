"""Jacobi decoding with frozen Gumbel noise: the tokens of sequential decoding in fewer passes.

Every rank's noise g is fixed, so its token argmax(log p + g) is a function of the tokens before it,
and Jacobi iteration (Song et al. 2021, arXiv 2002.03629) finds the same fixed point as sequential
decoding with the same seed. Equal token for token in fp32 at a fixed slot shape; elsewhere matrix
products of other shapes round differently and may turn a near tie. Knows nothing about families.
"""

from __future__ import annotations

import torch
from diffusers import SchedulerMixin  # noqa: F401  (diffusers looks for it in a component's module)
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from visual_ar.accel.drafts.initialise import COPIES, check_initialiser, first_drafts
from visual_ar.accel.kernels import dispatch
from visual_ar.accel.loop.fused import draw_window
from visual_ar.accel.loop.state import DecodeState, Step
from visual_ar.accel.loop.window import WindowedDecoding, check_window
from visual_ar.accel.rules import acceptance
from visual_ar.layout import Layout
from visual_ar.models.token_model import TokenModel
from visual_ar.sampling import bit_uniforms, uniforms
from visual_ar.tokenizers.visual_tokenizer import VisualTokenizer

_INITIALISERS = ("uniform", *sorted(COPIES))


class ExactMatchJacobiDecoding(WindowedDecoding):
    """Keeps drafts while they equal the token the frozen noise gives; see the module's docstring.

    Args:
        window: ranks predicted by a pass, at least 1, or "auto" for the fastest on this device.
        init: first draft of a rank that enters the window: "uniform", or a copy of the nearest
            token "left", "above" or in the "previous-frame".

    Raises:
        ValueError: an option outside its range.
    """

    lossless = True
    also_serves = frozenset({"bits", "subcodes"})
    needs_noise = True
    capturable = True

    @register_to_config
    def __init__(self, window: int | str = "auto", init: str = "left") -> None:
        check_window(window)
        if init not in _INITIALISERS:
            raise ValueError(f"init must be one of {', '.join(_INITIALISERS)}, got {init!r}")

    def fuses(self, device: torch.device) -> bool:
        """See `Decoding.fuses`."""
        return dispatch.choose(device).backend == "cuda"

    def check(
        self, model: TokenModel, layout: Layout, tokenizer: VisualTokenizer | None = None
    ) -> None:
        """See `Decoding.check`."""
        super().check(model, layout, tokenizer)
        check_initialiser(self.config.init, layout)

    def init(
        self,
        model: TokenModel,
        layout: Layout,
        slots: int,
        guided: bool = True,
        window: int = 1,
        tokenizer: VisualTokenizer | None = None,
    ) -> DecodeState:
        """See `Decoding.init`. Its own buffer: one uniform number a rank, shaped as the tokens."""
        state = super().init(model, layout, slots, guided, window, tokenizer)
        state.method = torch.zeros(state.tokens.shape, device=state.tokens.device)
        return state

    def prepare(self, state: DecodeState, slots: Tensor) -> None:
        """Drafts the first window of newly admitted slots."""
        every = torch.arange(state.tokens.shape[1], device=slots.device)
        seed, attempt = state.seed[slots, None], torch.zeros_like(every)
        if state.bits:
            state.method[slots] = bit_uniforms(seed, every, attempt, state.bits)
        else:
            state.method[slots] = uniforms(seed, every, attempt)[0]
        offsets = torch.arange(state.window, device=slots.device)
        ranks = state.length[:, None] + offsets
        drafts = self._first(state, ranks, newest=state.length - 1)
        state.tokens[slots[:, None], ranks[slots]] = drafts[slots]

    def step(self, state: DecodeState) -> Step:
        """One pass: keep drafts up to the first that the noise contradicts, and its correction."""
        offsets = torch.arange(state.window, device=state.length.device)
        ranks = state.length[:, None] + offsets  # [B, W]
        feed = state.take((ranks - 1).clamp(min=0))
        tokens = draw_window(state, state.forward(feed, ranks - 1), ranks)
        same = tokens[:, :-1] == state.take(ranks[:, :-1])
        run = acceptance.leading_run(same.all(-1) if state.bits else same)
        newest = ranks[:, -1]
        committed = state.commit(tokens, run + 1)
        entering = state.length[:, None] + offsets[:-1]
        initial = self._first(state, entering, newest)
        enters = entering > newest[:, None]
        enters = enters[..., None] if state.bits else enters
        state.put(entering, torch.where(enters, initial, state.take(entering)))
        return state.report(committed, head_evaluations=state.window)

    def _first(self, state: DecodeState, ranks: Tensor, newest: Tensor) -> Tensor:
        """First drafts. ranks: int64 [B, K]; newest: int64 [B]; returns tokens [B, K]."""
        index = ranks[..., None].expand(-1, -1, state.bits) if state.bits else ranks
        u = state.method.gather(1, index)
        tokens, _ = first_drafts(self.config.init, state, None, ranks, newest, u)
        return tokens
