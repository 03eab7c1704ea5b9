"""Jacobi decoding with frozen Gumbel noise: the tokens of sequential decoding in fewer passes.

Every rank's noise g is fixed, so its token argmax(log p + g) is a function of the tokens before it,
and Jacobi iteration (Song et al. 2021, arXiv 2002.03629) finds the same fixed point as sequential
decoding with the same seed. Equal token for token in fp32 at a fixed slot shape; elsewhere matrix
products of other shapes round differently and may turn a near tie. Knows nothing about families.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from diffusers import SchedulerMixin  # noqa: F401  (diffusers looks for it in a component's module)
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from visual_ar.accel.drafts.initialise import COPIES, check_initialiser, first_tokens
from visual_ar.accel.kernels import dispatch
from visual_ar.accel.loop.contract import Choices
from visual_ar.accel.loop.fused import draw_window
from visual_ar.accel.loop.state import DecodeState, Step
from visual_ar.accel.loop.window import WindowedDecoding, check_window
from visual_ar.accel.rules.rule import leading_run
from visual_ar.cast import Cast

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
    needs_noise = True
    skips = True
    capturable = True
    choices: ClassVar[Choices] = {**WindowedDecoding.choices, "init": _INITIALISERS}

    @register_to_config
    def __init__(self, window: int | str = "auto", init: str = "left") -> None:
        self.register_to_config(window=check_window(window))
        if init not in _INITIALISERS:
            raise ValueError(f"init must be one of {', '.join(_INITIALISERS)}, got {init!r}")

    def fuses(self, device: torch.device) -> bool:
        """See `Decoding.fuses`."""
        return dispatch.choose(device).backend == "cuda"

    def check(self, cast: Cast) -> None:
        """See `Decoding.check`."""
        super().check(cast)
        check_initialiser(self.config.init, cast.layout)

    def init(self, cast: Cast, slots: int, guided: bool = True, window: int = 1) -> DecodeState:
        """See `Decoding.init`. Its own buffer: the numbers of first drafts by rank, [B, N, *]."""
        state = super().init(cast, slots, guided, window)
        shape = (*state.tokens.shape[:2], *state.kind.number_shape)
        state.method = torch.zeros(shape, device=state.tokens.device)
        return state

    def prepare(self, state: DecodeState, slots: Tensor) -> None:
        """Drafts the first window of newly admitted slots."""
        every = torch.arange(state.tokens.shape[1], device=slots.device)
        seed, attempt = state.seed[slots, None], torch.zeros_like(every)
        state.method[slots] = state.kind.uniforms(seed, every, attempt)[0]
        offsets = torch.arange(state.window, device=slots.device)
        ranks = state.length[:, None] + offsets
        drafts = self._first(state, ranks, newest=state.length - 1)
        state.tokens[slots[:, None], ranks[slots]] = drafts[slots]

    def step(self, state: DecodeState) -> Step:
        """One pass: keep drafts up to the first that the noise contradicts, and its correction."""
        kind = state.kind
        offsets = torch.arange(state.window, device=state.length.device)
        ranks = state.length[:, None] + offsets  # [B, W]
        feed = state.take((ranks - 1).clamp(min=0))
        tokens = draw_window(state, state.forward(feed, ranks - 1), ranks)
        run = leading_run(kind.same(tokens[:, :-1], state.take(ranks[:, :-1])))
        newest = ranks[:, -1]
        committed = state.commit(tokens, run + 1)
        entering = state.length[:, None] + offsets[:-1]
        initial = self._first(state, entering, newest)
        enters = kind.spread(entering > newest[:, None])
        state.put(entering, torch.where(enters, initial, state.take(entering)))
        return state.report(committed, head_evaluations=state.window)

    def _first(self, state: DecodeState, ranks: Tensor, newest: Tensor) -> Tensor:
        """First drafts [B, K, *]. ranks: int64 [B, K]; newest: int64 [B]."""
        pictures = torch.arange(state.slots, device=ranks.device)[:, None]
        return first_tokens(self.config.init, state, ranks, newest, state.method[pictures, ranks])
