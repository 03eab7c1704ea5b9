"""Which acceptance rules the kernel has, and the tables it is given for them; knows no device.

A rule names its structure of `rules.cuh` itself; the kernel is compiled for one of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visual_ar.accel.rules.parse import RULES, parse_rule
from visual_ar.accel.rules.rule import KernelForm, Rule


def bound_rule(text: str, codes: Tensor | None, vocabulary: int, device: torch.device) -> Rule:
    """The rule of a text with its table, checked as far as shapes go.

    Args:
        text: as for `parse_rule`.
        codes: [V, k], int64 nearest codes for LANTERN, fp32 code vectors for grouped rules.
        vocabulary: V.
        device: of the logits.

    Raises:
        ValueError: a rule that the kernel does not have, or a wrong table.
    """
    rule = parse_rule(text)
    if rule.structure is None:
        names = ", ".join(name for name, kind in RULES.items() if kind.structure is not None)
        raise ValueError(f"rule must be {names} to be verified by a kernel, got {text!r}")
    if rule.codes_dtype is None:
        if codes is not None:
            raise ValueError(f"codes must be left out with rule {text}, got {_described(codes)}")
        return rule
    if codes is None:
        raise ValueError(f"codes must be given with rule {text}, got None")
    good = codes.dim() == 2 and codes.shape[0] == vocabulary and codes.shape[1] > 0
    if not good or codes.dtype != rule.codes_dtype or codes.device != device:
        raise ValueError(
            f"codes must be {str(rule.codes_dtype).removeprefix('torch.')} [{vocabulary}, k] on "
            f"{device} with rule {text}, got {_described(codes)}"
        )
    return rule.with_codes(codes)


def for_kernel(rule: Rule) -> KernelForm:
    """A bound rule as the kernel takes it. Raises ValueError where the kernel does not have it."""
    form = rule.kernel_form()
    if form is None:
        raise ValueError(f"rule {rule.name} has no form for the kernel")
    return form


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} on {tensor.device}"
