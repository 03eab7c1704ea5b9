"""The law that a draft head decodes with, alone and on trees, and the mistakes that change it."""

from dataclasses import dataclass

import pytest
import torch
from diffusers import SchedulerMixin  # noqa: F401
from diffusers.configuration_utils import register_to_config

from visual_ar.accel.draft_head import DraftHeadDecoding
from visual_ar.accel.drafts import drafter_kinds as drafters
from visual_ar.accel.drafts.head_drafter import HeadDrafter
from visual_ar.accel.loop.contract import Decoding
from visual_ar.accel.rules.block import Block
from visual_ar.accel.rules.exact import Exact
from visual_ar.accel.tree_decoding import TreeDecoding
from visual_ar.cast import Cast
from visual_ar.sampling import Sampling
from visual_ar.testing import (
    ToyTokenModel,
    chi_square,
    decode_all,
    enumerate_law,
    random_draft_head,
    sequence_index,
)
from visual_ar.tokens.codes import CategoricalLaw
from visual_ar.tokens.law import Redrawn

ALARM, DETECTED = 1e-4, 1e-9


def toy(*arguments, **options) -> Cast:
    """A toy with an untrained head. Arguments: see `ToyTokenModel`."""
    model = ToyTokenModel(*arguments, hidden_size=8, **options)
    layout = model.layout(model.config.grid)
    return Cast(model, layout, draft_head=random_draft_head(model))


def fit(method: Decoding, pictures: int, length: int = 5) -> float:
    """p value of the fit of many pictures of a guided toy to their enumerated law."""
    cast = toy(3, (length,), 2, seed=1)
    model = cast.model
    sampling = Sampling.create(list(range(pictures)), 2.0, 0.8)
    condition = model.condition([0] * pictures, True)
    tokens, _ = decode_all(method, cast, condition, sampling)
    law = enumerate_law(model, 0, Sampling.create([0], 2.0, 0.8))
    return chi_square(sequence_index(tokens, 3), law)


class UnguidedDraftLaw(DraftHeadDecoding):
    """Mutant: drafts are drawn from the guided law and tested against the unguided one."""

    @register_to_config
    def __init__(self) -> None:
        super().__init__(window=2)

    def _draft(self, state, ranks, u):
        drafts, _ = super()._draft(state, ranks, u)
        scale, state.guidance = state.guidance, torch.ones_like(state.guidance)
        _, q = super()._draft(state, ranks, u)
        state.guidance = scale
        return drafts, q


@dataclass(frozen=True)
class FromTarget(Exact):
    """A rule that corrects from p instead of norm((p - q)+)."""

    def replacement(self, p, q, drafts, position, numbers):
        here = position[:, None]
        return Redrawn(p.rows(here).draw(numbers.instead.gather(1, here)))


class NoResidual(DraftHeadDecoding):
    """Mutant: the residual is missing."""

    @register_to_config
    def __init__(self) -> None:
        super().__init__(window=3)
        self._rule = FromTarget()


class LikeliestDraft(DraftHeadDecoding):
    """Mutant: drafts are the likeliest tokens, tested as if they had been drawn."""

    @register_to_config
    def __init__(self) -> None:
        super().__init__(window=2)

    def _draft(self, state, ranks, u):
        _, q = super()._draft(state, ranks, u)
        return q.probabilities.argmax(-1), q


@pytest.mark.parametrize("adapt", ["none", "shape", "length"])
def test_trees_of_a_head_are_exact(adapt):
    method = TreeDecoding(window=3, tree="2x2", drafter="head", adapt=adapt)
    assert fit(method, 8_000) > ALARM


class LikeliestSiblings(HeadDrafter):
    """Mutant: siblings are the likeliest tokens, as in EAGLE-2, but tested as if drawn."""

    def _draw(self, tree, filling, depth, parents, u):
        super()._draw(tree, filling, depth, parents, u)
        likeliest = filling.q[:, parents].topk(tree.siblings).indices
        for place, kids in enumerate(tree.children[:, parents].unbind(-1)):
            column = torch.where(kids >= 0, kids, tree.columns)
            filling.tokens.scatter_(1, column, likeliest[..., place])


def test_the_likeliest_siblings_are_detected(monkeypatch):
    monkeypatch.setattr(drafters, "HeadDrafter", LikeliestSiblings)
    assert fit(TreeDecoding(window=2, tree="2", drafter="head"), 10_000) < DETECTED


def test_a_tree_needs_a_draft_head_too():
    model = ToyTokenModel()
    with pytest.raises(ValueError, match="drafter head needs a model with a draft head"):
        TreeDecoding(drafter="head").check(Cast(model, model.layout((7,))))


@pytest.mark.parametrize("mutant", [UnguidedDraftLaw, NoResidual, LikeliestDraft])
def test_known_mistakes_are_detected(mutant):
    assert fit(mutant(), 10_000) < DETECTED


@pytest.mark.parametrize("anew", [True, False])
def test_block_verification_needs_drafts_drawn_anew(anew):
    """A draft that it has looked at and refused is no draw from its law any more.

    Two positions with laws that show it: total variation 0.2 when the second draft is kept for the
    next verification, as a chance search over such laws found.
    """
    draw = torch.Generator().manual_seed(0)
    u = torch.rand(6, 20_000, generator=draw)
    p1, q1 = torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
    p2, q2 = torch.tensor([[0.9, 0.1], [0.5, 0.5]]), torch.tensor([[0.5, 0.5], [0.7, 0.3]])
    first = (u[0] > q1[0]).long()
    second = (u[1] > q2[first, 0]).long()
    drafts = torch.stack([first, second], 1)
    p = CategoricalLaw(probabilities=torch.stack([p1.expand(len(first), -1), p2[first]], 1))
    q = CategoricalLaw(probabilities=torch.stack([q1.expand(len(first), -1), q2[first]], 1))
    run = Block().run(p, q, drafts, u[2:4].T)
    corrected = Block().correction(p, q, drafts, run.clamp(max=1)).draw(u[4, :, None])[:, 0]
    tokens = torch.where(run > 0, first, corrected)
    target = CategoricalLaw(probabilities=p2[tokens][:, None])
    later = target.draw(u[5, :, None])
    if not anew:
        old = CategoricalLaw(probabilities=q2[first][:, None])
        number = torch.rand(len(first), 1, generator=draw)
        passes = target.keep(old, second[:, None], number)
        later = torch.where(passes, second[:, None], target.redraw(old, u[5, :, None]))
    behind = torch.where(run > 1, second, torch.where(run > 0, corrected, later[:, 0]))
    fits = chi_square(2 * tokens + behind, (p1[:, None] * p2).flatten())
    assert fits > ALARM if anew else fits < DETECTED


def test_block_verification_keeps_more_than_the_exact_test():
    cast = toy(3, (12,), seed=1)
    count = 4000
    sampling, condition = (
        Sampling.create(list(range(count))),
        cast.model.condition([0] * count, False),
    )
    lengths = {}
    for rule in ("exact", "block"):
        method = DraftHeadDecoding(window=4, rule=rule)
        _, runs = decode_all(method, cast, condition, sampling)
        lengths[rule] = float(runs[runs > 0].double().mean())
    assert lengths["block"] > lengths["exact"] > 1


def test_a_head_that_knows_the_law_is_always_believed(monkeypatch):
    """Tests of p against q = p keep every draft, so a pass commits the whole window."""
    monkeypatch.setattr(CategoricalLaw, "keep", lambda p, q, drafts, u: torch.ones_like(u) > 0)
    cast = toy(3, (12,))
    method = DraftHeadDecoding(window=4)
    sampling, condition = Sampling.create([1, 2]), cast.model.condition([0, 1], False)
    _, runs = decode_all(method, cast, condition, sampling)
    assert runs.tolist() == [[4, 4]] * 3
