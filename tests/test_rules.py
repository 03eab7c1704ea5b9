"""Acceptance rules: their formulas, the law they emit, what they spend, and what they refuse."""

import pytest
import torch

from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.accel.rules import lantern
from visual_ar.accel.rules.block import Block
from visual_ar.accel.rules.exact import Exact
from visual_ar.accel.rules.gsd import cluster_of_all, cluster_of_drafts
from visual_ar.accel.rules.lantern import Lantern, aggregated
from visual_ar.accel.rules.parse import RULES, parse_rule
from visual_ar.accel.rules.rule import Rule
from visual_ar.cast import Cast
from visual_ar.sampling import Sampling
from visual_ar.testing import ToyTokenModel, chi_square, decode_all, enumerate_law
from visual_ar.tokenizers.vq import VQTokenizer
from visual_ar.tokens.codes import CategoricalLaw

CODES = 6
ALARM, DETECTED = 1e-4, 1e-9
LOSSY = {
    "omega": "omega/omega=1.6",
    "omega with decay": "omega/omega=2.0/decay=0.7",
    "typical": "typical/epsilon=0.2/alpha=0.5",
    "grouped": "grouped/size=2/distance=5/gap=0.5",
    "lantern": "lantern/neighbours=3/delta=0.3",
    "lantern++": "lantern++/neighbours=3/factor=6",
}


@pytest.fixture(scope="module")
def tokenizer() -> VQTokenizer:
    torch.manual_seed(0)
    return VQTokenizer(
        channels=4,
        channel_multipliers=(1, 2),
        residual_blocks=1,
        latent_channels=8,
        codebook_size=CODES,
        codebook_dim=3,
        norm_groups=2,
    )


def _laws(seed: int = 0, positions: int = 4) -> tuple[CategoricalLaw, CategoricalLaw]:
    draw = torch.Generator().manual_seed(seed)
    both = torch.rand(2, 3, positions, CODES, generator=draw) ** 3
    p, q = (both / both.sum(-1, keepdim=True)).unbind(0)
    return CategoricalLaw(probabilities=p), CategoricalLaw(probabilities=q)


def _first_token(rule: str, tokenizer: VQTokenizer, pictures: int, measure_tv: bool = False):
    """Draws pictures of a toy. Returns first tokens, p and the uniform q, and spent of pass one."""
    model = ToyTokenModel(CODES, (4,), seed=3)
    layout = model.layout((4,))
    sampling = Sampling.create(list(range(pictures)))
    method = SpeculativeJacobiDecoding(window=2, rule=rule, measure_tv=measure_tv)
    steps = list(
        method.decode(
            Cast(model, layout, tokenizer), model.condition([0] * pictures, False), sampling
        )
    )
    p = enumerate_law(model, 0, Sampling.create([0])).view(CODES, -1).sum(1).float()
    laws = (CategoricalLaw(probabilities=law[None, None]) for law in (p, torch.full_like(p, 1 / 6)))
    return steps[-1].tokens[:, 0], *laws, steps[0].spent


@pytest.mark.parametrize("name", LOSSY)
def test_a_lossy_rule_emits_the_law_it_says(name: str, tokenizer: VQTokenizer) -> None:
    rule = parse_rule(LOSSY[name]).bind(tokenizer, torch.device("cpu"))
    drawn, p, q, _ = _first_token(LOSSY[name], tokenizer, 40_000)
    law = rule.emitted(p, q).probabilities[0, 0].double()
    assert float(law.sum()) == pytest.approx(1.0, abs=1e-5)
    assert chi_square(drawn, law) > ALARM
    assert chi_square(drawn, p.probabilities[0, 0].double()) < DETECTED


@pytest.mark.parametrize("name", ["grouped", "lantern/neighbours=2", "lantern++/neighbours=2"])
def test_tables_lie_where_the_laws_are(name: str, tokenizer: VQTokenizer) -> None:
    bound = parse_rule(name).bind(tokenizer, torch.device("meta"))
    assert bound.codes.device.type == "meta" != tokenizer.device.type


@pytest.mark.parametrize("name", LOSSY)
def test_what_a_lossy_rule_spends(name: str, tokenizer: VQTokenizer) -> None:
    rule = parse_rule(LOSSY[name]).bind(tokenizer, torch.device("cpu"))
    _, p, q, estimate = _first_token(LOSSY[name], tokenizer, 20_000)
    _, _, _, measured = _first_token(LOSSY[name], tokenizer, 10, measure_tv=True)
    assert estimate is not None and measured is not None
    true = float(rule.emitted(p, q).distance(p))
    assert true > 0.01
    assert torch.allclose(measured, torch.full((10,), true), atol=1e-5)
    # The estimate is the mean over drafts of q, of which there are six: sum it up.
    every = torch.arange(CODES)[:, None]
    wide = [CategoricalLaw(probabilities=law.probabilities.expand(CODES, 1, -1)) for law in (p, q)]
    bound = float(rule.spent(*wide, every, exactly=False).mean())
    assert bound >= true - 1e-6
    assert float(estimate.mean()) == pytest.approx(bound, abs=0.02)


@pytest.mark.parametrize("name", ["exact", "block"])
def test_lossless_rules_spend_nothing(name: str, tokenizer: VQTokenizer) -> None:
    p, q = _laws()
    drafts = q.draw(torch.rand(3, 4, generator=torch.Generator().manual_seed(1)))
    for exactly in (True, False):
        assert float(RULES[name]().spent(p, q, drafts, exactly).abs().max()) < 1e-6
    coupling = "independent" if name == "block" else "maximal"
    assert SpeculativeJacobiDecoding(coupling=coupling, rule=name).lossless
    assert not SpeculativeJacobiDecoding(rule="omega").lossless


def test_a_wrong_residual_is_not_the_law_it_says(
    tokenizer: VQTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant, as published: the residual loses one neighbour more than was aggregated."""
    name = "lantern/neighbours=3/delta=0.12"
    rule = parse_rule(name).bind(tokenizer, torch.device("cpu"))
    _, p, q, _ = _first_token(name, tokenizer, 10)
    law = rule.emitted(p, q).probabilities[0, 0].double()
    honest = Lantern.correction

    def one_more(self, p, q, drafts, position):
        true = lantern.aggregated

        def wider(p, tokens, neighbours, bound):
            mass, near, inside = true(p, tokens, neighbours, bound)
            count = inside.sum(-1, keepdim=True)
            return mass, near, torch.arange(near.shape[-1]) <= count

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lantern, "aggregated", wider)
            return honest(self, p, q, drafts, position)

    monkeypatch.setattr(Lantern, "correction", one_more)
    drawn, _, _, _ = _first_token(name, tokenizer, 40_000)
    assert chi_square(drawn, law) < DETECTED


def test_chances_by_hand() -> None:
    p = CategoricalLaw(probabilities=torch.tensor([[[0.5, 0.3, 0.2, 0.0]]]))
    q = CategoricalLaw(probabilities=torch.tensor([[[0.1, 0.4, 0.4, 0.1]]]))
    every = torch.arange(4).view(1, 1, 4)

    def chances(rule: Rule) -> list[float]:
        return [round(value, 4) for value in rule.chance(p, q, every)[0, 0].tolist()]

    assert chances(Exact()) == [1.0, 0.75, 0.5, 0.0]
    assert chances(parse_rule("omega/omega=1.2")) == [1.0, 0.9, 0.6, 0.0]
    # exp(-H) = 0.3571, times 0.7 is 0.25.
    assert chances(parse_rule("typical/epsilon=0.9/alpha=0.7")) == [1.0, 1.0, 0.0, 0.0]
    assert chances(parse_rule("typical/epsilon=0.1/alpha=0.7")) == [1.0, 1.0, 1.0, 0.0]
    nearest = torch.tensor([[1, 2], [2, 3], [1, 0], [0, 1]])
    near = Lantern(neighbours=2, delta=0.35).with_codes(nearest)
    # Code 0 may add 0.3 but not 0.3 + 0.2; code 1 adds 0.2 + 0; code 2 adds 0.3.
    assert chances(near) == [1.0, 1.0, 1.0, 0.0]
    added, _, inside = aggregated(p, every, nearest, 0.35)
    assert added[0, 0].tolist() == pytest.approx([0.3, 0.2, 0.3, 0.0])
    assert inside[0, 0].tolist() == [[True, False], [True, True], [True, False], [False, False]]
    plus = parse_rule("lantern++/neighbours=2/factor=1.7")
    # At most 0.7 times their own mass: 0.35, 0.21, 0.14.
    assert chances(plus.with_codes(nearest)) == [1.0, 1.0, 0.5, 0.0]


def test_clusters_by_hand() -> None:
    p = CategoricalLaw(probabilities=torch.tensor([[[0.4, 0.1, 0.25, 0.2, 0.05, 0.0]]]))
    tokens, member = cluster_of_drafts(p, torch.tensor([[3]]), size=2)
    assert sorted(tokens[0, 0].tolist()) == [1, 2] and bool(member.all())
    tokens, member = cluster_of_drafts(p, torch.tensor([[0]]), size=4)
    assert sorted(tokens[0, 0][member[0, 0]].tolist()) == [2, 3]
    tokens, member = cluster_of_drafts(p, torch.tensor([[4]]), size=2)
    assert tokens[0, 0][member[0, 0]].tolist() == [1]


@pytest.mark.parametrize("size", [2, 4, 10])
def test_the_clusters_of_drafts_are_those_of_all_tokens(size: int) -> None:
    p, _ = _laws(seed=4)
    everything, inside = cluster_of_all(p, size)
    for token in range(CODES):
        some, member = cluster_of_drafts(p, torch.full((3, 4), token), size)
        for b in range(3):
            for k in range(4):
                ours = set(some[b, k][member[b, k]].tolist())
                assert ours == set(everything[b, k, token][inside[b, k, token]].tolist())


def _block_law(correction: type[Rule]) -> tuple[torch.Tensor, torch.Tensor]:
    """Law of three tokens by block verification of two drafts, enumerated, and the true law.

    Sums over all drafts and, because the tests of the positions are independent, over which of
    them is the last to pass. Returns fp64 [V^3] twice.
    """
    codes, count = 3, 2
    draw = torch.Generator().manual_seed(6)
    tables = [
        torch.rand(codes**k, codes, generator=draw, dtype=torch.float64) ** 3 for k in (0, 1, 2)
    ]
    tables = [table / table.sum(-1, keepdim=True) for table in tables]
    wanted = (tables[0][0][:, None, None] * tables[1][:, :, None]).view(-1, 1) * tables[2]
    q = torch.rand(1, count, codes, generator=draw, dtype=torch.float64) ** 3
    q = CategoricalLaw(probabilities=q / q.sum(-1, keepdim=True))
    law = torch.zeros(codes, codes, codes, dtype=torch.float64)
    for first in range(codes):
        for second in range(codes):
            drafts = torch.tensor([[first, second]])
            rows = [tables[0][0], tables[1][first], tables[2][first * codes + second]]
            p = CategoricalLaw(probabilities=torch.stack(rows[:2])[None])
            chance = q.probabilities[0, 0, first] * q.probabilities[0, 1, second]
            for run, weight in enumerate(_block_runs(p, q, drafts)):
                if run == count:
                    law[first, second] += chance * weight * rows[2]
                    continue
                after = correction().correction(p, q, drafts, torch.tensor([run]))
                for token, share in enumerate(after.probabilities[0, 0]):
                    prefix = (first,)[:run]
                    rest = wanted.view(codes, codes, codes)[(*prefix, token)]
                    law[(*prefix, token)] += chance * weight * share * rest / rest.sum()
    return law.flatten(), wanted.flatten()


def _block_runs(p: CategoricalLaw, q: CategoricalLaw, drafts: torch.Tensor) -> list[float]:
    """Chance of every run, by bisecting the uniform at which each position stops passing."""
    grid = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    wide = [
        CategoricalLaw(probabilities=law.probabilities.expand(len(grid), -1, -1)) for law in (p, q)
    ]
    passed = []
    for column in range(2):
        u = torch.full((len(grid), 2), 1.0, dtype=torch.float64)  # never passes elsewhere
        u[:, column] = grid
        kept = Block().run(*wide, drafts.expand(len(grid), -1), u) == column + 1
        passed.append(float(kept.double().mean()))
    return [(1 - passed[0]) * (1 - passed[1]), passed[0] * (1 - passed[1]), passed[1]]


class ChainResidual(Block):
    """Mutant: block verification with the correction of the chain test."""

    correction = Exact.correction


def test_block_verification_enumerated() -> None:
    law, wanted = _block_law(Block)
    assert float(wanted.sum()) == pytest.approx(1.0)
    assert 0.5 * float((law - wanted).abs().sum()) < 1e-4  # the grid of uniforms
    mutant, _ = _block_law(ChainResidual)
    assert 0.5 * float((mutant - wanted).abs().sum()) > 1e-3


def test_block_verification_keeps_more_than_the_chain_test() -> None:
    p, q = _laws(seed=2)
    wide = [
        CategoricalLaw(probabilities=law.probabilities[:1].expand(40_000, -1, -1)) for law in (p, q)
    ]
    draw = torch.Generator().manual_seed(0)
    drafts = wide[1].draw(torch.rand(40_000, 4, generator=draw))
    u = torch.rand(40_000, 4, generator=draw)
    chain = Exact().run(*wide, drafts, u).float().mean()
    assert Block().run(*wide, drafts, u).float().mean() > chain + 0.01


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("near", r"rule must be one of exact, block, .*, got 'near'"),
        ("omega/size=3", r"rule omega has the options omega, decay, got 'size'"),
        ("exact/size=3", r"rule exact has the options none, got 'size'"),
        ("omega/omega=0.9", r"omega of rule omega must be at least 1, got 0.9"),
        ("omega/omega=much", r"omega of rule omega must be a number, got 'much'"),
        ("omega/omega", r"omega of rule omega must be a number, got ''"),
        ("omega/decay=-1", r"decay of rule omega must be at least 0"),
        ("typical/epsilon=1", r"epsilon of rule typical must be in \(0, 1\)"),
        ("typical/alpha=0", r"alpha of rule typical must be in \(0, 1\]"),
        ("grouped/size=3", r"size of rule grouped must be even"),
        ("grouped/size=2.5", r"size of rule grouped must be a whole number, got '2.5'"),
        ("grouped/distance=0", r"distance of rule grouped must be above 0"),
        ("grouped/gap=2", r"gap of rule grouped must be in"),
        ("lantern/neighbours=0", r"neighbours of rule lantern must be at least 1"),
        ("lantern/delta=1.5", r"delta of rule lantern must be in"),
        ("lantern++/delta=0.1", r"rule lantern\+\+ has the options neighbours, factor"),
        ("lantern++/factor=1", r"factor of rule lantern\+\+ must be above 1"),
        ("omega/omega=nan", r"omega of rule omega must be at least 1, got nan"),
    ],
)
def test_bad_rules_are_named(rule: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpeculativeJacobiDecoding(rule=rule)


def test_a_rule_says_what_it_lacks(tokenizer: VQTokenizer) -> None:
    model = ToyTokenModel(CODES, (4,))
    layout = model.layout((4,))
    for name in ("grouped", "lantern", "lantern++"):
        with pytest.raises(ValueError, match=r"needs a tokenizer with a code book, such as VQ"):
            SpeculativeJacobiDecoding(rule=name).check(Cast(model, layout))
    with pytest.raises(ValueError, match=r"neighbours of rule lantern must be at most 5"):
        SpeculativeJacobiDecoding(rule="lantern").check(Cast(model, layout, tokenizer))
    for coupling in ("maximal", "gumbel"):
        with pytest.raises(ValueError, match=r"rule block looks ahead .* 'independent'"):
            SpeculativeJacobiDecoding(rule="block", coupling=coupling)


def test_a_rule_survives_its_configuration() -> None:
    method = SpeculativeJacobiDecoding(rule="omega/omega=1.3/decay=0.2")
    again = SpeculativeJacobiDecoding.from_config(method.config)
    assert again.config.rule == "omega/omega=1.3/decay=0.2" and not again.lossless


def test_lossy_rules_accept_more(tokenizer: VQTokenizer) -> None:
    model = ToyTokenModel(CODES, (12,), seed=5)
    count = 400
    condition = model.condition([0] * count, False)
    passes = {}
    for rule in ("exact", *LOSSY.values()):
        method = SpeculativeJacobiDecoding(window=6, rule=rule)
        cast = Cast(model, model.layout((12,)), tokenizer)
        steps = method.decode(cast, condition, Sampling.create(list(range(count))))
        passes[rule] = float(
            torch.stack([step.committed > 0 for step in steps]).sum(0).float().mean()
        )
    del passes[LOSSY["typical"]]  # which also refuses what is improbable, whatever q is
    assert max(passes, key=passes.__getitem__) == "exact", passes
    tokens, _ = decode_all(
        SpeculativeJacobiDecoding(window=6, rule=LOSSY["omega"]),
        Cast(model, model.layout((12,))),
        condition,
        Sampling.create(list(range(count))),
    )
    assert bool(((tokens >= 0) & (tokens < CODES)).all())
