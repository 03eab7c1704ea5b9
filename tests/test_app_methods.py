"""A page builds the methods that its controls show, and says what they do to the law."""

import pytest
import torch

from visual_ar.accel.exact_match import ExactMatchJacobiDecoding
from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.accel.sequential import SequentialDecoding
from visual_ar.app import methods
from visual_ar.app.controls import about_method


def test_controls_build_the_method_they_show():
    values = {
        "window": "16",
        "coupling": "gumbel",
        "init": " left ",
        "rule": "",
        "measure_tv": True,
    }
    method = methods.make("jacobi", values, SequentialDecoding())
    assert isinstance(method, SpeculativeJacobiDecoding)
    assert method.config.window == 16 and method.config.coupling == "gumbel"
    assert method.config.init == "left" and method.config.rule == "exact"
    assert method.config.measure_tv is True
    exact = methods.make("exact-match", values, SequentialDecoding())
    assert isinstance(exact, ExactMatchJacobiDecoding) and exact.config.window == 16


def test_an_option_left_empty_is_the_models_own():
    shipped = SpeculativeJacobiDecoding(window=8)
    assert methods.make("jacobi", {"window": ""}, shipped).config.window == 8


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        ("guess", {}, "method must be one of"),
        ("jacobi", {"window": "many"}, "window must be"),
        ("jacobi", {"rule": "omega/omega=much"}, "omega of rule omega must be a number"),
    ],
)
def test_what_a_method_refuses_is_refused(method, values, message):
    with pytest.raises(ValueError, match=message):
        methods.make(method, values, SequentialDecoding())


def test_a_verdict_says_whether_the_law_is_kept(tiny_pipeline):
    assert "lossless=True" in methods.verdict(SequentialDecoding(), tiny_pipeline)
    lossy = SpeculativeJacobiDecoding(rule="omega/omega=1.2")
    assert "lossless=False" in methods.verdict(lossy, tiny_pipeline)


@pytest.mark.parametrize(
    ("method", "what"),
    [
        ("hybrid", "needs a model with a draft model"),
        ("denoising", "the capability 'denoising'"),
        ("draft-head", "draft head"),
    ],
)
def test_a_method_that_the_model_cannot_have_is_told_before_it_is_asked_for(
    method, what, tiny_pipeline
):
    told = about_method(tiny_pipeline, method, {})
    assert "This does not fit: " in told and what in told
    assert "lossless=" not in told


def test_another_method_shares_the_weights_and_leaves_the_pipeline_alone(tiny_pipeline):
    other = methods.with_method(tiny_pipeline, ExactMatchJacobiDecoding(window=4))
    assert other.model is tiny_pipeline.model
    assert isinstance(tiny_pipeline.scheduler, SequentialDecoding)
    ours, theirs = (pipe(class_labels="dog", seeds=3).tokens for pipe in (other, tiny_pipeline))
    assert torch.equal(ours, theirs)
