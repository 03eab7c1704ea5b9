"""The static cache: absolute slots, ragged rows, what a query sees, and admission of rows."""

import torch
from torch.nn import functional as F

from visual_ar.cache import KVCache

LAYERS, ROWS, HEADS, DIM, PREFIX, SLOTS = 2, 2, 2, 4, 3, 10


def make_cache(rows=ROWS, slots=SLOTS):
    return KVCache(LAYERS, rows, HEADS, slots, DIM, PREFIX, torch.float32, "cpu")


def random_kv(queries, rows=ROWS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, rows, HEADS, queries, DIM)
    return torch.randn(shape, generator=generator)


def test_rows_are_written_at_slots_of_their_own():
    cache = make_cache()
    k, v = random_kv(2)
    slots = torch.tensor([[3, 4], [7, 8]])
    keys, values = cache.update(1, k, v, slots)
    assert keys.shape == values.shape == (ROWS, HEADS, SLOTS, DIM)
    for row, (first, second) in enumerate(slots.tolist()):
        assert torch.equal(keys[row, :, [first, second]], k[row])
        assert torch.equal(values[row, :, [first, second]], v[row])
    assert keys[0, :, 5:].eq(0).all()  # the slots of the other row
    assert cache.keys[0].eq(0).all()  # the other layer


def test_writing_a_slot_again_replaces_it():
    cache = make_cache()
    slots = torch.tensor([[3], [3]])
    cache.update(0, *random_kv(1, seed=1), slots)
    k, v = random_kv(1, seed=2)
    keys, values = cache.update(0, k, v, slots)
    assert torch.equal(keys[:, :, 3:4], k)
    assert torch.equal(values[:, :, 3:4], v)


def test_a_query_sees_the_past_and_itself_but_no_padding():
    cache = make_cache()
    cache.prefix_mask = torch.tensor([[False, False, True], [True, True, True]])
    seen = cache.visible(torch.tensor([[4, 0], [2, 5]]))
    assert seen.shape == (ROWS, 1, 2, SLOTS)
    columns = [[set(query.nonzero()[:, 0].tolist()) for query in row[0]] for row in seen]
    assert columns == [[{2, 3, 4}, {0}], [{0, 1, 2}, {0, 1, 2, 3, 4, 5}]]


def test_extent_bounds_what_is_read():
    cache = make_cache()
    cache.extent = 6
    keys, values = cache.update(0, *random_kv(1), torch.tensor([[5], [2]]))
    assert keys.shape[2] == values.shape[2] == 6
    assert cache.visible(torch.tensor([[5], [2]])).shape[-1] == 6
    assert cache.slots == SLOTS


def test_a_slot_past_the_query_changes_nothing():
    """Rolling back is not advancing: what was drafted beyond is hidden until it is overwritten."""
    k, v = random_kv(4)
    queries = torch.randn(ROWS, HEADS, 1, DIM, generator=torch.Generator().manual_seed(3))
    at = torch.tensor([[3], [3]])
    results = []
    for drafted in (False, True):
        cache = make_cache()
        cache.update(0, k, v, torch.arange(4).expand(ROWS, -1))
        if drafted:
            cache.update(0, *random_kv(3, seed=9), torch.tensor([[4, 5, 6], [4, 5, 6]]))
        keys, values = cache.keys[0], cache.values[0]
        results.append(
            F.scaled_dot_product_attention(queries, keys, values, attn_mask=cache.visible(at))
        )
    assert torch.equal(*results)


def test_admission_takes_over_prefix_and_mask_of_some_rows():
    cache, part = make_cache(), make_cache(rows=1, slots=PREFIX)
    k, v = random_kv(PREFIX, rows=1)
    for layer in range(LAYERS):
        part.update(layer, k, v, torch.arange(PREFIX)[None])
    part.prefix_mask = torch.tensor([[False, True, True]])
    cache.assign(torch.tensor([1]), part)
    assert torch.equal(cache.keys[:, 1, :, :PREFIX], k.expand(LAYERS, -1, -1, -1))
    assert torch.equal(cache.values[:, 1, :, :PREFIX], v.expand(LAYERS, -1, -1, -1))
    assert cache.keys[:, 0].eq(0).all()
    assert cache.prefix_mask.tolist() == [[True, True, True], [False, True, True]]
