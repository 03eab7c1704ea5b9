"""Acceptance rules by name, and how a rule with its options is read.

A rule is written as one string, such as "exact" or "omega/omega=1.2/decay=0.1", so that it fits a
configuration, a command line and the recipe inside a picture. A new rule is a line in `RULES`.
"""

from __future__ import annotations

from typing import Any

from visual_ar.accel.rules.bit_by_bit import Bitwise
from visual_ar.accel.rules.block import Block
from visual_ar.accel.rules.exact import Exact
from visual_ar.accel.rules.gsd import Grouped
from visual_ar.accel.rules.hamming_gsd import HammingGrouped
from visual_ar.accel.rules.hamming_lantern import HammingLantern
from visual_ar.accel.rules.lantern import Lantern
from visual_ar.accel.rules.lantern_plus import LanternPlus
from visual_ar.accel.rules.omega import Omega
from visual_ar.accel.rules.rule import Rule, TableRule
from visual_ar.accel.rules.typical import Typical

RULES: dict[str, type[Rule]] = {
    "exact": Exact,
    "block": Block,
    "grouped": Grouped,
    "lantern": Lantern,
    "lantern++": LanternPlus,
    "omega": Omega,
    "typical": Typical,
    "bitwise": Bitwise,
    "hamming-grouped": HammingGrouped,
    "hamming-lantern": HammingLantern,
}
OF_TABLES = tuple(name for name, rule in RULES.items() if issubclass(rule, TableRule))
"""Rules that judge every draft by itself, from the probabilities of all codes."""


def parse_rule(text: str) -> Rule:
    """Builds a rule from its name and options, such as "grouped/size=24/gap=0.1".

    Raises:
        ValueError: unknown rule or option, or a value that is no number or out of its range.
    """
    name, *options = str(text).split("/")
    if name not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, got {name!r}")
    known = RULES[name].options()
    values: dict[str, Any] = {}
    for part in options:
        key, _, value = part.partition("=")
        if key not in known:
            names = ", ".join(known) or "none"
            raise ValueError(f"rule {name} has the options {names}, got {key!r}")
        values[key] = _number(value, known[key], f"{key} of rule {name}")
    return RULES[name](**values)


def _number(text: str, like: Any, what: str) -> int | float:
    kind = type(like)
    try:
        return kind(text)
    except ValueError as error:
        noun = "a whole number" if kind is int else "a number"
        raise ValueError(f"{what} must be {noun}, got {text!r}") from error
