"""Decoding over trees: what it buys, the mistakes that change its law, and what it refuses."""

import pytest
import torch
from exactness import ALARM, DETECTED, Case, run

from visual_ar.accel import tree_acceptance, tree_decoding
from visual_ar.accel.drafts import position_drafts
from visual_ar.accel.drafts.adaptive import Pace, ladder
from visual_ar.accel.drafts.tree import shapes
from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.accel.loop.contract import Decoding
from visual_ar.accel.rules import siblings
from visual_ar.accel.tree_decoding import TreeDecoding
from visual_ar.cache import KVCache
from visual_ar.cast import Cast
from visual_ar.sampling import Sampling, take_rows
from visual_ar.testing import ToyTokenModel, decode_all
from visual_ar.tokens.codes import CategoricalLaw

CASE = Case(seed=1)
PICTURES = 40_000


def _decode(method, count=300, grid=(4, 6)):
    """Tokens, and the passes that each picture took."""
    model = ToyTokenModel(vocab_size=5, grid=grid, seed=2)
    sampling = Sampling.create(list(range(count)), guidance=1.5)
    condition = model.condition([0] * count, True)
    tokens, committed = decode_all(method, Cast(model, model.layout(grid)), condition, sampling)
    return tokens, float((committed > 0).sum(0).float().mean())


@pytest.mark.parametrize("coupling", ["maximal", "gumbel"])
def test_siblings_save_passes(coupling):
    _, chain = _decode(TreeDecoding(window=6, tree="1", coupling=coupling))
    _, tree = _decode(TreeDecoding(window=6, tree="3x2", coupling=coupling))
    _, jacobi = _decode(SpeculativeJacobiDecoding(window=6, coupling=coupling))
    assert tree < 0.92 * chain
    assert chain == pytest.approx(jacobi, rel=0.05)  # the same method, with other numbers


def test_spatial_siblings_save_passes():
    _, alone = _decode(TreeDecoding(window=3, tree="1", drafter="left-law"))
    _, together = _decode(TreeDecoding(window=3, tree="2", drafter="left-law+above-law"))
    assert together < 0.95 * alone


def test_drafts_of_the_previous_frame_are_exact():
    case = Case(vocabulary=2, grid=(2, 2, 2), seed=7)
    method = TreeDecoding(window=2, tree="2", drafter="previous-frame+above")
    assert run(method, case) > ALARM


def test_unused_columns_are_not_computed_and_change_nothing(monkeypatch):
    method = TreeDecoding(window=12, tree="2", adapt="length")
    tokens, _ = _decode(method, count=4)
    model = ToyTokenModel(vocab_size=5, grid=(4, 6), seed=2)
    sampling = Sampling.create(list(range(4)), guidance=1.5)
    condition = model.condition([0] * 4, True)
    layout = model.layout((4, 6))
    evaluated = [
        step.head_evaluations
        for step in method.decode(Cast(model, layout), condition, sampling, 12)
    ]
    assert min(evaluated) < max(evaluated) <= 4 * 13
    # As where the host reads late, every pass keeps all columns.
    monkeypatch.setattr(TreeDecoding, "advance", Decoding.advance)
    whole, _ = decode_all(method, Cast(model, layout), condition, sampling)
    assert torch.equal(whole, tokens)


def test_ladders():
    assert ladder("none", (2,), 3) == [[0, 1, 2, 0]]
    by_length = shapes(ladder("length", (2, 1), 9))
    assert by_length.trunk.tolist() == [2, 4, 9]
    assert by_length.siblings == 2
    assert by_length.exists.sum(1).tolist() == [5, 7, 12]
    by_shape = shapes(ladder("shape", (2, 2), 4))
    assert by_shape.exists.sum(1).tolist() == [9, 9, 9]  # as many drafts in every shape
    assert by_shape.trunk.tolist() == [4, 7, 8]


def test_the_pace_chooses_the_shape():
    pace = Pace(torch.tensor([3, 7, 15]), slots=2)
    assert pace.shape().tolist() == [1, 1]
    for _ in range(30):
        pace.observe(torch.tensor([0, 9]))
    assert pace.shape().tolist() == [0, 2]
    pace.admit(torch.tensor([1]))
    assert pace.shape().tolist() == [0, 1]


def _repeat_siblings(monkeypatch):
    """Siblings are drawn with replacement, and judged by laws that are only renormalised."""

    def only_renormalised(q, rows, tokens):
        left, mass = true(q, rows, tokens[..., :1].expand_as(tokens))
        left = take_rows(q.probabilities, rows.flatten(1)).unflatten(1, rows.shape[1:])
        return left, mass.clamp(min=0.1)

    def with_replacement(laws, first, u):
        law = CategoricalLaw(probabilities=laws[:, :, 0])
        rest = [law.draw(u[..., s]) for s in range(1, u.shape[-1])]
        return torch.stack([first, *rest], -1)

    true = siblings.drawn_from
    monkeypatch.setattr(position_drafts, "draw_in_turn", with_replacement)
    monkeypatch.setattr(siblings, "drawn_from", only_renormalised)


def _siblings_of_another_law(monkeypatch):
    """Siblings come from another law than the one that judges them, as published for SJD-PAC."""
    true = position_drafts.draw_in_turn
    monkeypatch.setattr(
        position_drafts, "draw_in_turn", lambda laws, *rest: true((laws > 0).to(laws), *rest)
    )


def _residual_from_target(monkeypatch):
    """After all siblings are refused the token is drawn from p."""
    true = tree_acceptance.recursive_rejection
    monkeypatch.setattr(
        tree_acceptance, "recursive_rejection", lambda p, *rest: (true(p, *rest)[0], p)
    )


def _path_left_in_place(monkeypatch):
    """A kept sibling's keys and values stay where the trunk's belong."""
    monkeypatch.setattr(KVCache, "move", lambda *_: None)


def _sees_cousins(monkeypatch):
    """Every draft sees all drafts fed before it."""
    true = tree_decoding.visible

    def everything(sees, cache, root):
        return true(torch.ones_like(sees).tril(), cache, root)

    monkeypatch.setattr(tree_decoding, "visible", everything)


SPATIAL = TreeDecoding(window=3, tree="2x2", drafter="left-law+above-law")
MAXIMAL = TreeDecoding(window=3, tree="3x2", coupling="maximal")
MUTANTS = {
    "siblings repeat": (_repeat_siblings, SPATIAL),
    "siblings of another law": (
        _siblings_of_another_law,
        TreeDecoding(window=3, tree="3x2", coupling="maximal"),
    ),
    "residual from p": (_residual_from_target, SPATIAL),
    "path left in place": (_path_left_in_place, SPATIAL),
    "drafts see cousins": (_sees_cousins, SPATIAL),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_known_mistakes_are_detected(name, monkeypatch):
    mutant, method = MUTANTS[name]
    mutant(monkeypatch)
    assert run(method, CASE, PICTURES) < DETECTED


class ShapeFromItsDrafts(TreeDecoding):
    """Mutant: whether a draft is tested depends on the draft itself."""

    def step(self, state):
        buffers = state.method
        first = buffers.drafter._q.gather(-1, buffers.drafter._tokens[..., None])[:, 0, 0]
        buffers.tree = buffers.trees.pick((first >= 0.4).long())
        return super().step(state)

    def init(self, *arguments, **named):
        state = super().init(*arguments, **named)
        # The second shape has no draft to test.
        state.method.trees.exists[1, 1:] = False
        state.method.trees.children[1] = -1
        state.method.trees.trunk[1] = 0
        return state


def test_a_shape_that_depends_on_its_drafts_is_detected():
    method = ShapeFromItsDrafts(window=3, tree="1", coupling="maximal", adapt="length")
    assert run(method, CASE, PICTURES) < DETECTED


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tree": "3", "drafter": "left"}, "tree 3 needs 3 drafts at one position, drafter left "),
        ({"tree": "3x2", "drafter": "left+above"}, "copies 2; jacobi and the laws of neighbours"),
        ({"tree": "0"}, "tree must be whole numbers of at least 1 joined by x, .* got '0'"),
        ({"tree": "2x"}, "got '2x'"),
        ({"drafter": "oracle"}, "drafter must be jacobi, head, or one or more of .* got 'oracle'"),
        ({"drafter": "left-law+jacobi"}, "got 'left-law\\+jacobi'"),
        (
            {"coupling": "tight"},
            "coupling must be one of .* got 'tight'",
        ),
        ({"adapt": "often"}, "adapt must be one of none, length, shape, got 'often'"),
        ({"window": 0}, "window must be 'auto' or a whole number"),
        ({"tree": "9x9x9"}, "tree must have fewer than 200 drafts, got '9x9x9'"),
        ({"tree": "99999999x99999999"}, "tree must have fewer than 200 drafts"),
        ({"tree": "12x12", "window": 64}, "tree 12x12 with window 64 must have fewer than 200"),
        ({"rule": "bitwise"}, "rule bitwise judges the drafts of one chain"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        TreeDecoding(**options)


def test_what_it_cannot_serve_is_refused():
    model = ToyTokenModel()
    layout = model.layout((7,))
    with pytest.raises(ValueError, match="init must be one of"):
        TreeDecoding(init="nearest").check(Cast(model, layout))
    with pytest.raises(ValueError, match="needs several frames"):
        TreeDecoding(drafter="previous-frame", tree="1").check(Cast(model, layout))
    model.capabilities = frozenset()
    with pytest.raises(ValueError, match=r"needs a model with \['trees'\]"):
        TreeDecoding().check(Cast(model, layout))


def test_an_automatic_window_leaves_room_for_the_tree():
    assert TreeDecoding().windows() == TreeDecoding.candidates
    wide = TreeDecoding(tree="12x12")
    assert wide.windows() == (2, 4, 8, 16, 32)
    model = ToyTokenModel()
    for window in wide.windows():
        wide.init(Cast(model, model.layout((7,))), slots=1, window=window)


def test_a_tree_survives_its_configuration():
    method = TreeDecoding(window=5, tree=2, drafter="above-law", adapt="length")
    again = TreeDecoding.from_config(method.config)
    assert dict(again.config) == dict(method.config) and again.lossless
