"""Random numbers, guidance, warping and laws against known answers and brute force."""

import itertools

import pytest
import torch

from visual_ar.sampling import (
    Sampling,
    Warps,
    _kth_largest,
    guide,
    gumbel_noise,
    philox,
    uniforms,
    warp,
)
from visual_ar.testing import chi_square
from visual_ar.tokens.codes import CategoricalLaw, point_mass


def words(value: int) -> torch.Tensor:
    return torch.full((), value, dtype=torch.int64)


def test_philox_gives_the_published_answers():
    """Known-answer vectors of Random123, philox4x32-10."""
    zero, ones = words(0), words(0xFFFFFFFF)
    assert [int(w) for w in philox((zero,) * 4, zero)] == [
        0x6627E8D5,
        0xE169C58D,
        0xBC57AC4C,
        0x9B00DBD8,
    ]
    assert [int(w) for w in philox((ones,) * 4, words(-1))] == [
        0x408F276D,
        0x41C83B0E,
        0xA20BC7C6,
        0x6D5451FD,
    ]
    digits = (words(0x243F6A88), words(0x85A308D3), words(0x13198A2E), words(0x03707344))
    key = words(0x299F31D0 << 32 | 0xA4093822)
    assert [int(w) for w in philox(digits, key)] == [
        0xD16CFE09,
        0x94FDCCEB,
        0x5001E420,
        0x24126EA1,
    ]


def test_uniforms_are_uniform_and_change_with_every_key():
    seed, ranks, attempt = (
        torch.arange(20)[:, None, None],
        torch.arange(25)[:, None],
        torch.arange(40),
    )
    u = uniforms(seed, ranks, attempt)
    assert u.shape == (4, 20, 25, 40)
    assert float(u.min()) > 0 and float(u.max()) < 1
    assert chi_square((u.flatten() * 64).long(), torch.ones(64)) > 1e-4
    assert u.flatten().unique().numel() > 0.99 * u.numel()
    pairs = (u[0] * 8).long() * 8 + (u[1] * 8).long()
    assert chi_square(pairs.flatten(), torch.ones(64)) > 1e-4


def test_gumbel_noise_belongs_to_seed_and_rank():
    seeds = torch.tensor([5, 6])
    noise = gumbel_noise(seeds, torch.arange(30), 10)
    alone = gumbel_noise(seeds[1:], torch.arange(20, 30), 10)
    assert torch.equal(noise[1:, 20:], alone)
    assert not torch.equal(noise[0], noise[1])
    law = torch.tensor([0.5, 0.2, 0.2, 0.1])
    many = gumbel_noise(torch.arange(400), torch.arange(100), 4)
    assert chi_square((law.log() + many).argmax(-1).flatten(), law) > 1e-4


def test_guidance_formula():
    c, u = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[0.0, 4.0]]])
    assert guide(c, u, torch.tensor([[3.0]])).tolist() == [[[3.0, -2.0]]]
    assert guide(c, u, torch.tensor([[1.0]])).tolist() == c.tolist()


def brute_warp(logits, temperature, top_k, top_p):
    scaled = [x / temperature for x in logits]
    order = sorted(range(len(scaled)), key=lambda i: -scaled[i])
    kept = set(order[:top_k] if top_k else order)
    weights = {i: float(torch.tensor(scaled[i]).exp()) for i in kept}
    total, mass, nucleus = sum(weights.values()), 0.0, set()
    for i in order:
        if i in kept and mass < top_p:
            nucleus.add(i)
            mass += weights[i] / total
    return nucleus


@pytest.mark.parametrize(
    "temperature,top_k,top_p",
    list(itertools.product([1.0, 0.7, 1.6], [0, 1, 3, 50], [1.0, 0.9, 0.4, 1e-6])),
)
def test_warp_keeps_what_brute_force_keeps(temperature, top_k, top_p):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 3, 8, generator=generator) * 2
    options = Sampling.create([0, 1], 1.0, temperature, top_k, top_p)
    warped = warp(logits, options.temperature, options.top_k, options.top_p, Warps.of(options))
    for b, q in itertools.product(range(2), range(3)):
        kept = {i for i in range(8) if warped[b, q, i] > -torch.inf}
        assert kept == brute_warp(logits[b, q].tolist(), temperature, top_k, top_p)
        index = sorted(kept)
        torch.testing.assert_close(warped[b, q, index], logits[b, q, index] / temperature)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 2, 7, 12])
def test_the_threshold_of_top_k_is_the_kth_largest_of_every_law(dtype, k):
    logits = torch.randn(3, 2, 12, dtype=dtype, generator=torch.Generator().manual_seed(k))
    logits[0, :, 3:8] = logits[0, :, :1]  # ties
    logits[1, :, 5:] = -torch.inf
    before = logits.clone()
    expected = logits.sort(descending=True).values[..., k - 1 : k]
    assert torch.equal(_kth_largest(logits.requires_grad_(), k), expected)
    assert torch.equal(logits, before)


def test_warp_options_differ_within_a_batch():
    logits = torch.randn(4, 2, 9, generator=torch.Generator().manual_seed(1))
    options = Sampling(
        guidance=torch.ones(4),
        temperature=torch.tensor([1.0, 0.5, 1.0, 2.0]),
        top_k=torch.tensor([0, 3, 20, 2]),
        top_p=torch.tensor([1.0, 1.0, 0.5, 0.9]),
        seed=torch.arange(4),
    )
    together = warp(logits, options.temperature, options.top_k, options.top_p, Warps.of(options))
    for b in range(4):
        one = Sampling(*(field[b : b + 1] for field in options))
        alone = warp(logits[b : b + 1], one.temperature, one.top_k, one.top_p, Warps.of(one))
        torch.testing.assert_close(together[b : b + 1], alone)


def test_a_draw_never_has_probability_zero():
    p = torch.tensor([[[0.0, 0.3, 0.0, 0.7, 0.0]]])
    for u in (1e-30, 0.29999, 0.3, 0.30001, 1 - 2.0**-24):
        token = int(CategoricalLaw(probabilities=p).draw(torch.tensor([[u]])))
        assert token in (1, 3)


def test_rejection_with_residual_gives_p_exactly():
    """Enumerates the accept and residual uniforms on a grid that both laws divide evenly."""
    p = torch.tensor([2.0, 3.0, 0.0, 3.0]) / 8
    q = torch.tensor([4.0, 1.0, 2.0, 1.0]) / 8
    steps = 96
    u = (torch.arange(steps) + 0.5) / steps
    law = torch.zeros(4, dtype=torch.float64)
    target = CategoricalLaw(probabilities=p.expand(1, steps, 4))
    draft_law = CategoricalLaw(probabilities=q.expand(1, steps, 4))
    redraws = torch.bincount(target.redraw(draft_law, u[None])[0], minlength=4) / steps
    for x in range(4):
        accepted = float((u * q[x] < p[x]).double().mean())
        law[x] += q[x] * accepted
        law += q[x] * (1 - accepted) * redraws
    torch.testing.assert_close(law, p.double(), atol=1e-6, rtol=0)


def test_residual_without_mass_falls_back_to_p():
    p = CategoricalLaw(probabilities=torch.tensor([[[0.25, 0.75]]]))
    assert int(p.redraw(p, torch.tensor([[0.1]]))) == 0
    assert int(p.redraw(p, torch.tensor([[0.9]]))) == 1


def test_point_mass_and_entropy():
    mass = point_mass(torch.tensor([[2]]), 4)
    assert mass.tolist() == [[[0.0, 0.0, 1.0, 0.0]]]
    flat = CategoricalLaw(probabilities=torch.full((1, 1, 8), 0.125))
    assert float(flat.entropy()) == pytest.approx(3.0)
    assert float(CategoricalLaw(probabilities=mass).entropy()) == 0.0


@pytest.mark.parametrize(
    "options,message",
    [
        ({"guidance": -1.0}, "guidance_scale must be at least 0, got -1.0"),
        ({"guidance": float("nan")}, "guidance_scale must be at least 0, got nan"),
        ({"temperature": 0.0}, "temperature must be above 0, from .*, got 0.0"),
        ({"temperature": -1.0}, "temperature must be above 0, from .*, got -1.0"),
        ({"temperature": 1e-38}, "temperature must be above 0, from 1e-06 .*, got 1e-38"),
        ({"temperature": 1e39}, r"temperature must be .* to 1e\+06, got 1e\+39"),
        ({"temperature": float("nan")}, "temperature must be above 0, from .*, got nan"),
        ({"top_k": -3}, "top_k must be at least 0"),
        ({"top_k": 10**20}, r"top_k must be at least 0 \(0 is off\) and below 2\^63, got 1"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.5}, r"top_p must be in \(0, 1\], got 1.5"),
        ({"seeds": [-1]}, r"seed must be in \[0, 2\^63\), got -1"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling.create(**({"seeds": [0]} | options))


def test_a_law_is_built_from_one_thing():
    with pytest.raises(ValueError, match="either logits or probabilities"):
        CategoricalLaw()
