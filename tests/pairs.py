"""Pairs of methods and cases: a few of each are always tested, the product of all takes long."""

from collections.abc import Collection

import pytest


def some_pairs(methods: Collection[str], cases: Collection[str], each: int = 2) -> list:
    """Every pair of names, for `parametrize(("method", "case"), ...)`.

    Args:
        methods: names.
        cases: names; neighbouring methods have others of them.
        each: cases of a method that are not marked long.
    """
    always = {turn * len(cases) // each for turn in range(each)}
    return [
        pytest.param(
            method,
            case,
            id=f"{method}-{case}",
            marks=() if (place - number) % len(cases) in always else pytest.mark.long,
        )
        for number, method in enumerate(methods)
        for place, case in enumerate(cases)
    ]
