"""What a bench measures beside speed: entropy of the laws, time outside the model."""

import math

import pytest
import torch
from bench_workloads import OPTIONS, CountingToy, make_transformer_workload, make_workload

from visual_ar.accel.sequential import SequentialDecoding
from visual_ar.cast import Cast
from visual_ar.evaluation import probes
from visual_ar.evaluation.workload import Workload
from visual_ar.sampling import Sampling
from visual_ar.testing import ToyTokenModel, decode_all, enumerate_law


@pytest.fixture
def workload():
    CountingToy.passes = 0
    return make_workload()


def test_the_share_outside_the_model_is_of_the_passes_after_the_first(workload):
    """Every reading of this clock is a second later: a pass holds 4 readings, 2 of them inside."""
    readings = iter(range(10_000))
    share = probes.outside_model_share(
        SequentialDecoding(), 1, workload, [0], [5], lambda: float(next(readings))
    )
    passes = 11
    assert share == pytest.approx(1 - 2 * passes / (4 * passes + 1))
    assert "forward" not in vars(workload.cast.model)  # the model is itself again


def test_entropy_is_that_of_the_laws_along_the_drawn_sequence():
    """Conditional laws by hand, from the enumerated law of whole sequences."""
    toy = ToyTokenModel(vocab_size=3, grid=(4,), prefix_length=2)
    sampling = Sampling.create([7], **OPTIONS)
    condition = toy.condition([1], guided=True)
    job = Workload(
        cast=Cast(toy, toy.layout((4,))),
        condition=lambda numbers: condition,
        sampling=lambda seeds: sampling,
        detokenise=lambda tokens: tokens,
    )
    tokens, _ = decode_all(SequentialDecoding(), job.cast, condition, sampling)
    law = enumerate_law(toy, 1, sampling).reshape(3, 3, 3, 3)
    expected = []
    for rank in range(4):
        weights = law[tuple(tokens[0, :rank].tolist())].reshape(3, -1).sum(1)
        p = weights / weights.sum()
        expected.append(float(torch.special.entr(p).sum() / math.log(2)))
    assert sum(expected) > 0.5
    measured = probes.law_entropy(job, [0], [7], tokens)
    assert measured[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_entropy_of_a_transformer_is_that_of_its_full_causal_pass():
    llamagen = make_transformer_workload()
    numbers, seeds = [0, 1], [3, 4]
    tokens = torch.randint(24, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        condition = llamagen.condition(numbers)
        logits = llamagen.cast.model.logits(tokens.repeat(2, 1), condition)
        given, nothing = logits.chunk(2)
        guided = (nothing + OPTIONS["guidance"] * (given - nothing)) / OPTIONS["temperature"]
        kept = guided.masked_fill(guided < guided.topk(8).values[..., -1:], -torch.inf)
        ordered, _ = kept.softmax(-1).sort(descending=True)
        inside = ordered.cumsum(-1) - ordered < OPTIONS["top_p"]
        p = (ordered * inside) / (ordered * inside).sum(-1, keepdim=True)
    expected = torch.special.entr(p).sum(-1) / math.log(2)
    measured = probes.law_entropy(llamagen, numbers, seeds, tokens)
    assert torch.allclose(measured, expected, atol=1e-4)
    assert 0.5 < float(measured.mean()) < 3
