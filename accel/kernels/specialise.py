"""Which acceptance rules the kernel has, and how it is told their options; knows no device.

A structure of `rules.cuh` bears each rule's name; the kernel is compiled for one of them.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor

from visual_ar.accel.rules.bit_rules import BitRule
from visual_ar.accel.rules.parse import (
    Exact,
    Grouped,
    Lantern,
    LanternPlus,
    Omega,
    Rule,
    Typical,
    parse_rule,
)

KERNEL_RULES: dict[type[Rule], str] = {  # class -> structure in rules.cuh
    Exact: "Exact",
    Omega: "Omega",
    Typical: "Typical",
    Lantern: "Lantern",
    LanternPlus: "Lantern",
    Grouped: "Grouped",
}


class KernelRule(NamedTuple):
    """A rule as the kernel takes it.

    Attributes:
        structure: of `rules.cuh`, what the kernel is compiled for.
        options: two numbers, whose meaning the structure says.
        size: codes of a cluster besides the draft.
        codes: [V, k], int64 nearest codes or fp32 code vectors; None for most rules.
    """

    structure: str
    options: tuple[float, float] = (0.0, 0.0)
    size: int = 0
    codes: Tensor | None = None


def covers(rule: Rule | BitRule) -> TypeGuard[Rule]:
    """Whether the kernel has a rule."""
    return type(rule) in KERNEL_RULES


def codes_of(rule: Rule) -> Tensor | None:
    """The table that a rule compares codes by, [V, k]; None when it compares none."""
    if isinstance(rule, Grouped):
        return None if rule.vectors is None else rule.vectors.float()
    return rule.table if isinstance(rule, Lantern) else None


def bound_rule(text: str, codes: Tensor | None, vocabulary: int, device: torch.device) -> Rule:
    """The rule of a text with its table, checked as far as shapes go.

    Args:
        text: as for `rules.parse_rule`.
        codes: [V, k], int64 nearest codes for LANTERN, fp32 code vectors for grouped rules.
        vocabulary: V.
        device: of the logits.

    Raises:
        ValueError: a rule that the kernel does not have, or a wrong table.
    """
    rule = parse_rule(text)
    if not covers(rule):
        names = ", ".join(sorted({structure.lower() for structure in KERNEL_RULES.values()}))
        raise ValueError(f"rule must be {names} to be verified by a kernel, got {text!r}")
    if not rule.compares_codes:
        if codes is not None:
            raise ValueError(f"codes must be left out with rule {text}, got {_described(codes)}")
        return rule
    name = "vectors" if isinstance(rule, Grouped) else "table"
    dtype = torch.float32 if name == "vectors" else torch.int64
    if codes is None:
        raise ValueError(f"codes must be given with rule {text}, got None")
    good = codes.dim() == 2 and codes.shape[0] == vocabulary and codes.shape[1] > 0
    if not good or codes.dtype != dtype or codes.device != device:
        raise ValueError(
            f"codes must be {str(dtype).removeprefix('torch.')} [{vocabulary}, k] on {device} "
            f"with rule {text}, got {_described(codes)}"
        )
    return dataclasses.replace(rule, **{name: codes})


def for_kernel(rule: Rule) -> KernelRule:
    """A bound rule as the kernel takes it."""
    structure, codes = KERNEL_RULES[type(rule)], codes_of(rule)
    if isinstance(rule, Omega):
        return KernelRule(structure, (rule.omega, rule.decay))
    if isinstance(rule, Typical):
        return KernelRule(structure, (rule.epsilon, rule.alpha))
    if isinstance(rule, LanternPlus):
        return KernelRule(structure, (0.0, rule.factor - 1), codes=codes)
    if isinstance(rule, Lantern):
        return KernelRule(structure, (rule.delta, 0.0), codes=codes)
    if isinstance(rule, Grouped):
        return KernelRule(structure, (rule.distance, rule.gap), rule.size, codes)
    return KernelRule(structure)


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} on {tensor.device}"
