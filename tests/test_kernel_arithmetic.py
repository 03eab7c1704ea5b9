"""Single functions of the verification kernel, in its host build: numbers, guidance, logarithms."""

import ctypes
from itertools import product

import pytest
import torch
from host_kernel import SCALES, library

from visual_ar.sampling import guide, philox


def test_random_numbers_are_those_of_the_library():
    draw = torch.Generator().manual_seed(0)
    for _ in range(50):
        words = torch.randint(0, 2**32, (4,), generator=draw)
        seed = torch.randint(-(2**63), 2**63 - 1, (), generator=draw)
        ours = (ctypes.c_uint32 * 4)(*words.tolist())
        library().philox_on_host(ours, ctypes.c_uint64(int(seed) % 2**64))
        assert list(ours) == philox(tuple(words.unbind()), seed).tolist()


def test_the_exponential():
    x = -torch.logspace(-8, 2, 4000, dtype=torch.float64).float()
    ours = [library().exponential_on_host(ctypes.c_float(value)) for value in x.tolist()]
    wanted = x.double().exp()
    error = (torch.tensor(ours, dtype=torch.float64) - wanted).abs() / wanted
    assert float(error[x > -87].max()) < 2.0**-22
    assert not any(value for value, at in zip(ours, x.tolist(), strict=True) if at <= -87)
    assert library().exponential_on_host(ctypes.c_float(0.0)) == 1.0


def test_the_logarithm():
    x = torch.cat(
        [torch.logspace(-44, 38, 3000, dtype=torch.float64), torch.linspace(0.5, 2, 3001)]
    )
    x = x.float()[x > 2e-45]
    ours = torch.tensor([library().logarithm_on_host(ctypes.c_float(v)) for v in x.tolist()])
    wanted = x.double().log()
    error = (ours.double() - wanted).abs()
    assert bool((error <= 2.0**-22 * wanted.abs().clamp(min=2.0**-24)).all())


def test_the_time_of_a_race():
    u = torch.cat([torch.logspace(-9.9, -0.001, 2000), 1 - torch.logspace(-7.2, -1, 500)]).float()
    ours = [library().race_time_on_host(ctypes.c_float(value)) for value in u.tolist()]
    wanted = -torch.log1p(-u.double())
    torch.testing.assert_close(torch.tensor(ours).double(), wanted, rtol=2.0**-21, atol=0)


@pytest.mark.parametrize("scale", [*SCALES, 0.25, 0.5, 1.5, -0.25])
def test_guidance_is_that_of_the_library(scale):
    """Of finite numbers, none of which rounds, and of all that is certain or broken."""
    inf, nan = torch.inf, torch.nan
    pairs = torch.tensor([*product((-inf, -2.5, -0.0, 1.25, 64.0, inf, nan), repeat=2)])
    wanted = guide(pairs[None, :, :1], pairs[None, :, 1:], torch.tensor(scale))[0, :, 0]
    ours = [
        library().guide_on_host(*map(ctypes.c_float, (*pair, scale))) for pair in pairs.tolist()
    ]
    torch.testing.assert_close(torch.tensor(ours), wanted, rtol=0, atol=0, equal_nan=True)
