"""Toys whose layouts have ranks that no pass draws, and their exact law over the cells."""

from __future__ import annotations

from dataclasses import replace

import torch
from diffusers import ModelMixin  # noqa: F401  (diffusers looks for it in a component's module)
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from visual_ar.conditioning.condition import Condition
from visual_ar.layout import ABSENT, FREE, NO_CELL, Layout, raster_layout
from visual_ar.sampling import Sampling, Warps, guide, warp
from visual_ar.testing import ToyTokenModel, sequence_index
from visual_ar.tokens.codes import Codes

IDS = 4
"""Structural ids that a toy of V codes knows: V .. V + 3."""


def lines(grid: tuple[int, ...], first_id: int) -> Layout:
    """Next-token order with a line end behind every row of a picture (H, W)."""
    rows, columns = grid
    cell = torch.arange(rows * columns).view(rows, columns)
    cell = torch.cat([cell, torch.full((rows, 1), NO_CELL)], dim=1).flatten()
    return _ordered(grid, cell, first_id + 1)


def queries(grid: tuple[int, ...], first_id: int) -> Layout:
    """Next-block order of a line in blocks of three.

    The first block is predicted from the last prefix slot and two filler queries; a later one from
    the block before it, cell by cell.
    """
    (length,) = grid
    size, total = 3, length + 2
    ranks = torch.arange(total)
    cell = torch.cat([torch.full((2,), NO_CELL), torch.arange(length)])
    layout = _ordered(grid, cell, first_id)
    structure = torch.where(layout.cell == NO_CELL, first_id + ranks.clamp(max=IDS - 1), FREE)
    end = torch.where(ranks < 2, 2, 2 + size * ((ranks - 2) // size + 1))
    sources = torch.where(ranks < 2, -1, ranks - size)[:, None]
    return replace(layout, structure=structure, group_end=end, sources=sources)


def fillers(grid: tuple[int, ...], first_id: int) -> Layout:
    """Blocks of two, each predicted from two fillers that are fed behind the block before it."""
    (length,) = grid
    blocks = torch.arange(length).view(-1, 2)
    cell = torch.cat([torch.full_like(blocks, NO_CELL), blocks], dim=1).flatten()
    layout = _ordered(grid, cell, first_id + 2)
    ranks = torch.arange(len(cell))
    drawn = layout.cell != NO_CELL
    sources = torch.where(drawn, ranks - 2, -1)[:, None]
    end = 2 * (ranks // 2 + 1)
    return replace(layout, group_end=end, sources=sources)


def prefixed(grid: tuple[int, ...], first_id: int) -> Layout:
    """Blocks of three: the first from three prefix slots, its cells in order, and so on."""
    layout = raster_layout(grid)
    ranks = torch.arange(layout.length)
    end = 3 * (ranks // 3 + 1)
    return replace(layout, group_end=end, sources=(ranks - 3)[:, None])


def two_sources(grid: tuple[int, ...], first_id: int) -> Layout:
    """Pairs of cells behind a line end; the first of a pair has a second source, or prefix slot."""
    (length,) = grid
    cell = torch.cat([torch.arange(length).view(-1, 2), torch.full((length // 2, 1), NO_CELL)], 1)
    layout = _ordered(grid, cell.flatten(), first_id)
    ranks = torch.arange(layout.length)
    last = 3 * (ranks // 3) - 1  # the line end before each pair
    second = torch.where(ranks % 3 == 1, ABSENT, (last - 1).clamp(min=-2))
    end = torch.where(ranks % 3 == 2, ranks + 1, 3 * (ranks // 3) + 2)
    return replace(layout, group_end=end, sources=torch.stack([last, second], 1))


def plain(grid: tuple[int, ...], first_id: int) -> Layout:
    """Next-token order."""
    return raster_layout(grid)


FORMS = {form.__name__: form for form in (lines, queries, fillers, prefixed, two_sources, plain)}


class StructuredToy(ToyTokenModel):
    """The toy over one of `FORMS`.

    Args:
        form: name of the layout.
        end: code that ends a picture, if one does.
        vocab_size, grid, prefix_length, hidden_size, sharpness, seed, order: see `ToyTokenModel`.
    """

    capabilities = ToyTokenModel.capabilities | {"structure"}

    @register_to_config
    def __init__(
        self,
        form: str = "lines",
        end: int | None = None,
        vocab_size: int = 2,
        grid: tuple[int, ...] = (2, 3),
        prefix_length: int = 3,
        hidden_size: int = 6,
        sharpness: float = 1.5,
        seed: int = 0,
        order: str = "raster",
    ) -> None:
        super(ToyTokenModel, self).__init__()
        self._build(vocab_size)
        generator = torch.Generator().manual_seed(seed + 1)
        self.structural = torch.nn.Parameter(torch.randn(IDS, hidden_size, generator=generator))

    @property
    def tokens(self) -> Codes:
        """Codes, one of which may end a picture."""
        return Codes(self.vocab_size, self.config.end)

    def layout(self, grid: tuple[int, ...]) -> Layout:
        """The configured form."""
        return FORMS[self.config.form](tuple(grid), self.config.vocab_size)

    def embed_structure(self, ids: Tensor) -> Tensor:
        """Rows of a table. int64 [R, Q]; [R, Q, D]."""
        return self.structural[(ids - self.vocab_size).clamp(min=0)]


def _ordered(grid: tuple[int, ...], cell: Tensor, structure: int) -> Layout:
    """A chain over ranks -> cells with one structural id. cell: int64 [N]."""
    ranks, by_cell = torch.arange(len(cell)), raster_layout(grid).positions
    return Layout(
        grid=tuple(grid),
        cell=cell,
        group_end=ranks + 1,
        sources=(ranks - 1)[:, None],
        positions=by_cell[cell.clamp(min=0)],
        forced=torch.full_like(cell, FREE),
        structure=torch.where(cell == NO_CELL, structure, FREE),
    )


@torch.inference_mode()
def exact_law(model: StructuredToy, layout: Layout, sampling: Sampling, label: int = 0) -> Tensor:
    """Probability of every picture, by full passes without a cache.

    Args:
        model: the toy.
        layout: with what is forced, [N], by rank.
        sampling: options of one picture.
        label: its class.

    Returns:
        fp64 [V^cells], the cells read as digits; behind a token that ends a picture all are 0.
    """
    codes, cells, prefix = model.vocab_size, len(layout.rank), model.prefix_length
    pictures = torch.cartesian_prod(*[torch.arange(codes)] * cells).reshape(-1, cells)
    tokens = pictures[:, layout.cell.clamp(min=0)]
    ranks = torch.arange(-prefix, layout.length).expand(len(pictures), -1)
    own = ranks[:, prefix:]
    structural = (layout.structure >= 0)[None, :, None]
    ids = layout.structure.clamp(min=0).expand(len(pictures), -1)
    x = torch.where(structural, model.embed_structure(ids), model.embed(tokens, own))
    logits = []
    for name in (label, 2):
        rows = Condition(*model.condition([name], False)).prefix.expand(len(pictures), -1, -1)
        hidden = model.forward(torch.cat([rows, x], 1), ranks)
        columns = layout.sources.clamp(min=-prefix) + prefix
        found = hidden[:, columns]  # [B, N, A, D], one state for all ways
        logits.append(model.predict(found, own))
    scale = sampling.guidance[:, None].expand(len(pictures), layout.length)
    guided = guide(*logits, scale)
    warped = warp(guided, sampling.temperature, sampling.top_k, sampling.top_p, Warps.of(sampling))
    chance = warped.double().softmax(-1).gather(-1, tokens[..., None])[..., 0]
    chance = torch.where(layout.forced >= 0, (tokens == layout.forced).double(), chance)
    if model.config.end is not None:
        ends = (tokens == model.config.end) & (layout.cell != NO_CELL)
        behind = ends.long().cumsum(1) - ends.long() > 0
        chance = torch.where(behind, (tokens == 0).double(), chance)
    return torch.where(layout.cell == NO_CELL, 1.0, chance).prod(1)


def drawn_index(layout: Layout, tokens: Tensor, known: Tensor, codes: int) -> Tensor:
    """Pictures as `exact_law` numbers them. tokens: int64 [B, N]; known: bool [B, N]; int64 [B]."""
    return sequence_index(layout.cells(tokens * known), codes)
