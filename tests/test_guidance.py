"""Guidance schedules give the scale of every rank."""

import pytest
import torch

from visual_ar.guidance import guidance_by_rank


def test_constant_is_the_scale_everywhere():
    assert guidance_by_rank(3, "constant", 4).tolist() == [3, 3, 3, 3]


def test_linear_reaches_the_scale_at_the_last_rank():
    assert torch.allclose(guidance_by_rank(3.0, "linear", 4), torch.tensor([1.5, 2.0, 2.5, 3.0]))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("interval:0.25:0.75", [1, 3, 3, 1]),
        ("interval:0:1", [3, 3, 3, 3]),
        ("interval:0:0.5", [3, 3, 1, 1]),
    ],
)
def test_an_interval_guides_part_of_the_ranks(schedule, expected):
    assert guidance_by_rank(3.0, schedule, 4).tolist() == expected


@pytest.mark.parametrize(
    "schedule",
    [
        "cosine",
        "",
        None,
        "ramp:0:1",
        "interval",
        "interval:0.5",
        "interval:a:b",
        "interval:0:nan",
        "interval:0:2",
        "interval:-1:1",
        "interval:0.5:0.5",
    ],
)
def test_other_schedules_are_refused(schedule):
    with pytest.raises(ValueError, match=r"guidance_schedule must be constant, linear or interval"):
        guidance_by_rank(3.0, schedule, 4)
