"""Layouts are what they say: order, visibility, sources, positions and forced tokens by rank."""

from dataclasses import replace

import pytest
import torch

from visual_ar.layout import ABSENT, FREE, neighbour_layout, raster_layout

SNAKE = torch.tensor([0, 1, 2, 5, 4, 3])  # rank -> cell of a 2x3 grid, every second row reversed


@pytest.fixture
def snake():
    return replace(raster_layout((2, 3)), cell=SNAKE)


@pytest.mark.parametrize(
    ("grid", "shape"), [((2, 3), (1, 2, 3)), ((2, 2, 3), (2, 2, 3)), ((6,), (1, 1, 6))]
)
def test_raster_order_goes_frame_by_frame_row_by_row(grid, shape):
    layout = raster_layout(grid)
    frames, rows, columns = shape
    assert layout.grid == grid
    assert layout.shape3d == shape
    assert layout.length == frames * rows * columns
    expected = [[t, y, x] for t in range(frames) for y in range(rows) for x in range(columns)]
    assert layout.positions.tolist() == expected
    assert layout.cell.tolist() == list(range(layout.length))
    assert (layout.forced == FREE).all()


def test_raster_order_is_a_chain():
    layout = raster_layout((2, 3))
    assert layout.is_chain
    assert layout.sources[:, 0].tolist() == [-1, 0, 1, 2, 3, 4]
    assert layout.group_end.tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("name", ["groups", "sources", "several sources"])
def test_layouts_that_predict_otherwise_are_no_chain(name):
    layout = raster_layout((2, 3))
    changed = {
        "groups": {"group_end": torch.tensor([3, 3, 3, 6, 6, 6])},
        "sources": {"sources": torch.tensor([[-1], [-1], [-1], [0], [1], [2]])},
        "several sources": {"sources": layout.sources.expand(-1, 2)},
    }[name]
    assert not replace(layout, **changed).is_chain


def test_cells_undoes_the_decode_order(snake):
    by_cell = torch.arange(12).reshape(2, 6)
    by_rank = by_cell[:, SNAKE]
    assert not torch.equal(by_rank, by_cell)
    assert torch.equal(snake.cells(by_rank), by_cell)
    assert torch.equal(snake.cells(by_rank[..., None]), by_cell[..., None])


def test_forced_tokens_are_given_by_cell_and_kept_by_rank(snake):
    by_cell = torch.tensor([[7, -1, -1, 9, -1, -1], [-1, -1, -1, -1, -1, 3]], dtype=torch.int32)
    forced = snake.with_forced(by_cell)
    assert forced.forced.dtype == torch.int64
    assert forced.forced.tolist() == [[7, -1, -1, -1, -1, 9], [-1, -1, -1, 3, -1, -1]]
    assert torch.equal(snake.cells(forced.forced), by_cell.long())
    assert snake.with_forced(by_cell[0]).forced.shape == (6,)
    assert (snake.forced == FREE).all()  # the layout itself is unchanged


def test_moving_a_layout_moves_every_tensor():
    layout = raster_layout((2, 3)).to("meta")
    for name in ("cell", "structure", "given", "group_end", "sources", "positions", "forced"):
        assert getattr(layout, name).device.type == "meta"


@pytest.mark.parametrize("grid", [(), (2, 0), (1, 2, 3, 4)])
def test_bad_grids_are_refused(grid):
    with pytest.raises(ValueError, match="grid must hold one to three axes"):
        raster_layout(grid)


def test_forced_tokens_of_another_length_are_refused():
    with pytest.raises(ValueError, match="each of the 6 cells, got 5"):
        raster_layout((2, 3)).with_forced(torch.full((5,), FREE))


def test_neighbour_order_goes_by_distance_from_the_first_cell():
    layout = neighbour_layout((2, 3))
    assert layout.cell.tolist() == [0, 1, 3, 2, 4, 5]
    assert layout.group_end.tolist() == [1, 3, 3, 5, 5, 6]
    assert layout.group_start.tolist() == [0, 1, 1, 3, 3, 5]
    assert layout.positions[3].tolist() == [0, 0, 2]
    left, above = layout.sources.T.tolist()
    assert left == [-1, 0, ABSENT, 1, 2, 4]
    assert above == [-1, ABSENT, 0, ABSENT, 1, 3]
    assert not layout.is_chain


@pytest.mark.parametrize("grid", [(4, 16, 16), (3, 1, 2), (5, 7), (1, 4)])
def test_sources_are_the_cells_before_along_each_axis(grid):
    layout = neighbour_layout(grid)
    groups = sum(grid) - len(grid) + 1
    assert len(layout.group_end.unique()) == groups
    cells = raster_layout(grid).positions
    for axis, sources in zip((2, 1, 0), layout.sources.T, strict=False):
        there = sources[1:] >= 0
        assert torch.equal(there, layout.positions[1:, axis] > 0)
        moved = layout.positions[1:][there].clone()
        moved[:, axis] -= 1
        assert torch.equal(layout.positions[sources[1:][there]], moved)
    assert torch.equal(layout.positions, cells[layout.cell])
    distance = layout.positions.sum(1)
    visible = torch.arange(layout.length) < layout.group_end[:, None]
    assert torch.equal(visible, distance <= distance[:, None])


@pytest.mark.parametrize("grid", [(4,), (2, 0), (1, 2, 3, 4)])
def test_grids_without_two_axes_have_no_neighbour_order(grid):
    with pytest.raises(ValueError, match="grid must hold two to three axes"):
        neighbour_layout(grid)
