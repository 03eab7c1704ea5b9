"""Every method that says it is lossless has the exact law of a toy; known mistakes do not."""

from dataclasses import replace

import pytest
import torch
from exactness import ALARM, CASES, DETECTED, PICTURES, run, toy
from pairs import some_pairs

import visual_ar.accel
from visual_ar.accel.denoising import SpeculativeDenoisingDecoding
from visual_ar.accel.draft_head import DraftHeadDecoding
from visual_ar.accel.exact_match import ExactMatchJacobiDecoding
from visual_ar.accel.groups import GroupDecoding
from visual_ar.accel.hybrid import HybridDecoding
from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.accel.loop.contract import Decoding
from visual_ar.accel.sequential import SequentialDecoding
from visual_ar.accel.tree_decoding import TreeDecoding
from visual_ar.cast import Cast
from visual_ar.sampling import Sampling
from visual_ar.testing import (
    ToyBitModel,
    ToyTokenModel,
    chi_square,
    decode_all,
    enumerate_law,
    sequence_index,
)

METHODS = {
    "sequential": SequentialDecoding(),
    "groups of one": GroupDecoding(),
    "exact-match": ExactMatchJacobiDecoding(window=2, init="uniform"),
    "exact-match left": ExactMatchJacobiDecoding(window=3, init="left"),
    "published": SpeculativeJacobiDecoding(window=2, coupling="independent", init="random"),
    "independent": SpeculativeJacobiDecoding(window=2, coupling="independent"),
    "independent above-law": SpeculativeJacobiDecoding(3, "independent", "above-law"),
    "maximal": SpeculativeJacobiDecoding(window=2, coupling="maximal"),
    "maximal left": SpeculativeJacobiDecoding(window=3, coupling="maximal", init="left"),
    "maximal left-law": SpeculativeJacobiDecoding(window=4, coupling="maximal", init="left-law"),
    "block": SpeculativeJacobiDecoding(window=3, coupling="independent", rule="block"),
    "block left-law": SpeculativeJacobiDecoding(4, "independent", "left-law", rule="block"),
    "gumbel": SpeculativeJacobiDecoding(window=2, coupling="gumbel"),
    "gumbel above": SpeculativeJacobiDecoding(window=3, coupling="gumbel", init="above"),
    "window 1": SpeculativeJacobiDecoding(window=1),
    "chain": TreeDecoding(window=3, tree="1", coupling="independent"),
    "tree": TreeDecoding(window=3, tree="2x2", coupling="gumbel"),
    "tree maximal": TreeDecoding(window=3, tree="2x2", init="left-law"),
    "tree above-law": TreeDecoding(window=4, tree="3", drafter="left-law+above-law"),
    "tree of copies": TreeDecoding(window=2, tree="2", drafter="left+above"),
    "tree adapting length": TreeDecoding(4, "2", coupling="maximal", adapt="length"),
    "tree adapting shape": TreeDecoding(2, "2x1", coupling="gumbel", adapt="shape"),
    "draft head": DraftHeadDecoding(window=3),
    "draft head, block": DraftHeadDecoding(window=4, rule="block"),
    "draft head, window 1": DraftHeadDecoding(window=1),
    "draft head, tree": TreeDecoding(window=3, tree="2x2", drafter="head"),
    "denoising": SpeculativeDenoisingDecoding(window=3, steps=2, clean=1),
    "denoising gently": SpeculativeDenoisingDecoding(window=4, steps=4, clean=1),
    "denoising at once": SpeculativeDenoisingDecoding(window=4, steps=1, clean=2),
    "denoising window 1": SpeculativeDenoisingDecoding(window=1),
}


@pytest.mark.parametrize(("method", "case"), some_pairs(METHODS, CASES))
def test_the_law_is_exact(method, case):
    assert run(METHODS[method], CASES[case]) > ALARM


def test_previous_frame_drafts_are_exact():
    method = SpeculativeJacobiDecoding(window=3, coupling="maximal", init="previous-frame")
    assert run(method, CASES["video"]) > ALARM


def test_every_registered_lossless_method_is_covered():
    covered = {type(method) for method in METHODS.values()}
    covered.add(HybridDecoding)  # in test_hybrid, which gives it a drafter
    for name in visual_ar.accel.CLASSES:
        registered = getattr(visual_ar.accel, name)
        if registered is not Decoding and registered.lossless:
            assert registered in covered


@pytest.mark.parametrize("method", METHODS)
def test_options_and_classes_differ_within_a_batch(method):
    """Pictures of a batch keep their own class, guidance, temperature, top-k and top-p."""
    cast = toy(METHODS[method], vocab_size=3, grid=(5,), prefix_length=2, seed=9)
    model = cast.model
    quarter = PICTURES // 4
    options = [(1.0, 1.0, 0, 1.0), (2.0, 0.7, 0, 1.0), (1.5, 1.0, 2, 1.0), (3.0, 1.4, 0, 0.8)]
    parts = [
        Sampling.create(list(range(k * quarter, (k + 1) * quarter)), *option)
        for k, option in enumerate(options)
    ]
    sampling = Sampling(*(torch.cat(fields) for fields in zip(*parts, strict=True)))
    labels = [k % 2 for k in range(4) for _ in range(quarter)]
    tokens, _ = decode_all(METHODS[method], cast, model.condition(labels, True), sampling)
    for k, option in enumerate(options):
        law = enumerate_law(model, k % 2, Sampling.create([0], *option))
        mine = sequence_index(tokens[k * quarter : (k + 1) * quarter], 3)
        assert chi_square(mine, law) > ALARM


@pytest.mark.parametrize("method", METHODS)
def test_a_picture_does_not_depend_on_its_neighbours_or_slot(method):
    cast = toy(METHODS[method], vocab_size=3, grid=(3, 3), prefix_length=2, seed=3)

    def decode(seeds: list[int], labels: list[int]) -> torch.Tensor:
        condition = cast.model.condition(labels, True)
        sampling = Sampling.create(seeds, guidance=2.0)
        return decode_all(METHODS[method], cast, condition, sampling)[0]

    batch = decode([7, 8, 9], [0, 1, 0])
    assert torch.equal(decode([9, 7, 8], [0, 0, 1]), batch[[2, 0, 1]])
    for index, (seed, label) in enumerate(((7, 0), (8, 1), (9, 0))):
        assert torch.equal(decode([seed], [label])[0], batch[index])


@pytest.mark.parametrize("method", METHODS)
def test_pictures_admitted_in_mid_run_are_the_same_pictures(method):
    """A slot engine: six pictures through two slots, each admitted when a slot falls idle."""
    cast = toy(METHODS[method], vocab_size=3, grid=(3, 3), prefix_length=2, seed=3)
    model, decoding = cast.model, METHODS[method]
    labels, seeds = [0, 1, 1, 0, 1, 0], list(range(6))
    sampling = Sampling.create(seeds, guidance=2.0)
    expected, _ = decode_all(decoding, cast, model.condition(labels, True), sampling)
    window = decoding.config.get("window", 1)
    state = decoding.init(cast, slots=2, guided=True, window=window)
    waiting, holds, finished = list(range(6)), {}, {}
    while waiting or holds:
        for slot in range(2):
            if slot not in holds and waiting:
                picture = waiting.pop(0)
                holds[slot] = picture
                decoding.admit(
                    state,
                    torch.tensor([slot]),
                    model.condition([labels[picture]], True),
                    Sampling(*(field[picture : picture + 1] for field in sampling)),
                )
        step = decoding.advance(state)
        for slot in [s for s in holds if step.done[s]]:
            finished[holds.pop(slot)] = step.tokens[slot]
    assert torch.equal(torch.stack([finished[k] for k in range(6)]), expected)


def test_exact_match_gives_the_sequential_picture_in_fewer_passes():
    model = ToyTokenModel(vocab_size=4, grid=(4, 6), seed=2, sharpness=3.0)
    layout, count = model.layout((4, 6)), 500
    sampling = Sampling.create(list(range(count)), guidance=1.5, top_k=3)
    condition = model.condition([0] * count, True)
    expected, steps = decode_all(SequentialDecoding(), Cast(model, layout), condition, sampling)
    for init in ("uniform", "left", "above"):
        method = ExactMatchJacobiDecoding(window=6, init=init)
        tokens, committed = decode_all(method, Cast(model, layout), condition, sampling)
        assert torch.equal(tokens, expected)
        assert (committed > 0).sum(0).float().mean() < 0.7 * len(steps)


def test_steps_account_for_every_token():
    model = ToyTokenModel(vocab_size=3, grid=(7,), seed=2)
    sampling = Sampling.create(list(range(50)))
    method = SpeculativeJacobiDecoding(window=3)
    known_before = torch.zeros(50, 7, dtype=torch.bool)
    cast = Cast(model, model.layout((7,)))
    for step in method.decode(cast, model.condition([0] * 50, False), sampling):
        assert torch.equal(step.known.sum(1) - known_before.sum(1), step.committed)
        assert bool((step.known | ~known_before).all())
        assert step.head_evaluations == 3 * 50
        known_before = step.known
    assert bool(step.known.all()) and bool(step.done.all())


def test_the_goodness_of_fit_test_itself():
    law = torch.tensor([0.5, 0.25, 0.25, 0.0])
    draws = torch.multinomial(law, 10_000, True, generator=torch.Generator().manual_seed(0))
    assert chi_square(draws, law) > ALARM
    assert chi_square(draws, torch.tensor([0.46, 0.27, 0.27, 0.0])) < DETECTED
    assert chi_square(torch.tensor([3, 0, 0]), law) == 0.0


@pytest.mark.parametrize(
    "build,message",
    [
        (lambda: SpeculativeJacobiDecoding(window=0), "window must be 'auto' or a whole number"),
        (lambda: SpeculativeJacobiDecoding(window="wide"), "got 'wide'"),
        (lambda: SpeculativeJacobiDecoding(window=2.5), "got 2.5"),
        (lambda: SpeculativeJacobiDecoding(coupling="tight"), "coupling must be one of"),
        (lambda: ExactMatchJacobiDecoding(init="left-law"), "init must be one of"),
        (lambda: ExactMatchJacobiDecoding(window=True), "got True"),
    ],
)
def test_bad_options_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_method_refuses_what_it_cannot_serve():
    model = ToyTokenModel()
    layout = model.layout((7,))
    with pytest.raises(ValueError, match="init must be one of"):
        SpeculativeJacobiDecoding(init="nearest").check(Cast(model, layout))
    with pytest.raises(ValueError, match="needs several frames"):
        SpeculativeJacobiDecoding(init="previous-frame").check(Cast(model, layout))
    grouped = replace(layout, group_end=layout.group_end.clamp(min=3))
    with pytest.raises(ValueError, match="next-token layout"):
        SequentialDecoding().check(Cast(model, grouped))
    backwards = replace(layout, cell=layout.cell.flip(0))
    with pytest.raises(ValueError, match="raster order"):
        SpeculativeJacobiDecoding(init="left").check(Cast(model, backwards))
    model.capabilities = frozenset()
    with pytest.raises(ValueError, match=r"needs a model with \['trees'\], ToyTokenModel has \[\]"):
        TreeDecoding().check(Cast(model, layout))
    with pytest.raises(
        ValueError, match="needs a model whose laws tell a table of all tokens, the"
    ):
        HybridDecoding().check(Cast(ToyBitModel(), layout))
