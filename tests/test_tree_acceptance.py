"""Recursive rejection: exact by enumeration, with the mistakes that are known not to be."""

import itertools

import pytest
import torch

from visual_ar.accel import tree_acceptance
from visual_ar.accel.drafts.drafter import Draft
from visual_ar.accel.drafts.tree import shapes
from visual_ar.accel.rules import siblings
from visual_ar.accel.rules.exact import Exact
from visual_ar.accel.rules.siblings import draw_in_turn, drawn_from, recursive_rejection
from visual_ar.accel.tree_acceptance import judge
from visual_ar.sampling import take_rows
from visual_ar.testing import chi_square, sequence_index
from visual_ar.tokens.codes import CategoricalLaw

CODES, SIBLINGS = 4, 3


def _laws(count, seed=0, zeros=False):
    draw = torch.Generator().manual_seed(seed)
    laws = torch.rand(1, count, CODES, generator=draw, dtype=torch.float64) ** 2
    if zeros:
        laws[:, ::2, 1] = 0
        laws[:, 1::2, :2] = 0
    return laws / laws.sum(-1, keepdim=True)


def without(law, tokens):
    """A law without some tokens, renormalised; all zero where no mass is left."""
    rest = law.scatter(-1, tokens, 0.0) if tokens.numel() else law
    return rest / rest.sum(-1, keepdim=True).clamp(min=1e-30)


def _emitted(p, q, rows, draw=without):
    """Law of the token that a family of siblings gives, by summing over all their tokens.

    draw: the law a sibling is drawn from, of its row of q and the tokens before it.
    """
    law = torch.zeros(CODES, dtype=torch.float64)
    there = torch.ones(1, 1, SIBLINGS, dtype=torch.bool)
    for tokens in itertools.product(range(CODES), repeat=SIBLINGS):
        kids = torch.tensor([[tokens]])
        weight = torch.ones((), dtype=torch.float64)
        for s, token in enumerate(tokens):
            drawn = draw(q[:, rows[s] : rows[s] + 1], kids[..., :s])[0, 0]
            # With no law left the drawn token is arbitrary; say the first.
            weight = weight * (drawn[token] if float(drawn.sum()) > 0 else float(token == 0))
        if float(weight) == 0:
            continue
        target, drafted = (CategoricalLaw(probabilities=x) for x in (p, q))
        chances, rest = recursive_rejection(target, drafted, torch.tensor([[rows]]), kids, there)
        for s, token in enumerate(tokens):
            law[token] += weight * chances[0, 0, s]
            weight = weight * (1 - chances[0, 0, s])
        law += weight * rest.probabilities[0, 0]
    return law


def _error(emitted, p):
    return 0.5 * float((emitted - p[0, 0]).abs().sum())


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("rows", [(0, 0, 0), (0, 1, 0), (2, 1, 0)])
def test_recursive_rejection_is_exact(rows, zeros):
    for seed in range(5):
        p, q = _laws(1, 100 + seed), _laws(3, seed, zeros)
        assert _error(_emitted(p, q, rows), p) < 1e-12


def test_copies_that_agree_are_one_draft():
    p, q = _laws(1), torch.eye(CODES, dtype=torch.float64)[None, [2, 2, 1]]
    assert _error(_emitted(p, q, (0, 1, 2)), p) < 1e-12
    there = torch.ones(1, 1, 3, dtype=torch.bool)
    laws = (CategoricalLaw(probabilities=law) for law in (p, q))
    rows, tokens = torch.tensor([[[0, 1, 2]]]), torch.tensor([[[2, 2, 1]]])
    chances, _ = recursive_rejection(*laws, rows, tokens, there)
    assert float(chances[0, 0, 1]) == 0 < float(chances[0, 0, 2])


def test_a_repeated_sibling_counts_as_not_made():
    """So drawing with replacement is exact as well, only of less use."""
    p, q = _laws(1, 103), _laws(1)
    assert _error(_emitted(p, q, (0, 0, 0), draw=lambda law, before: law), p) < 1e-12


def test_siblings_drawn_with_replacement_and_all_judged_are_detected(monkeypatch):
    """Mutant: their laws are renormalised as without replacement, yet repeats are tested again."""

    def only_renormalised(q, rows, tokens):
        _, mass = drawn_from(q, rows, tokens)
        whole = take_rows(q.probabilities, rows.flatten(1)).unflatten(1, rows.shape[1:])
        return whole, mass.clamp(min=0.1)

    monkeypatch.setattr(siblings, "drawn_from", only_renormalised)
    p, q = _laws(1, 103), _laws(1)
    assert _error(_emitted(p, q, (0, 0, 0), draw=lambda law, before: law), p) > 5e-3


def test_a_residual_that_is_not_renormalised_is_detected(monkeypatch):
    p, q = _laws(1, 100), _laws(1)
    monkeypatch.setattr(
        CategoricalLaw, "or_instead", lambda self, rest: CategoricalLaw(probabilities=rest)
    )
    emitted = _emitted(p, q, (0, 0, 0))
    assert _error(emitted / emitted.sum(), p) > 1e-3


def test_siblings_drawn_from_the_residual_are_detected():
    """Mutant, as published for SJD-PAC: the law that said no gives siblings, p judges them."""
    p, q, old = _laws(1, 103), _laws(1), _laws(1, 50)
    rest = (q - old).clamp(min=0)
    rest = rest / rest.sum(-1, keepdim=True)
    emitted = _emitted(p, q, (0, 0, 0), draw=lambda law, before: rest if before.numel() else law)
    assert _error(emitted, p) > 5e-3


def _judged(u, parents=(0, 1, 0, 3)):
    """Verdict on a tree of two branches of two drafts; everything is drafted from p itself."""
    tree = shapes([parents]).pick(torch.tensor([0]))
    law = torch.full((1, len(parents) + 1, CODES), 0.25)
    p = CategoricalLaw(probabilities=law)
    flat = CategoricalLaw(probabilities=law[:, :1])
    tokens = torch.tensor([[0, 1, 2, 3]])[:, : len(parents)]
    draft = Draft(tokens, flat, torch.zeros_like(tokens))
    return judge(tree, p, draft, torch.tensor([[0.5, *u]]), Exact())


def test_a_verdict_follows_the_first_kept_child():
    verdict = _judged([0.1, 0.1, 0.1, 0.1])
    assert (int(verdict.run), int(verdict.last)) == (2, 2)
    assert verdict.path.tolist() == [[0, 1, 2]]
    # Behind a leaf comes a token from p.
    assert verdict.correction.probabilities[0, 0].tolist() == [0.25] * 4


def test_a_verdict_takes_a_sibling_where_the_first_is_refused(monkeypatch):
    """With q = p nothing is refused, so the target is made to rule the first draft out."""
    true = tree_acceptance.recursive_rejection

    def harder(p, q, rows, tokens, there):
        law = p.probabilities.clone()
        law[..., 0] = 0
        return true(CategoricalLaw(probabilities=law / 0.75), q, rows, tokens, there)

    monkeypatch.setattr(tree_acceptance, "recursive_rejection", harder)
    verdict = _judged([0.1, 0.1, 0.1, 0.1])
    assert verdict.path.tolist() == [[0, 3, 4]] and int(verdict.run) == 2


def test_siblings_lose_the_tokens_before_them():
    law = CategoricalLaw(probabilities=torch.tensor([[[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]]]))
    left, mass = drawn_from(law, torch.tensor([[[0, 1, 0]]]), torch.tensor([[[1, 0, 2]]]))
    assert left[0, 0].tolist() == [[0.5, 0.25, 0.25], [0.0, 0.0, 0.0], [0.0, 0.0, 0.25]]
    assert mass[0, 0].tolist() == [1.0, 0.0, 0.25]


def test_siblings_are_drawn_without_those_before_them():
    """By their numbers, from laws that take turns; p value of a fit to the product of laws."""
    laws = _laws(2, 5).float().expand(30_000, -1, -1)[:, None]
    u = torch.rand(len(laws), 1, 3, generator=torch.Generator().manual_seed(0))
    first = CategoricalLaw(probabilities=laws[:, :, 0]).draw(u[..., 0])
    drawn = draw_in_turn(laws, first, u)[:, 0]
    law = torch.zeros(CODES**3, dtype=torch.float64)
    for tokens in itertools.product(range(CODES), repeat=3):
        kids, weight = torch.tensor([[tokens]]), 1.0
        for s, token in enumerate(tokens):
            weight *= float(without(laws[:1, :, s % 2].double(), kids[..., :s])[0, 0, token])
        law[sequence_index(kids[0], CODES)] = weight
    assert float(law.sum()) == pytest.approx(1.0)
    assert chi_square(sequence_index(drawn, CODES), law) > 1e-4
