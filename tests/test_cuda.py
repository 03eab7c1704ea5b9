"""The engine on a GPU: the same random numbers, laws and pictures. Skipped without one."""

import pytest
import torch

from visual_ar.accel.denoising import SpeculativeDenoisingDecoding
from visual_ar.accel.exact_match import ExactMatchJacobiDecoding
from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.accel.sequential import SequentialDecoding
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
    tokens, _ = decode_all(METHODS[method], model, model.layout((7,)), condition, sampling)
    assert chi_square(sequence_index(tokens, 3), law) > 1e-4


def test_exact_match_gives_the_sequential_picture_on_a_gpu():
    model = ToyTokenModel(vocab_size=4, grid=(4, 6), sharpness=3.0).cuda()
    layout, sampling = model.layout((4, 6)), Sampling.create(list(range(300)), 1.5)
    condition = model.condition([0] * 300, True)
    expected, _ = decode_all(SequentialDecoding(), model, layout, condition, sampling)
    method = ExactMatchJacobiDecoding(window=6)
    tokens, _ = decode_all(method, model, layout, condition, sampling)
    assert torch.equal(tokens, expected)
