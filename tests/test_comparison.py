"""Races give each method its own time, and say truly whether and why pictures are identical."""

import dataclasses

import pytest
import torch

from visual_ar.accel.exact_match import ExactMatchJacobiDecoding
from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.accel.sequential import SequentialDecoding
from visual_ar.app import comparison
from visual_ar.app.settings import settings
from visual_ar.tokens.bits import Bits

DRAWN = settings("dog", 1, "3", 2.0, "constant", 1.0, 0, 1.0)


def run(pipe, first, second):
    """Both lanes after the race, and the number of previews."""
    field = comparison.lanes(pipe, {"one": first, "two": second}, DRAWN)
    previews = sum(1 for _ in comparison.race(field, every=0))
    return field, previews


def test_both_pictures_are_those_that_calls_draw(tiny_pipeline):
    field, previews = run(tiny_pipeline, SequentialDecoding(), SpeculativeJacobiDecoding(window=4))
    assert previews > 2
    for lane in field:
        tiny_pipeline.scheduler = lane.method
        assert torch.equal(lane.latest.tokens, tiny_pipeline(**DRAWN.call(tiny_pipeline)).tokens)


def test_whoever_used_less_time_goes_next():
    class Pass:
        def __init__(self, seconds):
            self.seconds = {"decode": seconds, "detokenise": 99.0, "window": 99.0}

    order = []

    def passes(name, cost, count):
        for index in range(count):
            order.append(name)
            yield Pass(cost * (index + 1))

    lanes = [
        comparison.Lane("slow", SequentialDecoding(), passes("slow", 3.0, 2)),
        comparison.Lane("fast", SequentialDecoding(), passes("fast", 1.0, 4)),
    ]
    assert sum(1 for _ in comparison.race(lanes, every=100, clock=lambda: 0.0)) == 2
    assert order == ["slow", "fast", "fast", "fast", "slow", "fast"]
    assert [lane.seconds for lane in lanes] == [6.0, 4.0]
    assert comparison.faster(*lanes) == "fast was 1.50 times as fast as slow."


def test_exact_match_gives_the_sequential_picture_and_says_why(tiny_pipeline):
    field, _ = run(tiny_pipeline, SequentialDecoding(), ExactMatchJacobiDecoding(window=4))
    assert comparison.conclusion(*field).startswith("Identical: both give every token the noise")


def test_two_lossless_methods_are_two_draws_from_one_law(tiny_pipeline):
    field, _ = run(tiny_pipeline, SequentialDecoding(), SpeculativeJacobiDecoding(window=4))
    told = comparison.conclusion(*field)
    assert told.startswith("Different in ") and "two draws from one law" in told
    rows = {row[0]: row[1:] for row in comparison.table(*field)}
    assert rows["passes"][0] == "16" and int(rows["passes"][1]) < 16
    assert rows["lossless"] == ["True", "True"]
    assert rows["total variation a token"] == ["0", "0"]


def test_a_lossy_rule_is_named_and_spends(tiny_pipeline):
    lossy = SpeculativeJacobiDecoding(window=4, rule="omega/omega=2.0")
    field, _ = run(tiny_pipeline, SequentialDecoding(), lossy)
    assert "two does not follow the model's law" in comparison.conclusion(*field)
    rows = {row[0]: row[1:] for row in comparison.table(*field)}
    assert rows["lossless"] == ["True", "False"]
    assert float(rows["total variation a token"][1]) > 0


def test_rounding_is_named_where_the_noise_is_shared(tiny_pipeline):
    field, _ = run(tiny_pipeline, SequentialDecoding(), ExactMatchJacobiDecoding(window=4))
    latest = field[1].latest
    tokens = latest.result.tokens.clone()
    tokens[0, 7] += 1
    field[1].latest = dataclasses.replace(latest, result=latest.result._replace(tokens=tokens))
    told = comparison.conclusion(*field)
    assert told.startswith("Different in 1 of 16 tokens: both read the same noise")
    for lane in field:  # the same tokens as bits, of which the lowest one or more differ
        result = lane.latest.result
        bits = (result.tokens[..., None] >> torch.arange(5)) & 1
        lane.latest = dataclasses.replace(
            lane.latest,
            run=dataclasses.replace(lane.latest.run, kind=Bits(5)),
            result=result._replace(tokens=bits.bool()),
        )
    assert comparison.conclusion(*field) == told


def test_what_the_pipeline_refuses_is_refused_before_the_race(tiny_pipeline):
    with pytest.raises(ValueError, match="class_labels must be"):
        wrong = settings("zebra", 1, "3", 2.0, "constant", 1.0, 0, 1.0)
        comparison.lanes(tiny_pipeline, {"one": SequentialDecoding()}, wrong)
