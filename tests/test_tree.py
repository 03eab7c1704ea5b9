"""Trees as data: their columns, who sees whom, and that a pass over one is many passes at once."""

import pytest
import torch

from visual_ar.accel.drafts.tree import grow, keep_path, shapes, visible
from visual_ar.models.llamagen import LlamaGen


def test_a_bush_with_a_trunk():
    parents = grow((2, 2), 3)
    #      0
    #    1    4
    #   2 5  6 7
    #   3
    assert parents == [0, 1, 2, 0, 1, 4, 4]
    tree = shapes([parents])
    assert tree.depth.tolist() == [[0, 1, 2, 3, 1, 2, 2, 2]]
    assert tree.ordinal.tolist() == [[0, 0, 0, 0, 1, 1, 0, 1]]
    assert tree.children[0, :5].tolist() == [[1, 4], [2, 5], [3, -1], [-1, -1], [6, 7]]
    assert tree.sees[0, 7].nonzero()[:, 0].tolist() == [0, 4, 7]
    assert (tree.deepest, tree.deepest_fork, tree.deepest_branch) == (3, 2, 2)
    assert tree.trunk.tolist() == [3]


def test_a_chain_has_no_forks():
    tree = shapes([grow((1,), 4)])
    assert tree.parents.tolist() == [[0, 0, 1, 2, 3]]
    assert tree.siblings == 1
    assert (tree.deepest_fork, tree.deepest_branch) == (0, 0)


def test_shapes_of_different_sizes_share_a_table():
    both = shapes([grow((), 2), grow((3,), 2)])
    assert both.exists.sum(1).tolist() == [3, 5]
    assert both.children[:, 0].tolist() == [[1, -1, -1], [1, 3, 4]]
    small = both.pick(torch.tensor([0, 0])).narrow(3)
    assert small.columns == 3 and bool(small.exists.all())


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        ([[]], "a tree must have 1 to 199 drafts, got 0"),
        ([list(range(300))], "got 300; make the window or the branching smaller"),
        ([[0, 2]], r"parents must come before their children, got \[0, 2\]"),
    ],
)
def test_trees_that_are_none(parents, message):
    with pytest.raises(ValueError, match=message):
        shapes(parents)


@torch.inference_mode()
def test_a_pass_over_a_tree_is_a_pass_over_each_of_its_paths():
    """And so is the pass behind it, once the kept path was moved to where its ranks belong."""
    torch.manual_seed(0)
    model = LlamaGen(
        dim=32, n_layer=2, n_head=2, vocab_size=16, grid_size=4, ffn_dim=48, num_classes=3
    ).eval()
    condition = model.condition(torch.tensor([0, 2]), guided=False)
    tokens = torch.randint(16, (2, 12))
    first = torch.tensor([5, 2])  # ragged: the ranks behind column 0
    tree = shapes([grow((2, 2), 3)]).pick(torch.tensor([0, 0]))
    cache = model.new_cache(2, model.prefix_length + 16 + tree.columns, model.prefix_length)

    def whole(row, path):
        """Hidden states of a picture's committed tokens and then `path`, without a cache."""
        line = torch.cat([tokens[row, : first[row]], path])[None]
        x = torch.cat([condition.prefix[row : row + 1], model.embed(line, line)], 1)
        return model.forward(x, torch.arange(-1, line.shape[1])[None])[0]

    for rank in range(-1, 5):  # fills the cache up to the rank before column 0
        ranks = torch.full((2, 1), rank)
        x = condition.prefix if rank < 0 else model.embed(tokens[:, rank : rank + 1], ranks)
        model.forward(x, ranks, cache)
    drafts = torch.randint(16, (2, tree.columns))
    drafts[:, 0] = tokens[torch.arange(2), first - 1]
    ranks = first[:, None] - 1 + tree.depth
    root = first - 1 + cache.prefix
    slots = root[:, None] + torch.arange(tree.columns)
    mask = visible(tree.sees, cache, root)
    hidden = model.forward(model.embed(drafts, ranks), ranks, cache, mask, slots)
    for row in range(2):
        for column in range(tree.columns):
            path = drafts[row, tree.sees[row, column].nonzero()[1:, 0]]
            assert torch.allclose(hidden[row, column], whole(row, path)[-1], atol=1e-5)

    path = torch.tensor([[0, 4, 7, 0], [0, 1, 5, 0]])
    keep_path(cache, root, path, torch.tensor([2, 2]), tree.deepest_branch)
    following = torch.tensor([[3], [9]])
    ranks = (first + 2)[:, None]
    behind = model.forward(model.embed(following, ranks), ranks, cache)
    for row in range(2):
        kept = torch.cat([drafts[row, path[row, 1:3]], following[row]])
        assert torch.allclose(behind[row, 0], whole(row, kept)[-1], atol=1e-5)
