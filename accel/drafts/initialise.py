"""First drafts for ranks that enter a Jacobi window, each with the law it was really drawn from.

After Teng et al., "Accelerating Auto-regressive Text-to-Image Generation with Training-free
Speculative Jacobi Decoding" (2024), section on token initialisation. A draft may look at tokens and
laws of earlier ranks only, which keeps verification exact. Knows nothing about acceptance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visual_ar.accel.loop.state import DecodeState
from visual_ar.layout import Layout
from visual_ar.sampling import take_rows

COPIES = {"left", "above", "previous-frame"}
LAWS = {"left-law", "above-law"}
INITIALISERS = ("uniform", "random", *sorted(COPIES), *sorted(LAWS))


def check_initialiser(init: str, layout: Layout) -> None:
    """Raises ValueError when `init` is unknown or the layout has no such neighbour."""
    if init not in INITIALISERS:
        raise ValueError(f"init must be one of {', '.join(INITIALISERS)}, got {init!r}")
    if init in COPIES | LAWS and not layout.is_raster:
        raise ValueError(f"init={init!r} needs a raster order, where left and above come earlier")
    if init == "previous-frame" and layout.shape3d[0] == 1:
        raise ValueError(f"init='previous-frame' needs several frames, the grid is {layout.grid}")


def source_ranks(init: str, layout: Layout, ranks: Tensor, newest: Tensor) -> Tensor:
    """The nearest rank in the direction of `init` that already has a token.

    Left of a cell whose own row is still empty there is nothing: the cell above serves instead.

    Args:
        init: one of COPIES or LAWS.
        layout: a raster layout.
        ranks: int64 [B, K], ranks to draft, all above `newest`.
        newest: int64 [B], last rank that has a token, -1 when none has.

    Returns:
        int64 [B, K], -1 where there is no such rank.
    """
    _, rows, columns = layout.shape3d
    stride = rows * columns if init == "previous-frame" else columns
    last = newest[:, None]
    # The number of strides back that reaches a rank at or before the newest token.
    strides = torch.div(ranks - last + stride - 1, stride, rounding_mode="floor")
    source = (ranks - strides * stride).clamp(min=-1)
    if init in {"left", "left-law"}:
        same_row = (ranks // columns == last // columns) & (last >= 0)
        source = torch.where(same_row, last, source)
    return source


def first_tokens(init: str, state: DecodeState, ranks: Tensor, newest: Tensor, u: Tensor) -> Tensor:
    """`first_drafts` without laws, for methods that compare drafts only: [B, K, *].

    init: "uniform" or one of COPIES.
    """
    kind = state.kind
    tokens = kind.flat_tokens(u)
    if init in COPIES:
        source = source_ranks(init, state.layout, ranks, newest)
        copied = state.take(source.clamp(min=0))
        tokens = torch.where(kind.spread(source >= 0), copied, tokens)
    return tokens if state.forced is None else kind.force(tokens, state.forced_at(ranks))


def first_drafts(
    init: str,
    state: DecodeState,
    history: Tensor | None,
    ranks: Tensor,
    newest: Tensor,
    u: Tensor,
) -> tuple[Tensor, Tensor]:
    """Drafts tokens for ranks that have none yet.

    Args:
        init: one of INITIALISERS.
        state: tokens up to `newest` are current.
        history: fp32 [B, N + scratch, F] features, latest law of every rank up to `newest`; for
            LAWS only.
        ranks: int64 [B, K].
        newest: int64 [B], last rank that has a token, -1 when none has.
        u: fp32 [B, K, *] in (0, 1).

    Returns:
        tokens [B, K, *], and features of their laws fp32 [B, K, F] or [1, 1, F] when all are alike.
    """
    kind, width = state.kind, state.law_width
    tokens, q = kind.flat_tokens(u), kind.flat(width, u.device)
    if init == "random":
        q = kind.certain(tokens, width)
    elif init != "uniform":
        source = source_ranks(init, state.layout, ranks, newest)
        there, source = source >= 0, source.clamp(min=0)
        if init in COPIES:
            near = state.take(source)
            law = kind.certain(near, width)
        else:
            assert history is not None
            law = take_rows(history, source)
            near = _drawn(state, law, ranks, u)
        tokens = torch.where(kind.spread(there), near, tokens)
        q = torch.where(there[..., None], law, q)
    if state.forced is None:
        return tokens, q
    forced = state.forced_at(ranks)
    whole = q.expand(*ranks.shape, width)
    return kind.force(tokens, forced), state.law_from(whole).with_forced(forced).features


def _drawn(state: DecodeState, features: Tensor, ranks: Tensor, u: Tensor) -> Tensor:
    """Draws from laws whose forced parts are certain: [B, K, *]. features: [B, K, F]."""
    law = state.law_from(features)
    if state.forced is not None:
        law = law.with_forced(state.forced_at(ranks))
    return law.draw(u)
