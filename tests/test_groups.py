"""Group decoding draws from the model's own law, group by group, whatever the groups look like."""

from dataclasses import replace

import pytest
import torch

from visual_ar.accel.groups import GroupDecoding
from visual_ar.accel.sequential import SequentialDecoding
from visual_ar.cast import Cast
from visual_ar.layout import neighbour_layout, raster_layout
from visual_ar.sampling import Sampling
from visual_ar.testing import (
    ToyTokenModel,
    chi_square,
    decode_all,
    enumerate_law,
    sequence_index,
)

PICTURES = 8_000
ALARM, DETECTED = 1e-4, 1e-9  # as in test_lossless
CASES = {
    "picture": {"vocab_size": 3, "grid": (2, 3)},
    "clip": {"vocab_size": 2, "grid": (2, 2, 2), "seed": 1},
    "long prefix": {"vocab_size": 2, "grid": (3, 3), "prefix_length": 3, "seed": 2},
}


def toy(**options):
    return ToyTokenModel(**{"order": "neighbour", **options})


def fit(method, model, forced=None, pictures=PICTURES, **options):
    """p value of the fit of many decoded pictures to the enumerated law."""
    layout = model.layout(model.config.grid)
    by_rank = None
    if forced is not None:
        layout = layout.with_forced(forced)
        by_rank = layout.forced
    sampling = Sampling.create(list(range(pictures)), **options)
    condition = model.condition([0] * pictures, guided=options.get("guidance", 1) != 1)
    tokens, _ = decode_all(method, Cast(model, layout), condition, sampling)
    law = enumerate_law(model, 0, Sampling.create([0], **options), by_rank)
    assert float(law.sum()) == pytest.approx(1.0, abs=1e-5)
    return chi_square(sequence_index(tokens, model.vocab_size), law)


@pytest.mark.parametrize("name", CASES)
def test_the_law_is_the_models_own(name):
    assert fit(GroupDecoding(), toy(**CASES[name]), guidance=1.7, temperature=0.8) > ALARM


def test_warps_and_forced_cells_are_kept():
    forced = torch.tensor([-1, 2, -1, -1, 0, -1])
    model = toy(**CASES["picture"])
    assert fit(GroupDecoding(), model, forced, guidance=1.5, top_k=2, top_p=0.9) > ALARM


def test_one_source_for_all_ranks_of_a_group_is_served():
    """Sets of a raster order: a layout and nothing else is what such a family needs."""

    class Sets(ToyTokenModel):
        def layout(self, grid):
            chain = raster_layout(tuple(grid))
            end = torch.tensor([1, 4, 4, 4, 6, 6])
            sources = torch.tensor([[-1], [0], [0], [0], [3], [2]])
            return replace(chain, group_end=end, sources=sources)

    assert fit(GroupDecoding(), Sets(vocab_size=3, grid=(6,), seed=3), guidance=1.5) > ALARM


def test_groups_of_one_are_sequential_decoding():
    model = ToyTokenModel(vocab_size=3, grid=(5,))
    assert fit(GroupDecoding(), model) > ALARM


def test_a_pass_draws_one_group():
    model = toy(vocab_size=2, grid=(3, 4))
    steps = list(
        GroupDecoding().decode(
            Cast(model, model.layout((3, 4))),
            model.condition([0, 1], False),
            Sampling.create([1, 2]),
        )
    )
    assert [step.committed.tolist() for step in steps] == [[n] * 2 for n in (1, 2, 3, 3, 2, 1)]
    # Of two pictures: a pass is as wide as the group that it feeds or the one that it draws.
    assert [step.head_evaluations for step in steps] == [2 * n for n in (1, 2, 3, 3, 3, 2)]
    assert bool(steps[-1].known.all()) and bool(steps[-1].done.all())


class ReadsItsOwnGroup(GroupDecoding):
    """Mutant: the second token of a group reads what the first one's source would say."""

    def next_laws(self, state):
        state.method.sources = state.method.sources.roll(1, 0)
        found = super().next_laws(state)
        state.method.sources = state.method.sources.roll(-1, 0)
        return found


class CausalWithinGroups(GroupDecoding):
    """Mutant: the tokens of a group do not see each other when they are fed."""

    def init(self, cast, *arguments):
        state = super().init(cast, *arguments)
        visible = state.cache.visible
        state.cache.visible = lambda slots, end=None: visible(slots)
        return state


@pytest.mark.parametrize("mutant", [ReadsItsOwnGroup, CausalWithinGroups])
def test_known_mistakes_are_detected(mutant):
    assert fit(mutant(), toy(**CASES["picture"]), pictures=60_000) < DETECTED


def test_options_and_slots_belong_to_pictures():
    """Different options in a batch, ragged slots, and admission in mid-run: the same pictures."""
    model = toy(vocab_size=3, grid=(3, 4), prefix_length=2, seed=3)
    layout, method = model.layout((3, 4)), GroupDecoding()
    options = [(1.0, 1.0, 0, 1.0), (2.0, 0.7, 0, 1.0), (1.5, 1.0, 2, 1.0), (3.0, 1.4, 0, 0.8)]
    parts = [Sampling.create([seed], *option) for seed, option in enumerate(options)]
    labels = [0, 1, 1, 0]
    expected = torch.cat(
        [
            decode_all(method, Cast(model, layout), model.condition([label], True), part)[0]
            for label, part in zip(labels, parts, strict=True)
        ]
    )
    together = Sampling(*(torch.cat(fields) for fields in zip(*parts, strict=True)))
    batch, _ = decode_all(method, Cast(model, layout), model.condition(labels, True), together)
    assert torch.equal(batch, expected)

    state = method.init(Cast(model, layout), slots=2)
    waiting, holds, finished, passes = list(range(4)), {}, {}, 0
    while waiting or holds:
        free = [slot for slot in range(2) if slot not in holds]
        if waiting and free and (passes % 4 == 0 or len(free) == 2):  # never in step
            picture = waiting.pop(0)
            holds[free[0]] = picture
            condition = model.condition([labels[picture]], True)
            method.admit(state, torch.tensor(free[:1]), condition, parts[picture])
        step = method.advance(state)
        passes += 1
        for slot in [slot for slot in holds if step.done[slot]]:
            finished[holds.pop(slot)] = step.tokens[slot]
    assert torch.equal(torch.stack([finished[k] for k in range(4)]), expected)


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_cached_passes_give_the_logits_of_a_full_pass(name):
    model = toy(**CASES[name])
    layout, batch = model.layout(model.config.grid), 3
    condition = model.condition([0, 1, 0], False)
    method, laws = GroupDecoding(), []
    state = method.init(Cast(model, layout), batch, guided=False)
    method.admit(state, torch.arange(batch), condition, Sampling.create([1, 2, 3]))
    for size in layout.group_end.unique().diff(prepend=torch.tensor([0])).tolist():
        law, _ = method.next_laws(state)
        laws.append(law.logits[:, :size])
        method.commit_group(state, law.draw(torch.rand(law.logits.shape[:2])))
    full = model.logits(state.tokens[:, : layout.length], condition)
    assert torch.allclose(torch.cat(laws, 1), full, atol=1e-5)


def test_layouts_that_are_no_groups_are_refused():
    model, layout = toy(grid=(3, 3)), neighbour_layout((3, 3))
    method = GroupDecoding()
    method.check(Cast(model, layout))
    overlapping = replace(layout, group_end=layout.group_end.clamp(min=2))
    with pytest.raises(ValueError, match=r"groups of this one of grid \(3, 3\) overlap"):
        method.check(Cast(model, overlapping))
    with pytest.raises(ValueError, match="predicts some rank from its own group"):
        method.check(Cast(model, replace(layout, sources=layout.sources.clamp(min=1))))
    with pytest.raises(ValueError, match="SequentialDecoding needs a next-token layout"):
        SequentialDecoding().check(Cast(model, layout))
