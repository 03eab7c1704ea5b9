"""Next-token sampling, one token a pass: the definition of the law, and the fair baseline.

Draws with noise fixed per rank (the Gumbel maximum), so that methods that reuse this noise can give
the same picture. Knows nothing about drafts.
"""

from __future__ import annotations

import torch
from diffusers import SchedulerMixin  # noqa: F401  (diffusers looks for it in a component's module)
from diffusers.configuration_utils import register_to_config

from visual_ar.accel.kernels import dispatch
from visual_ar.accel.loop.contract import Decoding
from visual_ar.accel.loop.fused import draw_window
from visual_ar.accel.loop.state import DecodeState, Step


class SequentialDecoding(Decoding):
    """Draws every token from the model's law given all tokens before it."""

    lossless = True
    needs_noise = True
    skips = True
    capturable = True

    @register_to_config
    def __init__(self) -> None:
        pass

    def fuses(self, device: torch.device) -> bool:
        """See `Decoding.fuses`."""
        return dispatch.choose(device).backend == "cuda"

    def step(self, state: DecodeState) -> Step:
        """One token for every unfinished picture."""
        ranks = state.length.unsqueeze(1)
        before = ranks - 1
        feed = state.take(before.clamp(min=0))
        tokens = draw_window(state, state.forward(feed, before), ranks)
        committed = state.commit(tokens, 1)
        return state.report(committed, head_evaluations=1)
