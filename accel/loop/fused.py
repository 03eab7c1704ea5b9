"""The verification kernel on a window of a decoding state; knows no method's bookkeeping."""

from __future__ import annotations

from torch import Tensor

from visual_ar.accel.kernels import dispatch
from visual_ar.accel.kernels.reference import Verdict
from visual_ar.accel.loop.state import DecodeState
from visual_ar.sampling import Sampling


def verify_window(
    state: DecodeState,
    hidden: Tensor,
    ranks: Tensor,
    drafts: Tensor | None = None,
    q: Tensor | None = None,
    rule: str = "exact",
    coupling: str = "gumbel",
    codes: Tensor | None = None,
) -> Verdict:
    """What the verification kernel makes of a window, with the random numbers of this pass.

    Args:
        state: its committed ranks end where the window begins.
        hidden: [R, W, D] hidden states of the ranks before the window's.
        ranks: int64 [B, W], from the first that is not committed.
        drafts: int64 [B, W - 1], and the rest as of `dispatch.verify`.
        q: fp32 [B, W - 1, V].
        rule: judges the drafts.
        coupling: of the tail.
        codes: [V, k].
    """
    logits = state.model.predict(hidden, state.twice(ranks))
    conditional, unconditional = logits.chunk(2) if state.guided else (logits, None)
    scales = state.guidance.gather(1, ranks)
    return dispatch.verify(
        conditional,
        unconditional,
        Sampling(scales, state.temperature, state.top_k, state.top_p, state.seed),
        state.warps,
        drafts,
        q,
        state.length,
        state.passes + 1,
        rule,
        coupling,
        None if state.forced is None else state.forced.gather(1, ranks),
        codes=codes,
    )


def draw_window(state: DecodeState, hidden: Tensor, ranks: Tensor) -> Tensor:
    """Tokens of a window by the noise that is fixed per rank.

    Args:
        state: its committed ranks end where the window begins.
        hidden: [R, W, D] hidden states of the ranks before the window's.
        ranks: int64 [B, W], from the first that is not committed.

    Returns:
        [B, W, *].
    """
    if state.fused:
        return verify_window(state, hidden, ranks).tokens
    return state.law(hidden, ranks).draw_frozen(state.noise_at(ranks))
