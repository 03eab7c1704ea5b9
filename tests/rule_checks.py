"""What every acceptance rule is held to; `test_from_outside` runs it over a rule of its own."""

import pytest
import torch
from exactness import ALARM
from method_checks import BITS, CODES, PICTURES, cast_of

from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.accel.rules.parse import parse_rule
from visual_ar.sampling import Sampling
from visual_ar.testing import chi_square, enumerate_law, sequence_index


def check_text(name):
    """A rule is read from its name and from all its options, and refuses other ones."""
    rule = parse_rule(name)
    assert rule.name == name
    options = "/".join(f"{key}={value}" for key, value in rule.options().items())
    assert parse_rule(f"{name}/{options}" if options else name) == rule
    with pytest.raises(ValueError, match="nonesuch"):
        parse_rule(f"{name}/nonesuch=1")


def check_drawing(name):
    """Toys it can judge have the enumerated law, or what it spends is told; others are refused."""
    served = 0
    for kind in (CODES, BITS):
        cast = cast_of(kind)
        try:
            parse_rule(name).check(cast.model.tokens, None)
        except ValueError as refusal:
            assert "\n" not in str(refusal)
            continue
        served += 1
        method = SpeculativeJacobiDecoding(window=2, coupling="independent", rule=name)
        condition = cast.model.condition([1] * PICTURES, True)
        sampling = Sampling.create(list(range(PICTURES)), guidance=2.0)
        steps = list(method.decode(cast, condition, sampling))
        if not method.lossless:
            spent = torch.stack([step.spent for step in steps])
            assert bool((spent >= 0).all()) and bool(spent.isfinite().all())
            continue
        law = enumerate_law(cast.model, 1, Sampling.create([0], guidance=2.0))
        drawn = sequence_index(steps[-1].tokens, cast.model.vocab_size)
        assert chi_square(drawn, law) > ALARM
    assert served or parse_rule(name).codes_dtype is not None
