"""The engine on a GPU: the same random numbers, laws and pictures. Skipped without one."""

import pytest
import torch

from visual_ar.accel.denoising import SpeculativeDenoisingDecoding
from visual_ar.accel.exact_match import ExactMatchJacobiDecoding
from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.accel.kernels import dispatch
from visual_ar.accel.sequential import SequentialDecoding
from visual_ar.accel.tree_decoding import TreeDecoding
from visual_ar.cast import Cast
from visual_ar.sampling import Sampling, gumbel_noise, normal_noise, uniforms
from visual_ar.testing import (
    ToyTokenModel,
    chi_square,
    decode_all,
    enumerate_law,
    sequence_index,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

METHODS = {
    "sequential": SequentialDecoding(),
    "exact-match": ExactMatchJacobiDecoding(window=3),
    **{c: SpeculativeJacobiDecoding(3, c) for c in ("independent", "maximal", "gumbel")},
    "above-law": SpeculativeJacobiDecoding(window=3, init="above-law"),
    "tree": TreeDecoding(window=3, tree="2x2", adapt="length"),
    "denoising": SpeculativeDenoisingDecoding(window=3, steps=3, clean=1),
}


def test_random_numbers_are_those_of_the_cpu():
    seed, ranks, attempt = torch.arange(4)[:, None], torch.arange(9), torch.tensor(5)
    on_gpu = uniforms(seed.cuda(), ranks.cuda(), attempt.cuda())
    assert torch.equal(on_gpu.cpu(), uniforms(seed, ranks, attempt))
    noise = gumbel_noise(seed[:, 0], ranks, 50)
    torch.testing.assert_close(gumbel_noise(seed[:, 0].cuda(), ranks.cuda(), 50).cpu(), noise)
    normal = normal_noise(seed[:, 0], ranks, 50)
    torch.testing.assert_close(normal_noise(seed[:, 0].cuda(), ranks.cuda(), 50).cpu(), normal)


@pytest.mark.parametrize("method", METHODS)
def test_the_law_is_exact_on_a_gpu(method):
    options, pictures = (1.7, 1.2, 2, 0.9), 24_000
    model = ToyTokenModel(vocab_size=3, grid=(7,), prefix_length=2)
    law = enumerate_law(model, 0, Sampling.create([0], *options))
    model.cuda()
    sampling = Sampling.create(list(range(pictures)), *options)
    condition = model.condition([0] * pictures, True)
    tokens, _ = decode_all(METHODS[method], Cast(model, model.layout((7,))), condition, sampling)
    assert chi_square(sequence_index(tokens, 3), law) > 1e-4


def test_exact_match_gives_the_sequential_picture_on_a_gpu():
    model = ToyTokenModel(vocab_size=4, grid=(4, 6), sharpness=3.0).cuda()
    layout, sampling = model.layout((4, 6)), Sampling.create(list(range(300)), 1.5)
    condition = model.condition([0] * 300, True)
    expected, _ = decode_all(SequentialDecoding(), Cast(model, layout), condition, sampling)
    method = ExactMatchJacobiDecoding(window=6)
    tokens, _ = decode_all(method, Cast(model, layout), condition, sampling)
    assert torch.equal(tokens, expected)


def toy(pictures, grid=(8, 6)):
    """A toy on the GPU whose attention grows over a bucket of slots, and what it draws."""
    model = ToyTokenModel(4, grid, seed=3).cuda()
    sampling = Sampling.create(list(range(pictures)), 1.6, 0.9)
    sampling.top_k[::2], sampling.top_p[1:] = 3, 0.9
    layout = model.layout(grid)
    layout.forced[7] = 2
    condition = model.condition([n % 2 for n in range(pictures)], True)
    return Cast(model, layout), condition, sampling


def by_one_launch_at_a_time(method, *given):
    method.capturable = False
    tokens, _ = decode_all(method, *given)
    del method.capturable
    return tokens


@pytest.mark.parametrize("backend", ["torch", "cuda"])
@pytest.mark.parametrize("method", METHODS)
def test_captured_passes_give_the_tokens_of_eager_ones(monkeypatch, method, backend):
    monkeypatch.setenv(dispatch.VARIABLE, backend)
    method, given = METHODS[method], toy(5)
    expected = by_one_launch_at_a_time(method, *given)
    for _ in range(2):  # the second call finds the graphs of the first
        tokens, _ = decode_all(method, *given)
        assert torch.equal(tokens, expected)
    state = method.kept[1]
    count = state.captured.count
    assert count == 2 and state.fused == (backend == "cuda")
    other = given[2]._replace(seed=given[2].seed + 90)
    tokens, _ = decode_all(method, *given[:2], other)
    assert torch.equal(tokens, by_one_launch_at_a_time(method, *given[:2], other))
    assert method.kept[1] is state and state.captured.count == count


@pytest.mark.parametrize("method", METHODS)
def test_a_captured_pass_waits_for_nothing(method):
    method, (cast, condition, sampling) = METHODS[method], toy(3)
    state = method.init(cast, 3, True, 3)
    method.admit(state, torch.arange(3, device="cuda"), condition, sampling)
    for _ in range(3):
        method.advance(state)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            method.advance(state)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_pictures_may_be_admitted_between_captured_passes():
    method, (cast, condition, sampling) = METHODS["maximal"], toy(2)
    expected = by_one_launch_at_a_time(method, cast, condition, sampling)
    state = method.init(cast, 2, True, 3)
    for index in range(2):
        one = torch.tensor([index], device="cuda")
        rows = torch.tensor([index, 2 + index])
        part = type(condition)(condition.prefix[rows], condition.mask[rows])
        options = Sampling(*(option[index : index + 1] for option in sampling))
        method.admit(state, one, part, options)
        for _ in range(5):
            method.advance(state)
    while state.open_length.read() >= 0:
        step = method.advance(state)
    assert torch.equal(step.tokens, expected)
