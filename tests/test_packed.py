"""Packed weights: the same products, and never those of weights that have changed since."""

import copy

import pytest
import torch
from torch.nn import functional as F

from visual_ar.layers import Linear, SwiGLU
from visual_ar.packed import Packed, order_pays

IN, OUT = 1024, 512  # the smallest that is packed

pytestmark = pytest.mark.skipif(not order_pays(), reason="weights are packed on x86 CPUs only")


def weight(seed=0):
    return torch.randn(OUT, IN, generator=torch.Generator().manual_seed(seed)) / IN**0.5


def rows(*shape, seed=1):
    return torch.randn(*shape, IN, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def packed(*weights):
    """What holds these weights by now."""
    holder = Packed()
    holder.product(rows(2), *weights)
    assert holder.product(rows(2), *weights) is not None
    return holder


@torch.no_grad()
@pytest.mark.parametrize("shape", [(2,), (2, 1), (3, 5), (2, 16)])
def test_products_equal_those_of_the_weights(shape):
    first, second = weight(0), weight(1)[:100]
    x = rows(*shape)
    product = packed(first, second).product(x, first, second)
    expected = torch.cat([F.linear(x, first), F.linear(x, second)], dim=-1)
    torch.testing.assert_close(product, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_rows_may_lie_apart():
    x = rows(2, 3)[:, 1:2]
    w = weight()
    torch.testing.assert_close(packed(w).product(x, w), F.linear(x, w), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_weights_are_packed_when_they_come_a_second_time():
    holder, w = Packed(), weight()
    assert holder.product(rows(2), w) is None
    assert holder.product(rows(2), w) is not None
    w.mul_(2)
    assert holder.product(rows(2), w) is None  # nobody knows yet whether these will stay


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@torch.no_grad()
def test_only_single_precision_is_packed(dtype):
    holder = Packed()
    for _ in range(3):
        assert holder.product(rows(2).to(dtype), weight().to(dtype)) is None


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 33])
def test_other_numbers_of_rows_are_left_to_others(count):
    w = weight()
    assert packed(w).product(rows(count), w) is None


def test_gradients_are_left_to_others():
    w = weight()
    assert packed(w).product(rows(2), w) is None


@torch.no_grad()
def test_small_weights_are_left_to_others():
    holder, small = Packed(), weight()[:-1]
    for _ in range(3):
        assert holder.product(rows(2), small) is None


def test_weights_without_a_version_are_left_to_others():
    with torch.inference_mode():
        holder, w = Packed(), weight()
        for _ in range(3):
            assert holder.product(rows(2), w) is None


@torch.inference_mode()
def test_a_linear_map_notices_every_change_of_its_weights():
    with torch.inference_mode(False):
        layer, other = Linear(IN, OUT), Linear(IN, OUT)
    x = rows(2, 1)

    def check():
        for _ in range(3):
            expected = F.linear(x, layer.weight)
            torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)

    check()
    with torch.inference_mode(False), torch.no_grad():
        layer.weight.add_(1)
    check()
    with torch.inference_mode(False):
        layer.load_state_dict(other.state_dict())
    check()
    with torch.inference_mode(False):
        layer.weight.data += weight(5)  # as adapters are merged; counts as no change
    check()
    with torch.inference_mode(False):
        layer.weight = torch.nn.Parameter(weight(3))
    check()
    with torch.inference_mode(False):
        layer.double().float()
    check()


def test_a_copy_of_a_used_layer_has_weights_of_its_own():
    layer = Linear(IN, OUT)
    with torch.no_grad():
        for _ in range(3):
            layer(rows(2))
        twin = copy.deepcopy(layer)
        twin.weight.zero_()
        for _ in range(3):
            assert twin(rows(2)).eq(0).all()
            assert layer(rows(2)).ne(0).any()
    assert layer.state_dict().keys() == {"weight"}


@torch.no_grad()
def test_a_gated_layer_gives_the_same_packed():
    layer = SwiGLU(IN, OUT)
    x = rows(2, 1)
    results = [layer(x) for _ in range(3)]
    gate = F.silu(F.linear(x, layer.w1.weight)) * F.linear(x, layer.w3.weight)
    expected = F.linear(gate, layer.w2.weight)
    for result in results:
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
