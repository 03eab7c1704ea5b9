"""What has no chance stays without one under guidance, in the kernel as in its reference."""

import pytest
import torch
from host_kernel import IMPOSSIBLE, NARROW, by_kernel, by_reference, same, with_impossible_codes

from visual_ar.accel.kernels.reference import BAD_LOGITS
from visual_ar.sampling import guide

ALL = pytest.mark.parametrize("names", IMPOSSIBLE.values(), ids=IMPOSSIBLE)


def unwarped(given):
    """The window without top-k and top-p, which rule out codes themselves."""
    sampling = given["sampling"]
    top_k, top_p = torch.zeros_like(sampling.top_k), torch.ones_like(sampling.top_p)
    return given | {"sampling": sampling._replace(top_k=top_k, top_p=top_p)}


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 3.0])
def test_what_is_certain_stays_so(scale):
    inf = torch.inf
    conditional = torch.tensor([[[-inf, -inf, 2.0, -inf, inf, inf, 2.0]]])
    unconditional = torch.tensor([[[1.0, -inf, -inf, inf, -inf, 1.0, inf]]])
    found = guide(conditional, unconditional, torch.tensor([[scale]]))[0, 0].tolist()
    free = [2.0, 2.0] if scale == 1 else [-inf, inf]
    assert found == [-inf, -inf, free[0], -inf, inf, inf, free[1]]


@ALL
@pytest.mark.parametrize("dtype", NARROW)
def test_the_kernel_is_the_reference_where_codes_are_impossible(names, dtype):
    for seed in range(4):
        given = with_impossible_codes(seed, names, dtype)
        wanted, found = by_reference(given), by_kernel(given)
        torch.testing.assert_close(found.laws, wanted.laws, rtol=2e-5, atol=1e-7)
        assert torch.equal(found.laws > 0, wanted.laws > 0)
        assert torch.equal(found.flags, wanted.flags) and not found.flags.any()
        assert torch.equal(found.tokens, wanted.tokens) and torch.equal(found.run, wanted.run)


@ALL
@pytest.mark.parametrize("run", [by_reference, by_kernel])
def test_a_code_is_impossible_where_either_says_so(run, names):
    given = unwarped(with_impossible_codes(5, names))
    verdict, scale = run(given), given["sampling"].guidance[..., None]
    possible = given["conditional"].isfinite()
    possible &= given["unconditional"].isfinite() | (scale == 1)
    assert torch.equal(verdict.laws > 0, possible)
    assert bool(verdict.laws.isfinite().all()) and not verdict.flags.any()
    assert bool(possible.gather(-1, verdict.tokens[..., None]).all())


@ALL
@pytest.mark.parametrize("run", [by_reference, by_kernel])
def test_guidance_1_is_no_guidance(run, names):
    given = with_impossible_codes(6, names)
    guidance = torch.ones_like(given["sampling"].guidance)
    given |= {"sampling": given["sampling"]._replace(guidance=guidance)}
    assert same(run(given), run(given | {"unconditional": None}))


@pytest.mark.parametrize("run", [by_reference, by_kernel])
def test_where_no_code_is_left_the_law_is_uniform(run):
    given = unwarped(with_impossible_codes(7, ()))
    half = torch.arange(40) < 20
    given["conditional"][0] = torch.where(half, given["conditional"][0], -torch.inf)
    given["unconditional"][0] = torch.where(half, -torch.inf, given["unconditional"][0])
    verdict = run(given)
    left = given["sampling"].guidance[0] == 1
    expected = torch.where(left, 0, BAD_LOGITS).to(torch.int32)
    assert torch.equal(verdict.flags[0], expected) and not verdict.flags[1:].any()
    torch.testing.assert_close(
        verdict.laws[0, ~left], torch.full_like(verdict.laws[0, ~left], 1 / 40)
    )
    assert torch.equal(verdict.laws[0, left] > 0, half.expand(int(left.sum()), -1))
