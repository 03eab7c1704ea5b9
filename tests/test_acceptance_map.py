"""Cells accepted by one pass have one colour, later passes brighter ones, open cells grey."""

import numpy as np
import pytest
import torch
from PIL import Image

from visual_ar.app.acceptance_map import UNDECIDED, acceptance_map, colours, legend
from visual_ar.app.enlarge import enlarged


def test_a_cell_has_the_colour_of_its_pass():
    accepted = torch.tensor([[0, 0, 1], [2, 3, -1]])
    picture = np.asarray(acceptance_map(accepted, passes=4))
    side = picture.shape[1] // 3
    cells = picture[::side, ::side]
    assert (picture.repeat(1, axis=0) == cells.repeat(side, axis=0).repeat(side, axis=1)).all()
    palette = colours(4)
    for row in range(2):
        for column in range(3):
            index = int(accepted[row, column])
            expected = UNDECIDED if index < 0 else palette[index]
            assert tuple(cells[row, column]) == tuple(expected)


@pytest.mark.parametrize("count", [1, 2, 7, 256])
def test_later_passes_are_brighter_and_differ(count):
    palette = colours(count).astype(float)
    assert palette.shape == (count, 3)
    lightness = palette @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) > 0).all()


def test_colours_stay_those_of_the_longer_race():
    short = torch.tensor([[0, 1]])
    assert acceptance_map(short, 2).tobytes() != acceptance_map(short, 9).tobytes()
    with pytest.raises(ValueError, match="passes must be above every index, 1, got 1"):
        acceptance_map(short, 1)


def test_the_legend_names_the_last_pass():
    assert "pass 176" in legend(176) and "rgb(" in legend(176)


def test_small_pictures_grow_by_whole_pixels():
    small = Image.new("RGB", (100, 50), "red")
    assert enlarged(small).size == (300, 150)
    assert enlarged(Image.new("RGB", (500, 20))).size == (500, 20)
