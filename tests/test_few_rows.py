"""Blocks over few rows: the sums of `layers.Block`, never those of weights that have changed."""

import copy
import pickle

import pytest
import torch
from torch import nn

from visual_ar.cache import KVCache
from visual_ar.few_rows import FewRows
from visual_ar.layers import Block, Linear, Pass

SLOTS = 12
SMALL, LARGE = (32, 4, 48), (448, 4, 1280)  # the second is multiplied in another order


def block(dim=32, heads=4, hidden=48, seed=0):
    torch.manual_seed(seed)
    made = Block(dim, heads, hidden).eval()
    for norm in (made.attention_norm, made.ffn_norm):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    return made


def cache_of(made, rows, seed=1):
    heads, dim = made.attention.heads, made.attention.wo.in_features
    cache = KVCache(1, rows, heads, SLOTS, dim // heads, 1, torch.float32, "cpu")
    generator = torch.Generator().manual_seed(seed)
    for buffer in (cache.keys, cache.values):
        buffer.copy_(torch.randn(buffer.shape, generator=generator))
    return cache


def given(made, rows, queries, turns=True, first=3, seed=2):
    generator = torch.Generator().manual_seed(seed)
    heads, dim = made.attention.heads, made.attention.wo.in_features
    x = torch.randn(rows, queries, dim, generator=generator)
    cache = cache_of(made, rows)
    cache.extent = 10
    slots = torch.arange(first, first + queries).expand(rows, -1)
    slots = slots + torch.arange(rows)[:, None] % 2  # pictures are at different ranks
    mask = torch.where(cache.visible(slots), 0.0, -torch.inf)
    angles = torch.randn(rows, queries, 1, 1, dim // heads // 2, generator=generator)
    rotation = torch.polar(torch.ones_like(angles), angles) if turns else None
    return x, Pass(rotation, mask, cache, slots)


def usual(made, x, shared):
    """The block as it computes while gradients are recorded."""
    with torch.enable_grad():
        return made(x, 0, shared).detach()


def drawn(made, x, shared):
    with torch.inference_mode():
        return made(x, 0, shared)


@pytest.mark.parametrize("sizes", [SMALL, LARGE])
@pytest.mark.parametrize("rows, queries", [(1, 1), (2, 1), (2, 5), (6, 3)])
@pytest.mark.parametrize("turns", [True, False])
def test_few_rows_have_the_sums_of_the_block(sizes, rows, queries, turns):
    made = block(*sizes)
    x, shared = given(made, rows, queries, turns)
    _, other = given(made, rows, queries, turns)
    expected, found = usual(made, x, shared), drawn(made, x, other)
    assert made._few_rows._ready is not None
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(other.cache.keys, shared.cache.keys, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(other.cache.values, shared.cache.values, rtol=1e-4, atol=1e-4)


def test_given_rows_are_not_changed():
    made = block()
    x, shared = given(made, 2, 1)
    before = x.clone()
    drawn(made, x, shared)
    assert torch.equal(x, before)


@pytest.mark.parametrize("rows, queries", [(13, 5), (2, 9)])
def test_more_rows_are_computed_the_usual_way(rows, queries):
    made = block()
    x, shared = given(made, rows, queries, first=0)
    drawn(made, x, shared)
    assert (made._few_rows._ready is None) == (rows * queries > 64)


def test_without_a_cache_or_in_training_it_is_the_usual_way():
    made = block()
    x, _ = given(made, 2, 1)
    drawn(made, x, Pass())
    made.train()
    _, shared = given(made, 2, 1)
    drawn(made, x, shared)
    assert made._few_rows._ready is None


def check_next_pass(made):
    """A pass with a new cache has the sums of the block as it is now."""
    x, shared = given(made, 2, 1)
    found = drawn(made, x, shared)
    torch.testing.assert_close(found, usual(made, x, given(made, 2, 1)[1]), rtol=1e-4, atol=1e-4)


def merge(made):
    made.attention.wqkv.weight.data += 0.1  # as adapters are merged; counts as no change


def scale_in_place(made):
    with torch.no_grad():
        made.ffn_norm.weight.mul_(2)


def load(made):
    made.load_state_dict(block(seed=9).state_dict())


def replace(made):
    made.feed_forward.w2.weight = nn.Parameter(torch.randn(32, 48))


@pytest.mark.parametrize("change", [merge, scale_in_place, load, replace])
def test_changed_weights_are_seen_with_the_next_cache(change):
    made = block()
    drawn(made, *given(made, 2, 1))
    change(made)
    check_next_pass(made)


class Adapted(Linear):
    """As libraries of adapters put into the place of a linear map."""

    def forward(self, x):
        return super().forward(x) + 1


def adapt(made):
    made.attention.wo = Adapted(32, 32)


def hook(made):
    made.feed_forward.register_forward_hook(lambda module, inputs, output: output + 1)


@pytest.mark.parametrize("addition", [adapt, hook])
def test_what_somebody_added_takes_part(addition):
    made = block()
    drawn(made, *given(made, 2, 1))
    addition(made)
    check_next_pass(made)
    assert made._few_rows._ready is None


def test_weights_are_made_ready_once():
    made = block()
    drawn(made, *given(made, 2, 1))
    ready = made._few_rows._ready
    drawn(made, *given(made, 2, 1))
    assert made._few_rows._ready is ready


def test_copies_are_empty():
    made = block()
    drawn(made, *given(made, 2, 1))
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert isinstance(other._few_rows, FewRows) and other._few_rows._ready is None
