"""Pictures are seen through a tokenizer, measured, and single codes swapped."""

import numpy as np
import pytest
import torch
from PIL import Image

from visual_ar.app.code_view import see, swapped
from visual_ar.tokenizers.binary import BinaryTokenizer


@pytest.fixture
def picture():
    values = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_a_view_is_the_tokenizers_round_trip(tiny_pipeline, picture):
    tokenizer = tiny_pipeline.image_tokenizer
    view = see(tokenizer, picture, (8, 8))
    pixels = view.original.float() / 127.5 - 1
    assert torch.equal(view.tokens, tokenizer.encode(pixels))
    assert view.grid == (4, 4) and view.tokens_bits == 64
    assert view.row()[:2] == ["4 x 4 = 16", "64"]
    shown = [image.size for image in view.pictures()]
    assert shown == [(384, 384)] * 3


def test_similarity_is_told_where_a_picture_is_large_enough(tiny_pipeline, picture):
    assert float(see(tiny_pipeline.image_tokenizer, picture, (8, 8)).row()[3]) <= 1
    assert see(tiny_pipeline.image_tokenizer, picture, (6, 6)).row()[3] == ""


def test_a_swap_changes_one_code_to_its_neighbour(tiny_pipeline, picture):
    tokenizer = tiny_pipeline.image_tokenizer
    view = see(tokenizer, picture, (8, 8))
    changed, told = swapped(tokenizer, view, (1, 2), rank=2)
    [index] = (changed.tokens != view.tokens)[0].nonzero().flatten().tolist()
    assert index == 6
    before, after = int(view.tokens[0, 6]), int(changed.tokens[0, 6])
    assert after == int(tokenizer.neighbours(2)[before, 1])
    assert f"code {before} became {after}" in told and "PSNR is" in told
    assert not torch.equal(changed.redrawn, view.redrawn)


def test_a_click_finds_its_cell(tiny_pipeline, picture):
    view = see(tiny_pipeline.image_tokenizer, picture, (8, 8))
    assert view.cell_at(0, 0) == (0, 0)
    assert view.cell_at(96 * 2 + 1, 96 + 95) == (1, 2)
    assert view.cell_at(384, 384) == (3, 3)
    framed = np.asarray(view.marked((1, 2)))
    assert tuple(framed[96, 192]) == (255, 0, 128)
    assert (framed[:96] == np.asarray(view.marked())[:96]).all()


@pytest.mark.parametrize(
    ("cell", "rank", "message"),
    [
        ((4, 0), 1, "row must be from 0 to 3, got 4"),
        ((0, -1), 1, "column must be from 0 to 3, got -1"),
        ((0, 0), 0, "neighbour must be from 1 to 15, got 0"),
        ((0, 0), 16, "neighbour must be from 1 to 15, got 16"),
    ],
)
def test_cells_and_neighbours_that_there_are_not(tiny_pipeline, picture, cell, rank, message):
    tokenizer = tiny_pipeline.image_tokenizer
    with pytest.raises(ValueError, match=message):
        swapped(tokenizer, see(tokenizer, picture, (8, 8)), cell, rank)


def test_neighbours_of_bits_differ_in_one_bit():
    code = torch.tensor([True, False, False])
    tokenizer = BinaryTokenizer(
        channels=8,
        channel_multipliers=(1, 2),
        residual_blocks=1,
        bits=3,
        bit_groups=1,
        norm_groups=4,
    )
    assert tokenizer.neighbour(code, 2).tolist() == [True, True, False]
    with pytest.raises(ValueError, match="neighbour must be from 1 to 3, got 4"):
        tokenizer.neighbour(code, 4)
