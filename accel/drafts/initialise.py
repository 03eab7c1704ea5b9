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
from visual_ar.sampling import CategoricalLaw, point_mass, take_rows

COPIES = {"left", "above", "previous-frame"}
LAWS = {"left-law", "above-law"}
INITIALISERS = ("uniform", "random", *sorted(COPIES), *sorted(LAWS))


def check_initialiser(init: str, layout: Layout) -> None:
    """Raises ValueError when `init` is unknown or the layout has no such neighbour."""
    if init not in INITIALISERS:
        raise ValueError(f"init must be one of {', '.join(INITIALISERS)}, got {init!r}")
    raster = bool((layout.order == torch.arange(layout.length, device=layout.order.device)).all())
    if init in COPIES | LAWS and not raster:
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
        history: fp32 [B, N + scratch, V] probabilities or [B, N + scratch, F] features, latest law
            of every rank up to `newest`; for LAWS only.
        ranks: int64 [B, K].
        newest: int64 [B], last rank that has a token, -1 when none has.
        u: [B, K] in (0, 1), or [B, K, d] for bits.

    Returns:
        tokens int64 [B, K], and their laws fp32 [B, K, V] or [1, 1, 1] when all are uniform; for
        bits bool [B, K, d] and features fp32 [B, K, F].
    """
    if state.bits:
        return _first_bits(init, state, history, ranks, newest, u)
    vocabulary = state.model.vocab_size
    random = (u * vocabulary).long().clamp_(max=vocabulary - 1)
    flat = torch.full((1, 1, 1), 1.0 / vocabulary, device=u.device)
    if init == "uniform":
        tokens, q = random, flat
    elif init == "random":
        tokens, q = random, point_mass(random, vocabulary)
    else:
        source = source_ranks(init, state.layout, ranks, newest)
        there = source >= 0
        source = source.clamp(min=0)
        if init in COPIES:
            tokens = state.tokens.gather(1, source)
            q = point_mass(tokens, vocabulary)
        else:
            assert history is not None
            q = take_rows(history, source)
            tokens = CategoricalLaw(probabilities=q).sample(u)
        tokens = torch.where(there, tokens, random)
        q = torch.where(there[..., None], q, flat)
    if state.forced is not None:
        forced = state.forced.gather(1, ranks)
        tokens = torch.where(forced >= 0, forced, tokens)
        q = torch.where((forced >= 0)[..., None], point_mass(forced.clamp(min=0), vocabulary), q)
    return tokens, q


def _first_bits(
    init: str,
    state: DecodeState,
    history: Tensor | None,
    ranks: Tensor,
    newest: Tensor,
    u: Tensor,
) -> tuple[Tensor, Tensor]:
    """`first_drafts` of bit vectors."""
    model, width = state.model, state.model.law_width(state.guided)
    tokens, sure = u < 0.5, torch.ones_like(ranks, dtype=torch.bool)
    q = model.draft_features(tokens, sure & (init == "random"), width)
    if init in COPIES | LAWS:
        source = source_ranks(init, state.layout, ranks, newest)
        there, source = (source >= 0)[..., None], source.clamp(min=0)
        copied = state.take(source)
        law = model.draft_features(copied, sure, width)
        if init in LAWS:
            assert history is not None
            law = take_rows(history, source)
            copied = model.law_from(law, state.temperature).sample(u)
        tokens, q = torch.where(there, copied, tokens), torch.where(there, law, q)
    if state.forced is not None:
        forced = state.forced.gather(1, ranks[..., None].expand_as(tokens))
        tokens = torch.where(forced >= 0, forced > 0, tokens)
        q = torch.where(forced[..., :1] >= 0, model.draft_features(tokens, sure, width), q)
    return tokens, q
