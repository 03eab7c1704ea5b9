"""The pass of speculative Jacobi decoding over tokens that are bit vectors.

The chain is that of `jacobi` (Teng et al. 2024, Algorithm 1), with laws over bits for those over a
code book. A whole-token test needs a draw from norm((p - q)+), which has no bound on its proposals:
a pass makes a fixed number of them, and where none is kept the picture waits, its refused draft and
that draft's law with it, and asks again in the next pass; the tail behind goes on meanwhile. So the
law stays exact and the host reads nothing. Knows nothing about families or pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visual_ar.accel.drafts.initialise import LAWS, first_drafts
from visual_ar.accel.loop.state import DecodeState, Step
from visual_ar.accel.rules import acceptance, bit_acceptance
from visual_ar.accel.rules.bit_rules import BitRule, corrected
from visual_ar.sampling import bit_uniforms, take_rows

_TEST, _FRESH, _INITIAL = range(3)


@dataclass
class BitBuffers:
    """What a pass hands to the next one.

    Attributes:
        q: fp32 [B, W - 1, F], features of the law of the draft at rank length + j.
        history: fp32 [B, N + scratch, F], latest features of every rank; None when nobody reads it.
        refused: bool [B], whether the first draft was refused before and its replacement is sought.
        attempt: int64 [B], passes made for the picture, those without a token included.
        rule: the acceptance rule.
        coupling: as of `SpeculativeJacobiDecoding`.
        init: likewise.
    """

    q: Tensor
    history: Tensor | None
    refused: Tensor
    attempt: Tensor
    rule: BitRule
    coupling: str
    init: str


def buffers_for(state: DecodeState, rule: BitRule, coupling: str, init: str) -> BitBuffers:
    """Empty buffers for a fresh state."""
    slots, ranks, _ = state.tokens.shape
    width = state.model.law_width(state.guided)
    history = torch.zeros(slots, ranks, width, device=state.tokens.device)
    return BitBuffers(
        q=history[:, : state.window - 1].clone(),
        history=history if init in LAWS else None,
        refused=torch.zeros_like(state.done),
        attempt=torch.zeros_like(state.length),
        rule=rule,
        coupling=coupling,
        init=init,
    )


def prepare(state: DecodeState, slots: Tensor) -> None:
    """Drafts the first window of newly admitted slots. slots: int64 [b]."""
    buffers: BitBuffers = state.method
    buffers.attempt[slots] = 0
    buffers.refused[slots] = False
    ranks = state.length[:, None] + torch.arange(state.window - 1, device=slots.device)
    u = _numbers(state, buffers, ranks)[:, :, _INITIAL]
    newest = state.length - 1
    tokens, q = first_drafts(buffers.init, state, buffers.history, ranks, newest, u)
    state.tokens[slots[:, None], ranks[slots]] = tokens[slots]
    buffers.q[slots] = q.expand_as(buffers.q)[slots]


def step(state: DecodeState) -> Step:
    """One pass: predict the window, keep the leading run of drafts, redraw the rest."""
    buffers: BitBuffers = state.method
    buffers.attempt += (~state.done).to(buffers.attempt.dtype)
    ranks = state.length[:, None] + torch.arange(state.window, device=state.length.device)
    u = _numbers(state, buffers, ranks)  # [B, W, 3, d]
    p = state.law(state.forward(state.take((ranks - 1).clamp(min=0)), ranks - 1), ranks)
    drafts = state.take(ranks[:, :-1])
    q = state.model.law_from(buffers.q, state.temperature)
    tokens, run, found = _judge(state, p, q, drafts, ranks, u)
    newest = ranks[:, -1]
    spent = None if buffers.rule.lossless else _spent(state, p, q, drafts, run)
    moved = run + found.to(run.dtype)
    committed = state.commit(tokens, moved)
    buffers.refused = ~found
    _shift(state, p, moved, newest, u[:, :-1, _INITIAL])
    return state.report(committed, state.window, spent)


def _judge(
    state: DecodeState, p: Any, q: Any, drafts: Tensor, ranks: Tensor, u: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Tests the drafts and redraws what is behind the first that fails.

    Args:
        p: [B, W] laws; q: [B, W - 1] laws of `drafts` bool [B, W - 1, d].
        ranks: int64 [B, W].
        u: [B, W, 3, d].

    Returns:
        tokens of the window bool [B, W, d], drafts kept int64 [B], and bool [B], whether the token
        behind them is known; where it is not, the refused draft stands in its place.
    """
    buffers, count = state.method, drafts.shape[1]
    fresh = _fresh(state, p, q, drafts, ranks, u)
    if count == 0:
        none = torch.zeros_like(state.length)
        return fresh, none, torch.ones_like(buffers.refused)
    front, test = p.first(count), u[:, :-1, _TEST]
    passes = buffers.rule.passes(front, q, drafts, test)
    first = torch.arange(count, device=ranks.device) == 0
    run = acceptance.leading_run(passes & ~(buffers.refused[:, None] & first))
    numbers = (state.seed, ranks, buffers.attempt)
    instead, found = corrected(buffers.rule, front, q, drafts, run, test, numbers)
    found = found | (run == count)
    instead = torch.where(found[:, None, None], instead, drafts)
    column = torch.arange(count, device=ranks.device)[:, None]
    tail = torch.where(column == run[:, None, None], instead, fresh[:, :-1])
    kept = torch.where(column < run[:, None, None], drafts, tail)
    return torch.cat([kept, fresh[:, -1:]], dim=1), run, found


def _fresh(state: DecodeState, p: Any, q: Any, drafts: Tensor, ranks: Tensor, u: Tensor) -> Tensor:
    """A draw from every law, coupled to the drafts as asked: bool [B, W, d]."""
    coupling, count = state.method.coupling, drafts.shape[1]
    if coupling == "gumbel":
        return p.sample_gumbel(state.noise_at(ranks))
    if coupling == "independent" or count == 0:
        return p.sample(u[:, :, _FRESH])
    # Bit by bit, so that nothing is left to be sought. These are the numbers of the tests, of which
    # those behind the first refusal decided nothing.
    again = bit_acceptance.by_part(p.first(count), q, drafts, u[:, :-1, _TEST]).tokens
    return torch.cat([again, p.last().sample(u[:, -1:, _FRESH])], dim=1)


def _shift(state: DecodeState, p: Any, moved: Tensor, newest: Tensor, u: Tensor) -> None:
    """Moves the window behind the committed tokens and drafts the ranks that enter it.

    Args:
        p: [B, W] laws of this pass. They become q, for the tokens just drawn from them.
        moved: int64 [B], ranks the window moves by.
        newest: int64 [B], last rank that has a token.
        u: [B, W - 1, d] numbers for first drafts.
    """
    buffers, window = state.method, state.window
    device = moved.device
    if buffers.history is not None:
        ranks = newest[:, None] - torch.arange(window - 1, -1, -1, device=device)
        buffers.history[torch.arange(state.slots, device=device)[:, None], ranks] = p.features
    offsets = torch.arange(window - 1, device=device)
    ranks, row = state.length[:, None] + offsets, moved[:, None] + offsets
    initial, initial_q = first_drafts(buffers.init, state, buffers.history, ranks, newest, u)
    enters = (row >= window)[..., None]
    state.put(ranks, torch.where(enters, initial, state.take(ranks)))
    kept = row.clamp(max=window - 1)
    carried = torch.where(enters, initial_q, p.rows(kept).features)
    if window > 1:  # a refused draft whose replacement is sought keeps its law
        old = take_rows(buffers.q, row.clamp(max=window - 2))
        waits = buffers.refused[:, None, None] & (offsets == 0)[:, None]
        carried = torch.where(waits, old, carried)
    buffers.q = carried


def _spent(state: DecodeState, p: Any, q: Any, drafts: Tensor, run: Tensor) -> Tensor:
    """Total variation spent on the drafts this pass tested first, fp32 [B]: an estimated bound."""
    count = drafts.shape[1]
    if count == 0:
        return torch.zeros_like(state.temperature)
    offsets = torch.arange(count, device=run.device)
    before = state.method.refused[:, None] & (offsets == 0)  # paid for when it was tested
    tested = (offsets <= run[:, None]) & ~before
    exists = state.length[:, None] + offsets < state.layout.length
    spent = state.method.rule.spent(p.first(count), q, drafts)
    return torch.where(tested & exists, spent, 0.0).sum(1)


def _numbers(state: DecodeState, buffers: BitBuffers, ranks: Tensor) -> Tensor:
    """Uniform numbers of this pass. ranks: int64 [B, Q]; returns fp32 [B, Q, 3, d]."""
    bits = state.bits
    u = bit_uniforms(state.seed[:, None], ranks, buffers.attempt[:, None], 3 * bits)
    return u.unflatten(-1, (3, bits))
