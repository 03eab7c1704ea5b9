"""Lossy rules on siblings: the law they emit, what they spend, the lossless limit, refusals."""

import pytest
import torch

from visual_ar.accel.rules.exact import Exact
from visual_ar.accel.rules.gsd import Grouped
from visual_ar.accel.rules.lantern import Lantern
from visual_ar.accel.rules.lantern_plus import LanternPlus
from visual_ar.accel.rules.omega import Omega
from visual_ar.accel.rules.parse import parse_rule
from visual_ar.accel.rules.siblings import drawn_from, recursive_rejection, relaxed_rejection
from visual_ar.accel.rules.typical import Typical
from visual_ar.accel.tree_decoding import TreeDecoding
from visual_ar.cast import Cast
from visual_ar.sampling import Sampling
from visual_ar.testing import (
    ToyTokenModel,
    chi_square,
    decode_all,
    enumerate_law,
    random_draft_head,
)
from visual_ar.tokens.codes import CategoricalLaw

CODES = 6
ALARM, DETECTED = 1e-4, 1e-9
LOSSY = {
    "omega": "omega/omega=1.6",
    "typical": "typical/epsilon=0.2/alpha=0.5",
    "grouped": "grouped/size=2/distance=5/gap=0.5",
    "lantern": "lantern/neighbours=3/delta=0.3",
    "lantern++": "lantern++/neighbours=3/factor=40",
}


class Codes:
    """What a rule reads of a tokenizer: a code book of random vectors."""

    codebook_size = CODES

    def code_vectors(self):
        return torch.randn(CODES, 3, generator=torch.Generator().manual_seed(0)) * 0.7

    def neighbours(self, k):
        vectors = self.code_vectors()
        return torch.cdist(vectors, vectors).fill_diagonal_(torch.inf).argsort(-1)[:, :k]


def _law(*shape, seed):
    laws = torch.rand(*shape, CODES, generator=torch.Generator().manual_seed(seed)) ** 3
    return laws.double() / laws.double().sum(-1, keepdim=True)


def _summed(rule, p, q, rows):
    """Emitted law and mean estimate of a family, by summing over all tokens of the siblings.

    p: [V]; q: [M, V]; rows: a law for every sibling.
    """
    digits = torch.arange(CODES)
    tokens = torch.cartesian_prod(*[digits] * len(rows)).view(-1, 1, len(rows))
    count = len(tokens)
    target = CategoricalLaw(probabilities=p.expand(count, 1, -1))
    drafted = CategoricalLaw(probabilities=q.expand(count, -1, -1))
    of = torch.tensor(rows).expand_as(tokens)
    left, mass = drawn_from(drafted, of, tokens)
    weight = (left.gather(-1, tokens[..., None])[..., 0] / mass.clamp(min=1e-30)).prod(-1)[:, 0]
    there = torch.ones_like(tokens, dtype=torch.bool)
    depth = torch.zeros(1, dtype=torch.int64)
    chances, rest, spent = relaxed_rejection(rule, target, drafted, of, tokens, there, depth)
    law, reached = torch.zeros_like(p), weight
    for s in range(len(rows)):
        law.index_add_(0, tokens[:, 0, s], reached * chances[:, 0, s])
        reached = reached * (1 - chances[:, 0, s])
    law += (reached[:, None] * rest.probabilities[:, 0]).sum(0)
    assert float(weight.sum()) == pytest.approx(1.0) == float(law.sum())
    return law, float((weight * spent[:, 0]).sum())


@pytest.mark.parametrize("rows", [(0, 0, 0), (0, 1, 0), (0,)])
@pytest.mark.parametrize("name", LOSSY)
def test_the_estimate_is_no_less_than_what_is_spent(name, rows):
    rule, spent = parse_rule(LOSSY[name]).bind(Codes(), torch.device("cpu")), []
    for seed in range(4):
        p, q = _law(seed=seed), _law(2, seed=50 + seed)
        law, estimate = _summed(rule, p, q, rows)
        spent.append(0.5 * float((law - p).abs().sum()))
        assert spent[-1] <= estimate + 1e-9
    assert max(spent) > 0.01


def test_the_estimate_of_two_siblings_by_hand():
    """p = (1/2, 1/2, 0), q = (0, 1/2, 1/2), omega = 2; the first sibling is 2, the second 1.

    2 is never kept. Behind it all of p is left but what q takes from 1: the target is (1, 0, 0),
    and 1, which is now impossible, is refused as well, at no cost.
    """
    p, q = (torch.tensor([[law]]) for law in ([0.5, 0.5, 0.0], [0.0, 0.5, 0.5]))
    laws = [CategoricalLaw(probabilities=law) for law in (p, q)]
    rows, depth = torch.zeros(1, 1, 2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    there = torch.ones(1, 1, 2, dtype=torch.bool)
    chances, rest, spent = relaxed_rejection(
        Omega(omega=2.0), *laws, rows, torch.tensor([[[2, 1]]]), there, depth
    )
    assert chances.tolist() == [[[0.0, 0.0]]] and float(spent) == 0
    assert rest.probabilities.tolist() == [[[1.0, 0.0, 0.0]]]


def test_at_its_lossless_limit_a_rule_is_recursive_rejection():
    draw = torch.Generator().manual_seed(1)
    p, q = (CategoricalLaw(probabilities=_law(50, n, seed=n)) for n in (1, 2))
    tokens = torch.rand(50, CODES, generator=draw).argsort(-1)[:, None, :3]
    rows, there = torch.tensor([0, 1, 0]).expand_as(tokens), tokens >= 0
    depth = torch.zeros(1, dtype=torch.int64)
    chances, rest = recursive_rejection(p, q, rows, tokens, there)
    relaxed = relaxed_rejection(Omega(omega=1.0), p, q, rows, tokens, there, depth)
    assert torch.allclose(relaxed[0], chances)
    assert torch.allclose(relaxed[1].probabilities, rest.probabilities)
    assert float(relaxed[2].abs().max()) < 1e-12


@pytest.mark.parametrize(
    "options",
    [
        {"window": 6, "tree": "3x2"},
        {"window": 6, "tree": "2x2", "adapt": "shape"},
        {"window": 3, "tree": "2", "drafter": "left-law+above-law"},
        {"window": 3, "tree": "2x2", "drafter": "head"},
    ],
)
def test_trees_at_the_lossless_limit_draw_the_lossless_pictures(options):
    model = ToyTokenModel(5, (4, 4), hidden_size=8, seed=2)
    cast = Cast(model, model.layout((4, 4)), draft_head=random_draft_head(model))
    sampling = Sampling.create(list(range(20)), guidance=1.5)
    arguments = (cast, model.condition([0] * 20, True), sampling)
    exact, passes = decode_all(TreeDecoding(**options), *arguments)
    relaxed, again = decode_all(TreeDecoding(**options, rule="omega/omega=1"), *arguments)
    assert torch.equal(exact, relaxed) and torch.equal(passes, again)
    _, fewer = decode_all(TreeDecoding(**options, rule="omega/omega=4"), *arguments)
    assert int((fewer > 0).sum()) < int((passes > 0).sum())


def _first_tokens(rule, pictures):
    """First tokens of toys, what the first pass spent, the true law, and the uniform first q."""
    model = ToyTokenModel(CODES, (4,), seed=3)
    method = TreeDecoding(window=2, tree="3", rule=rule)
    arguments = (model.condition([0] * pictures, False), Sampling.create(list(range(pictures))))
    steps = list(method.decode(Cast(model, model.layout((4,)), Codes()), *arguments))
    p = enumerate_law(model, 0, Sampling.create([0])).view(CODES, -1).sum(1)
    return steps[-1].tokens[:, 0], steps[0].spent, p, torch.full((1, CODES), 1 / CODES).double()


@pytest.mark.parametrize("name", LOSSY)
def test_a_tree_emits_and_spends_what_its_rule_says(name):
    drawn, spent, p, q = _first_tokens(LOSSY[name], 20_000)
    law, estimate = _summed(
        parse_rule(LOSSY[name]).bind(Codes(), torch.device("cpu")), p, q, (0, 0, 0)
    )
    assert chi_square(drawn, law) > ALARM
    assert chi_square(drawn, p) < DETECTED
    assert float(spent.mean()) == pytest.approx(estimate, abs=0.02)


def test_siblings_judged_by_the_first_target_are_detected(monkeypatch):
    """Mutant: a refusal leaves the target as it was."""
    p, q = _law(seed=0), _law(1, seed=50)
    honest, _ = _summed(Exact(), p, q, (0, 0, 0))
    assert torch.allclose(honest, p)
    law, _ = _summed(Omega(omega=1.6), p, q, (0, 0, 0))
    monkeypatch.setattr(Omega, "correction", lambda rule, p, q, drafts, position: p)
    wrong, _ = _summed(Omega(omega=1.6), p, q, (0, 0, 0))
    assert float((wrong - law).abs().sum()) > 0.02
    monkeypatch.setattr(Exact, "correction", lambda rule, p, q, drafts, position: p)
    biased, _ = _summed(Exact(), p, q, (0, 0, 0))
    assert float((biased - p).abs().sum()) > 0.02


def test_omega_decays_with_the_depth_of_a_draft():
    """Chances behind kept drafts are those of a chain at the same place."""
    rule = Omega(omega=3.0, decay=0.5)
    p, q = (CategoricalLaw(probabilities=_law(1, 4, seed=n)) for n in (3, 4))
    tokens = torch.tensor([[0, 1, 2, 3]])
    chain = rule.chance(p, q, tokens[..., None])[..., 0]
    for depth in range(4):
        one = torch.tensor([[depth]])
        laws = p.rows(one), q.rows(one)
        token, there = tokens[:, depth : depth + 1, None], torch.ones(1, 1, 1, dtype=torch.bool)
        chances, _, _ = relaxed_rejection(rule, *laws, torch.zeros_like(token), token, there, one)
        assert float(chances) == pytest.approx(float(chain[0, depth]))


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(ValueError, match=r"rule block judges .* the tree that drafter head fills"):
        TreeDecoding(drafter="head", rule="block")
    with pytest.raises(ValueError, match=r"omega of rule omega must be at least 1, got 0\.5"):
        TreeDecoding(rule="omega/omega=0.5")
    model = ToyTokenModel()
    for rule in (Grouped, Lantern, LanternPlus):
        with pytest.raises(ValueError, match="compares codes and needs a tokenizer"):
            TreeDecoding(rule=rule.name).check(Cast(model, model.layout((7,))))
    assert not TreeDecoding(rule=Typical.name).lossless
    assert TreeDecoding().lossless
