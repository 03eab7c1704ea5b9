"""Ranks that no pass draws: laws by enumeration, passes, ends on the device, and refusals."""

from dataclasses import replace

import pytest
import torch
from exactness import ALARM, DETECTED
from structured import FORMS, StructuredToy, drawn_index, exact_law

from visual_ar.accel.denoising import SpeculativeDenoisingDecoding
from visual_ar.accel.draft_head import DraftHeadDecoding
from visual_ar.accel.exact_match import ExactMatchJacobiDecoding
from visual_ar.accel.groups import GroupDecoding
from visual_ar.accel.hybrid import HybridDecoding
from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.accel.loop.structure import Structure
from visual_ar.accel.sequential import SequentialDecoding
from visual_ar.accel.tree_decoding import TreeDecoding
from visual_ar.cast import Cast
from visual_ar.layout import NO_CELL
from visual_ar.sampling import Sampling
from visual_ar.testing import ToyTokenModel, chi_square

PICTURES = 4_000
CHAINS = {
    "sequential": SequentialDecoding(),
    "groups of one": GroupDecoding(),
    "exact-match": ExactMatchJacobiDecoding(window=3, init="uniform"),
    "exact-match left": ExactMatchJacobiDecoding(window=2, init="left"),
    "maximal": SpeculativeJacobiDecoding(window=3),
    "maximal left-law": SpeculativeJacobiDecoding(window=5, init="left-law"),
    "independent": SpeculativeJacobiDecoding(2, "independent", "random"),
    "gumbel": SpeculativeJacobiDecoding(4, "gumbel", "left"),
    "block": SpeculativeJacobiDecoding(4, "independent", "left-law", rule="block"),
    "window 1": SpeculativeJacobiDecoding(window=1),
    "tree": TreeDecoding(window=3, tree="2x2", coupling="gumbel"),
    "tree of laws": TreeDecoding(window=4, tree="2", drafter="left-law"),
    "tree adapting": TreeDecoding(window=3, tree="2", adapt="length"),
}
NEIGHBOURS = {"exact-match left", "maximal left-law", "gumbel", "block", "tree of laws"}
"""Those whose first drafts look left, which is a cell nearby in raster order only."""
TOYS = {
    "line ends": ({"form": "lines"}, None, {"guidance": 1.7, "temperature": 0.8}),
    "line ends, some forced": ({"form": "lines", "seed": 1}, [-1, 1, -1, -1, -1, 0], {}),
    "first frame given": (
        {"form": "plain", "grid": (2, 2, 2), "seed": 2},
        [0, 1, 1, 0, -1, -1, -1, -1],
        {"guidance": 2.0},
    ),
    "cells given here and there": (
        {"form": "plain", "grid": (7,), "seed": 3},
        [-1, -1, 1, 0, -1, 1, -1],
        {},
    ),
    "line ends and cells given": (
        {"form": "lines", "seed": 4, "vocab_size": 3, "grid": (3, 2), "sharpness": 0.8},
        [2, -1, 1, 0, -1, -1],
        {"top_k": 2, "guidance": 1.5},
    ),
    "an end": ({"form": "plain", "grid": (6,), "end": 1, "seed": 5}, None, {"guidance": 1.5}),
    "an end and line ends": ({"form": "lines", "end": 0, "seed": 6, "vocab_size": 3}, None, {}),
}
GROUPS = {
    "filler queries": ({"form": "queries", "grid": (6,)}, None, {"guidance": 1.7}),
    "filler queries, three blocks": ({"form": "queries", "grid": (9,), "seed": 1}, None, {}),
    "fillers between": ({"form": "fillers", "grid": (6,), "seed": 2}, None, {"guidance": 2.0}),
    "prefix slots": ({"form": "prefixed", "grid": (6,), "seed": 3}, None, {"temperature": 0.7}),
    "two sources": ({"form": "two_sources", "grid": (6,), "seed": 4}, None, {"guidance": 1.5}),
    "given block": (
        {"form": "queries", "grid": (9,), "seed": 5},
        [1, 0, 1, -1, -1, -1, -1, -1, -1],
        {},
    ),
    "an end": ({"form": "queries", "grid": (6,), "end": 1, "seed": 6, "vocab_size": 3}, None, {}),
}
GIVEN = {"first frame given", "cells given here and there", "line ends and cells given"}
GIVEN |= {"given block"}


def cast(name: str, toys: dict) -> tuple[Cast, dict]:
    """A toy over its layout, and the options of its pictures."""
    sizes, forced, options = toys[name]
    model = StructuredToy(**sizes)
    layout = model.layout(model.config.grid)
    if forced is not None:
        layout = layout.with_forced(torch.tensor(forced), in_every_picture=name in GIVEN)
    return Cast(model, layout), options


def decode(method, cast: Cast, pictures: int, options: dict):
    """The last step, and int64 [passes, B] committed."""
    condition = cast.model.condition([0] * pictures, options.get("guidance", 1) != 1)
    sampling = Sampling.create(list(range(pictures)), **options)
    steps = list(method.decode(cast, condition, sampling))
    return steps[-1], torch.stack([step.committed for step in steps])


def fit(method, cast: Cast, options: dict, pictures: int = PICTURES) -> float:
    """p value of the fit of many pictures to the enumerated law."""
    last, _ = decode(method, cast, pictures, options)
    law = exact_law(cast.model, cast.layout, Sampling.create([0], **options))
    assert float(law.sum()) == pytest.approx(1.0, abs=1e-5)
    codes = cast.model.vocab_size
    assert bool(((last.tokens >= 0) & (last.tokens < codes)).all())
    return chi_square(drawn_index(cast.layout, last.tokens, last.known, codes), law)


PAIRS = [
    (method, name)
    for method in CHAINS
    for name, (sizes, *_) in TOYS.items()
    if sizes["form"] == "plain" or method not in NEIGHBOURS
]


@pytest.mark.parametrize(("method", "name"), PAIRS)
def test_next_token_methods_have_the_exact_law(method, name):
    assert fit(CHAINS[method], *cast(name, TOYS)) > ALARM


@pytest.mark.parametrize("method", sorted(NEIGHBOURS))
def test_drafts_that_look_left_need_raster_order(method):
    with pytest.raises(ValueError, match="needs a raster order"):
        CHAINS[method].check(cast("line ends", TOYS)[0])


@pytest.mark.parametrize("name", GROUPS)
def test_groups_have_the_exact_law(name):
    assert fit(GroupDecoding(), *cast(name, GROUPS)) > ALARM


@pytest.mark.parametrize(
    ("name", "toys", "drawn"),
    [
        ("line ends", TOYS, [1] * 6),
        ("first frame given", TOYS, [1] * 4),
        ("cells given here and there", TOYS, [1] * 4),
        ("line ends and cells given", TOYS, [1] * 3),
        ("filler queries, three blocks", GROUPS, [3] * 3),
        ("fillers between", GROUPS, [2] * 3),
        ("two sources", GROUPS, [2] * 3),
        ("given block", GROUPS, [3] * 2),
    ],
)
def test_what_no_pass_draws_costs_no_pass(name, toys, drawn):
    """Nor is it counted as committed; layouts give it back without its structural ranks."""
    ours, options = cast(name, toys)
    methods = [GroupDecoding()] if toys is GROUPS else [SequentialDecoding(), GroupDecoding()]
    for method in methods:
        last, committed = decode(method, ours, 2, options)
        assert committed.T.tolist() == [drawn] * 2
        assert bool(last.known.all()) and ours.layout.cells(last.tokens).shape[1] == len(
            ours.layout.rank
        )


def test_speculation_passes_over_what_is_given():
    """Whole rows of line ends fall into a window: fewer passes than cells."""
    model = StructuredToy("lines", grid=(8, 2), vocab_size=3, sharpness=0.2)
    ours = Cast(model, model.layout((8, 2)))
    _, committed = decode(SpeculativeJacobiDecoding(window=6), ours, 50, {})
    assert committed.sum(0).tolist() == [16] * 50
    assert float((committed > 0).sum(0).float().mean()) < 12


@pytest.mark.parametrize("method", CHAINS)
def test_slots_and_neighbours_change_nothing(method):
    """Five pictures that end at different ranks, through two slots and all at once."""
    form, decoding = "plain" if method in NEIGHBOURS else "lines", CHAINS[method]
    model = StructuredToy(form, end=0, vocab_size=4, grid=(3, 3))
    given = torch.tensor([2, -1, -1, -1, 1, -1, -1, -1, -1])
    layout = model.layout((3, 3)).with_forced(given, in_every_picture=True)
    ours, labels = Cast(model, layout), [0, 1, 1, 0, 1]
    sampling = Sampling.create(list(range(5)), guidance=1.5)
    *_, last = decoding.decode(ours, model.condition(labels, True), sampling)
    window = decoding.config.get("window", 1)
    state = decoding.init(ours, slots=2, guided=True, window=window)
    waiting, holds, finished = list(range(5)), {}, {}
    while waiting or holds:
        for slot in [slot for slot in range(2) if slot not in holds][: len(waiting)]:
            picture = holds[slot] = waiting.pop(0)
            one = Sampling(*(field[picture : picture + 1] for field in sampling))
            condition = model.condition([labels[picture]], True)
            decoding.admit(state, torch.tensor([slot]), condition, one)
        step = decoding.advance(state)
        for slot in [slot for slot in holds if step.done[slot]]:
            finished[holds.pop(slot)] = (step.tokens * step.known)[slot]
    assert torch.equal(torch.stack([finished[k] for k in range(5)]), last.tokens * last.known)
    assert len(last.known.sum(1).unique()) > 1


def test_an_end_finishes_a_picture_early_on_the_device():
    """A picture is done in the pass that draws its end, and nothing behind it is known."""
    model = StructuredToy("plain", end=1, vocab_size=2, grid=(12,))
    ours = Cast(model, model.layout((12,)))
    last, committed = decode(SequentialDecoding(), ours, 200, {})
    ends = (last.tokens == 1) & last.known
    length = last.known.sum(1)
    assert bool((ends.sum(1) <= 1).all()) and float(length.float().mean()) < 6
    assert torch.equal((committed > 0).sum(0), length)
    assert bool((ends.long().argmax(1) + 1 == length)[ends.any(1)].all())
    assert bool(last.done.all()) and bool(last.settled.all())


def test_a_structural_rank_ends_nothing():
    """Its place in the tokens holds a 0, which may be the code that ends a picture."""
    model = StructuredToy("lines", end=0, vocab_size=3, grid=(3, 1), seed=6)
    last, _ = decode(SequentialDecoding(), Cast(model, model.layout((3, 1))), 300, {})
    cells = model.layout((3, 1)).cells(last.known)
    assert bool((cells.sum(1) > 1).any())


def _unfed(monkeypatch):
    """Ranks that no pass draws are not fed."""
    monkeypatch.setattr(
        Structure, "ranks_before", lambda self, ranks: self._scratch.expand(len(ranks), -1)
    )


def _blank(monkeypatch):
    """Structural ranks are fed as tokens."""
    monkeypatch.setattr(Structure, "embed", lambda self, model, x, ranks: x)


@pytest.mark.parametrize("mutant", [_unfed, _blank])
@pytest.mark.parametrize("method", ["sequential", "maximal", "tree"])
def test_known_mistakes_are_detected(mutant, method, monkeypatch):
    mutant(monkeypatch)
    assert fit(CHAINS[method], *cast("line ends", TOYS), pictures=8_000) < DETECTED


def test_what_cannot_be_decoded_is_refused_before_any_work():
    ours, _ = cast("line ends", TOYS)
    layout, model = ours.layout, ours.model
    for method in (DraftHeadDecoding(), SpeculativeDenoisingDecoding(), HybridDecoding()):
        with pytest.raises(
            ValueError, match=r"needs a layout in which every rank is drawn, .* has 2"
        ):
            method.check(ours)
    ids = torch.where(layout.cell == NO_CELL, 1, layout.structure)
    with pytest.raises(ValueError, match="structural ids must lie beyond the 2 codes, got 1"):
        SequentialDecoding().check(Cast(model, replace(layout, structure=ids)))
    plain = ToyTokenModel(2, (2, 3))
    with pytest.raises(ValueError, match="needs a model that knows structural ranks"):
        SequentialDecoding().check(Cast(plain, layout))
    every = layout.with_forced(torch.zeros(6, dtype=torch.int64), in_every_picture=True)
    with pytest.raises(ValueError, match="must leave some rank to draw"):
        SequentialDecoding().check(Cast(model, every))
    with pytest.raises(ValueError, match="structure must name an id at ranks that are no cell"):
        replace(layout, structure=torch.full_like(layout.cell, -1))
    for forced, message in (
        (torch.tensor([[0, -1, 1, -1, -1, -1], [-1, 0, 1, -1, -1, -1]]), "the same cells in every"),
        (torch.full((2, 6, 2), -1), "must be codes"),
    ):
        with pytest.raises(ValueError, match=message):
            layout.with_forced(forced, in_every_picture=True)


@pytest.mark.parametrize("form", FORMS)
def test_cells_come_back_in_their_order(form):
    grid = {"lines": (2, 3)}.get(form, (6,))
    layout = FORMS[form](grid, 2)
    by_rank = torch.where(layout.cell == NO_CELL, -7, layout.cell)[None]
    assert layout.cells(by_rank).tolist() == [list(range(6))]
    assert layout.rank.tolist() == [layout.cell.tolist().index(c) for c in range(6)]
