"""Chooses who verifies a window, the CUDA kernel or the torch reference, behind one torch operator.

The environment variable VISUAL_AR_KERNELS forces "torch" or "cuda"; otherwise the kernel serves
GPUs, and the reference serves everything else. Knows nothing about decoding methods.
"""

# No postponed annotations: the operator's schema is read from them.

import functools
import os
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from visual_ar.accel.kernels import reference
from visual_ar.accel.kernels.reference import Verdict
from visual_ar.accel.kernels.specialise import bound_rule, for_kernel
from visual_ar.sampling import Sampling, Warps

VARIABLE = "VISUAL_AR_KERNELS"
CHOICES = ("auto", "torch", "cuda")


class Choice(NamedTuple):
    """Who verifies on a device.

    Attributes:
        backend: "torch" or "cuda".
        reason: one sentence.
    """

    backend: str
    reason: str


def choose(device: torch.device) -> Choice:
    """Who verifies on a device. Compiles the kernel if it is the one and was never compiled.

    Raises:
        ValueError: the variable has an unknown value.
        RuntimeError: the variable asks for the kernel where it cannot run.
    """
    forced = os.environ.get(VARIABLE, "auto")
    if forced not in CHOICES:
        raise ValueError(f"{VARIABLE} must be one of {', '.join(CHOICES)}, got {forced!r}")
    if forced == "torch":
        return Choice("torch", f"{VARIABLE} asks for it")
    problem = _problem(device)
    if problem is None:
        return Choice("cuda", "the kernel is compiled for this GPU")
    if forced == "cuda":
        raise RuntimeError(f"{VARIABLE} asks for the CUDA kernel on {device}, but {problem}")
    if device.type == "cuda":
        _warn(problem)
    return Choice("torch", problem)


def _problem(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"the kernel needs a CUDA GPU, this is {device.type}"
    if torch.version.hip:
        return "the kernel is not ported to ROCm"
    return _load_problem(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _load_problem(index: int) -> str | None:
    from visual_ar.accel.kernels import device

    try:
        device.load(index)
    except (ImportError, OSError, RuntimeError) as error:
        return f"the kernel cannot be loaded: {error}"
    return None


@functools.cache
def _warn(problem: str) -> None:
    warnings.warn(f"verifying in plain torch, which is slower: {problem}", stacklevel=3)


def verify(
    conditional: Tensor,
    unconditional: Tensor | None,
    sampling: Sampling,
    warps: Warps,
    drafts: Tensor | None,
    q: Tensor | None,
    rank: Tensor,
    attempt: Tensor,
    rule: str = "exact",
    coupling: str = "maximal",
    forced: Tensor | None = None,
    numbers: Tensor | None = None,
    codes: Tensor | None = None,
) -> Verdict:
    """`reference.verify` by whoever serves the device, as one operator that a graph can hold.

    Args:
        conditional: as for `reference.verify`, and so are all others but one.
        unconditional: [B, W, V] or None.
        sampling: options of the B pictures, `guidance` [B, W].
        warps: what any picture needs.
        drafts: int64 [B, W - 1] or None.
        q: fp32 [B, W - 1, V] or None.
        rank: int64 [B].
        attempt: int64 [B].
        rule: one that the kernel has, written as for `parse_rule`.
        coupling: "independent", "maximal" or "gumbel".
        forced: int64 [B, W] or None.
        numbers: fp32 [4, B, W] in (0, 1) or None.
        codes: [V, k], for the rules that compare codes: int64 nearest codes, each in [0, V), or
            fp32 code vectors; None for the others.

    Raises:
        ValueError: a rule the kernel does not have, a wrong table for it, or what
            `reference.verify` refuses.
        RuntimeError: the kernel is asked for where it cannot run.
    """
    return Verdict(
        *torch.ops.visual_ar.verify(
            conditional,
            unconditional,
            *sampling,
            drafts,
            q,
            rank,
            attempt,
            forced,
            numbers,
            codes,
            rule,
            coupling,
            warps.temperature,
            list(warps.top_k),
            warps.top_p,
        )
    )


@torch.library.custom_op("visual_ar::verify", mutates_args=())
def _verify(
    conditional: Tensor,
    unconditional: Tensor | None,
    guidance: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seed: Tensor,
    drafts: Tensor | None,
    q: Tensor | None,
    rank: Tensor,
    attempt: Tensor,
    forced: Tensor | None,
    numbers: Tensor | None,
    codes: Tensor | None,
    rule: str,
    coupling: str,
    warp_temperature: bool,
    warp_top_k: list[int],
    warp_top_p: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    sampling = Sampling(guidance, temperature, top_k, top_p, seed)
    tensors = (conditional, unconditional, sampling, drafts, q, rank, attempt)
    reference.check_inputs(*tensors, coupling, forced, numbers)
    bound = bound_rule(rule, codes, conditional.shape[-1], conditional.device)
    if choose(conditional.device).backend == "cuda":
        from visual_ar.accel.kernels import device

        return device.verify(*tensors, for_kernel(bound), coupling, forced, numbers)
    return reference.verify(
        conditional,
        unconditional,
        sampling,
        Warps(warp_temperature, tuple(warp_top_k), warp_top_p),
        drafts,
        q,
        rank,
        attempt,
        bound,
        coupling,
        forced,
        numbers,
    )


@_verify.register_fake
def _(
    conditional: Tensor,
    unconditional: Tensor | None,
    guidance: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seed: Tensor,
    drafts: Tensor | None,
    q: Tensor | None,
    rank: Tensor,
    attempt: Tensor,
    forced: Tensor | None,
    numbers: Tensor | None,
    codes: Tensor | None,
    rule: str,
    coupling: str,
    warp_temperature: bool,
    warp_top_k: list[int],
    warp_top_p: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    sampling = Sampling(guidance, temperature, top_k, top_p, seed)
    tensors = (conditional, unconditional, sampling, drafts, q, rank, attempt)
    reference.check_inputs(*tensors, coupling, forced, numbers)
    bound_rule(rule, codes, conditional.shape[-1], conditional.device)
    batch, window, vocabulary = conditional.shape
    return (
        conditional.new_empty(batch, dtype=torch.int64),
        conditional.new_empty((batch, window), dtype=torch.int64),
        conditional.new_empty((batch, window, vocabulary), dtype=torch.float32),
        conditional.new_empty((batch, window), dtype=torch.int32),
        conditional.new_empty((batch, window), dtype=torch.float32),
    )
