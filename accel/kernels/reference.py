"""What a pass does with its logits, in plain torch: the specification of the kernel `verify.cu`.

From raw logits to the tokens of a window: guide, warp, test the drafts, correct the first that
fails, redraw the tail. Reads nothing on the host. Knows nothing about models or who drafted.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from visual_ar.accel.rules.rule import Rule, leading_run, redraw
from visual_ar.sampling import Sampling, Warps, guide, gumbel_noise, uniforms, warp
from visual_ar.tokens.codes import CategoricalLaw, Codes

COUPLINGS = ("independent", "maximal", "gumbel")
BAD_LOGITS, BAD_TOKEN, BAD_LAW = 1, 2, 4
MAX_VOCABULARY = 2**18
LOGIT_TYPES = (torch.float32, torch.float16, torch.bfloat16)

_ACCEPT, _RESIDUAL, _FRESH, _INITIAL = range(4)  # uses of the numbers of a rank


class Verdict(NamedTuple):
    """What became of a window. B pictures, W ranks, V codes.

    Attributes:
        run: int64 [B], leading drafts kept, 0..W-1. The token after them is committed too.
        tokens: int64 [B, W], kept drafts, the correction, then new drafts; draws only when there
            were no drafts.
        laws: fp32 [B, W, V], the target laws p. Row run + 1 + j is the law q of the next pass's
            draft j, as long as there is such a row.
        flags: int32 [B, W], sums of BAD_LOGITS (a NaN or positive infinity, or no possible code;
            such codes count as impossible, and the law is uniform where none is left), BAD_TOKEN
            (a draft outside [0, V), or a forced token above it, which then counts as free) and
            BAD_LAW (q does not give its own draft a positive probability). A draft in a flagged
            rank is refused and replaced by a draw from p.
        initial: fp32 [B, W], the uniform number of every rank that verifying leaves over, for the
            first drafts of ranks that enter the window.
    """

    run: Tensor
    tokens: Tensor
    laws: Tensor
    flags: Tensor
    initial: Tensor


def verify(
    conditional: Tensor,
    unconditional: Tensor | None,
    sampling: Sampling,
    warps: Warps,
    drafts: Tensor | None,
    q: Tensor | None,
    rank: Tensor,
    attempt: Tensor,
    rule: Rule,
    coupling: str = "maximal",
    forced: Tensor | None = None,
    numbers: Tensor | None = None,
) -> Verdict:
    """Judges the drafts of a window by the logits of a pass, and fills the window anew.

    This is one pass of speculative Jacobi decoding (Teng et al. 2024, arXiv 2410.01699, Algorithm
    1) without its model; "maximal" keeps a draft of the tail whenever it passes the exact test, and
    "gumbel" draws the tail with noise fixed per (seed, rank), as sequential decoding does.

    Args:
        conditional: [B, W, V] raw logits, fp32, fp16 or bf16; may be a slice of a larger book.
        unconditional: the same, or None without guidance.
        sampling: options of the B pictures; `guidance` is fp32 [B, W], by rank of the window. A
            top-k above V is off. A temperature that is not above 0 makes a bad row of logits.
        warps: what any picture needs, as `Warps.of` says.
        drafts: int64 [B, W - 1], tokens of all ranks of the window but the last; None draws every
            rank, by Gumbel noise or by a uniform number as the coupling says.
        q: fp32 [B, W - 1, V], the laws the drafts were drawn from, None without drafts. Entries
            that are not above 0 count as 0.
        rank: int64 [B], first rank of every window.
        attempt: int64 [B], the picture's own count of passes.
        rule: what decides how many drafts are kept, with its tables.
        coupling: how the tail is redrawn, one of `COUPLINGS`.
        forced: int64 [B, W], token fixed at a rank, negative where the model chooses.
        numbers: fp32 [4, B, W] in (0, 1), used instead of `uniforms(seed, rank, attempt)`.

    Raises:
        ValueError: a wrong dtype, device or shape, or an unknown coupling.
    """
    given = (conditional, unconditional, sampling, drafts, q, rank, attempt)
    check_inputs(*given, coupling, forced, numbers)
    count = conditional.shape[1] - 1
    ranks = rank[:, None] + torch.arange(count + 1, device=rank.device)
    if numbers is None:
        numbers = uniforms(sampling.seed[:, None], ranks, attempt[:, None])
    p, flags = target_laws(conditional, unconditional, sampling, warps, forced)
    fresh = None
    if coupling == "gumbel":
        fresh = p.draw_frozen(gumbel_noise(sampling.seed, ranks, p.vocabulary))
    elif coupling == "independent" or drafts is None or count == 0:
        fresh = p.draw(numbers[_FRESH])
    if drafts is None or q is None or count == 0:
        assert fresh is not None
        run = torch.zeros_like(rank)
        return Verdict(run, fresh, p.probabilities, flags, numbers[_INITIAL].clone())

    drafts, flagged = _inspect(drafts, q, flags[:, :-1])
    refused = flagged != 0
    # A law without mass makes the residual p itself, which is what replaces a refused draft.
    law = CategoricalLaw(probabilities=q.where((q > 0) & ~refused[..., None], 0.0))
    accepted = rule.run(p.first(count), law, drafts, numbers[_ACCEPT, :, :-1])
    run = accepted.minimum(leading_run(~refused))
    used = Codes(p.vocabulary).numbers(numbers, sampling.seed, ranks, attempt)
    tokens, _ = redraw(rule, p, law, drafts, run, used, fresh, refused)
    if not rule.follows_coupling(p) or fresh is not None:
        # A rule may correct by the draft, and a refused draft may be no code at all.
        corrected = torch.arange(count, device=run.device) == run[:, None]
        drawn = p.first(count).draw(numbers[_RESIDUAL, :, :-1])
        kept = torch.where(corrected & refused, drawn, tokens[:, :-1])
        tokens = torch.cat([kept, tokens[:, -1:]], 1)
    flags = torch.cat([flagged, flags[:, -1:]], 1)
    return Verdict(run, tokens, p.probabilities, flags, numbers[_INITIAL].clone())


def target_laws(
    conditional: Tensor,
    unconditional: Tensor | None,
    sampling: Sampling,
    warps: Warps,
    forced: Tensor | None,
) -> tuple[CategoricalLaw, Tensor]:
    """The guided, warped laws and their flags int32 [B, W]. Arguments as of `verify`."""
    logits = conditional.float()
    if unconditional is not None:
        logits = guide(logits, unconditional.float(), sampling.guidance)
    temperature = sampling.temperature.where(sampling.temperature > 0, torch.nan)
    options = (temperature, sampling.top_k, sampling.top_p)
    logits = warp(logits, *options, Warps(temperature=warps.temperature))
    broken = ~(logits < torch.inf)  # also where NaN
    logits = logits.masked_fill(broken, -torch.inf)
    empty = (logits == -torch.inf).all(-1)
    bad = broken.any(-1) | empty
    logits = logits.masked_fill(empty[..., None], 0.0)
    logits = warp(logits, *options, warps._replace(temperature=False))
    flags = bad * BAD_LOGITS
    if forced is not None:
        fixed = (forced >= 0) & (forced < logits.shape[-1])
        codes = torch.arange(logits.shape[-1], device=logits.device)
        point = torch.where(codes == forced[..., None], 0.0, -torch.inf)
        logits = torch.where(fixed[..., None], point, logits)
        flags = torch.where(fixed, 0, flags + (forced >= logits.shape[-1]) * BAD_TOKEN)
    return CategoricalLaw(logits=logits), flags.to(torch.int32)


def _inspect(drafts: Tensor, q: Tensor, flags: Tensor) -> tuple[Tensor, Tensor]:
    """Drafts that may be used as an index, and the flags [B, W - 1] with those of the drafts."""
    inside = (drafts >= 0) & (drafts < q.shape[-1])
    drafts = drafts.where(inside, 0)
    drawn = q.gather(-1, drafts[..., None])[..., 0] > 0
    token = (~inside | ((flags & BAD_TOKEN) != 0)) * BAD_TOKEN
    law = (inside & ~drawn) * BAD_LAW
    return drafts, (flags & BAD_LOGITS) + (token + law).to(torch.int32)


def check_inputs(
    conditional: Tensor,
    unconditional: Tensor | None,
    sampling: Sampling,
    drafts: Tensor | None,
    q: Tensor | None,
    rank: Tensor,
    attempt: Tensor,
    coupling: str,
    forced: Tensor | None,
    numbers: Tensor | None,
) -> None:
    """Raises ValueError for what can be known to be wrong without reading a value on the host.

    Arguments as of `verify`.
    """
    if coupling not in COUPLINGS:
        raise ValueError(f"coupling must be one of {', '.join(COUPLINGS)}, got {coupling!r}")
    if conditional.dim() != 3 or conditional.dtype not in LOGIT_TYPES:
        raise ValueError(
            "conditional must be float32, float16 or bfloat16 [B, W, V], "
            f"got {_described(conditional)}"
        )
    batch, window, vocabulary = conditional.shape
    if batch < 1 or window < 1 or not 1 <= vocabulary <= MAX_VOCABULARY:
        raise ValueError(
            f"conditional must have B and W of at least 1 and V in [1, {MAX_VOCABULARY}], "
            f"got {_described(conditional)}"
        )
    if (drafts is None) != (q is None):
        raise ValueError(
            "drafts and q must be given together, "
            f"got {'only q' if drafts is None else 'only drafts'}"
        )
    single, whole = torch.float32, torch.int64
    expected: list[tuple[str, Tensor | None, torch.dtype, tuple[int, ...]]] = [
        ("unconditional", unconditional, conditional.dtype, (batch, window, vocabulary)),
        ("guidance", sampling.guidance, single, (batch, window)),
        ("temperature", sampling.temperature, single, (batch,)),
        ("top_k", sampling.top_k, whole, (batch,)),
        ("top_p", sampling.top_p, single, (batch,)),
        ("seed", sampling.seed, whole, (batch,)),
        ("drafts", drafts, whole, (batch, window - 1)),
        ("q", q, single, (batch, window - 1, vocabulary)),
        ("rank", rank, whole, (batch,)),
        ("attempt", attempt, whole, (batch,)),
        ("forced", forced, whole, (batch, window)),
        ("numbers", numbers, single, (4, batch, window)),
    ]
    for name, tensor, dtype, shape in expected:
        if tensor is None:
            continue
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name} must be {_name(dtype)} {list(shape)}, got {_described(tensor)}"
            )
        if tensor.device != conditional.device:
            raise ValueError(
                f"{name} must be on {conditional.device} like the logits, got {tensor.device}"
            )


def _described(tensor: Tensor) -> str:
    return f"{_name(tensor.dtype)} {list(tensor.shape)}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
