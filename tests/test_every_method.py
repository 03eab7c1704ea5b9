"""Every registered method: built from text, refusing what it cannot serve, seeds, batches, law."""

import pytest
from method_checks import (
    BITS,
    CODES,
    GROUPS,
    SMALL,
    SUBCODES,
    check_law,
    check_pictures,
    check_refusal,
    small,
)

from visual_ar import accel
from visual_ar.method_options import parse_method

KINDS = (CODES, BITS, SUBCODES, GROUPS)


@pytest.mark.parametrize("name", accel.METHODS)
def test_it_is_built_from_text(name):
    row = small(name)
    assert row.serves, "a method that draws nothing is no method"
    assert isinstance(parse_method(row.text), accel.Decoding)
    with pytest.raises(ValueError, match="nonesuch"):
        parse_method(f"{name}:nonesuch=1")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", accel.METHODS)
def test_it_draws_or_refuses_every_kind_of_token(name, kind):
    row = small(name)
    if kind in row.serves:
        check_pictures(row, kind)
        check_law(row, kind)
    else:
        check_refusal(row, kind)


def test_no_row_is_left_of_a_method_that_is_gone():
    assert SMALL.keys() <= accel.METHODS.keys()
