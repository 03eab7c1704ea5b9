"""Layers against their definitions, however they are computed."""

import pytest
import torch

from visual_ar.layers import RMSNorm


@pytest.mark.parametrize("shape", [(2, 1, 768), (1, 5, 8), (3, 256)])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_is_the_same_with_and_without_gradients(shape, scale, dtype):
    generator = torch.Generator().manual_seed(0)
    x = (scale * torch.randn(*shape, generator=generator)).to(dtype)
    norm = RMSNorm(shape[-1]).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(shape[-1], generator=generator))
        before = x.clone()
        without = norm(x)
        assert torch.equal(x, before)
    wide = x.double()
    expected = wide * (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * norm.weight.double()
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    for found in (norm(x).detach(), without):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
