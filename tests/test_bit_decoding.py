"""Decoding of tokens that are bit vectors: exact laws by enumeration, mutants, rules, refusals."""

from dataclasses import dataclass

import pytest
import torch
from pairs import some_pairs

from visual_ar.accel.exact_match import ExactMatchJacobiDecoding
from visual_ar.accel.groups import GroupDecoding
from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.accel.loop.contract import Decoding
from visual_ar.accel.rules.parse import RULES, parse_rule
from visual_ar.accel.sequential import SequentialDecoding
from visual_ar.cast import Cast
from visual_ar.sampling import Sampling, bit_uniforms
from visual_ar.testing import (
    ToyBitModel,
    ToyTokenModel,
    chi_square,
    decode_all,
    enumerate_law,
    sequence_index,
)
from visual_ar.tokens.bits import BitLaw, certain
from visual_ar.tokens.law import Redrawn

PICTURES = 6_000
ALARM = 1e-4
DETECTED = 1e-9


@dataclass(frozen=True)
class Case:
    """One corner of guidance x temperature x prefix x forced, longer than three windows."""

    guidance: float = 1.0
    temperature: float = 1.0
    bits: int = 2
    grid: tuple[int, ...] = (5,)
    prefix: int = 1
    forced: tuple[tuple[int, int], ...] = ()
    seed: int = 0


CASES = {
    "plain": Case(),
    "guided": Case(guidance=2.5, prefix=3),
    "temperature": Case(temperature=0.6, guidance=1.5, bits=1, grid=(3, 3), seed=1),
    "forced": Case(guidance=1.5, forced=((0, 1), (3, 2)), seed=5),
    "wider": Case(bits=4, grid=(3,), temperature=1.3, seed=3),
}

METHODS = {
    "sequential": SequentialDecoding(),
    "exact-match": ExactMatchJacobiDecoding(window=2, init="uniform"),
    "exact-match left": ExactMatchJacobiDecoding(window=3, init="left"),
    "exact maximal": SpeculativeJacobiDecoding(window=2, coupling="maximal"),
    "exact independent": SpeculativeJacobiDecoding(3, "independent", "above-law"),
    "exact gumbel": SpeculativeJacobiDecoding(window=2, coupling="gumbel"),
    "exact left": SpeculativeJacobiDecoding(window=3, coupling="maximal", init="left"),
    "bitwise maximal": SpeculativeJacobiDecoding(2, "maximal", "left-law", rule="bitwise"),
    "bitwise independent": SpeculativeJacobiDecoding(3, "independent", "random", rule="bitwise"),
    "bitwise gumbel": SpeculativeJacobiDecoding(window=2, coupling="gumbel", rule="bitwise"),
    "window 1": SpeculativeJacobiDecoding(window=1),
    "groups of one": GroupDecoding(),
}


def run(method: Decoding, case: Case, pictures: int = PICTURES) -> float:
    """Decodes the toy many times in one batch; p value of the fit to the enumerated law."""
    model = ToyBitModel(case.bits, case.grid, case.prefix, seed=case.seed)
    layout = model.layout(case.grid)
    options = (case.guidance, case.temperature)
    forced = None
    if case.forced:
        bits = torch.full((1, layout.length, case.bits), -1)
        for rank, token in case.forced:
            bits[0, rank] = (token >> torch.arange(case.bits - 1, -1, -1)) & 1
        layout = layout.with_forced(bits.expand(pictures, -1, -1))
        forced = bits[0]
    sampling = Sampling.create(list(range(pictures)), *options)
    condition = model.condition([0] * pictures, guided=case.guidance != 1)
    tokens, _ = decode_all(method, Cast(model, layout), condition, sampling)
    assert tokens.dtype == torch.bool and tokens.shape == (pictures, layout.length, case.bits)
    law = enumerate_law(model, 0, Sampling.create([0], *options), forced)
    assert float(law.sum()) == pytest.approx(1.0, abs=1e-5)
    return chi_square(sequence_index(tokens, model.vocab_size), law)


def test_groups_of_several_ranks_have_the_exact_law() -> None:
    model = ToyBitModel(2, (2, 2), prefix_length=2, seed=4, order="neighbour")
    sampling = Sampling.create(list(range(PICTURES)), 2.0, 0.8)
    layout, condition = model.layout((2, 2)), model.condition([1] * PICTURES, True)
    tokens, committed = decode_all(GroupDecoding(), Cast(model, layout), condition, sampling)
    assert committed[:, 0].tolist() == [1, 2, 1]
    law = enumerate_law(model, 1, Sampling.create([0], 2.0, 0.8))
    assert chi_square(sequence_index(tokens, 4), law) > ALARM
    with pytest.raises(ValueError, match="needs a next-token layout"):
        SequentialDecoding().check(Cast(model, layout))


def few_proposals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most refused drafts wait; those of nearly equal laws, who would wait for long, do not."""
    monkeypatch.setattr("visual_ar.tokens.bits.PROPOSALS", 2)
    monkeypatch.setattr("visual_ar.tokens.bits._EQUAL", 0.01)


@pytest.mark.parametrize(("method", "case"), some_pairs(METHODS, CASES))
def test_the_law_is_exact(method: str, case: str) -> None:
    assert run(METHODS[method], CASES[case]) > ALARM


@pytest.mark.parametrize("coupling", ["maximal", "independent"])
def test_a_residual_that_takes_several_passes_is_exact(
    coupling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused draft that waits for its replacement keeps its law."""
    few_proposals(monkeypatch)
    method = SpeculativeJacobiDecoding(window=3, coupling=coupling, init="left-law")
    assert run(method, CASES["plain"]) > ALARM


@pytest.mark.parametrize("method", METHODS)
def test_options_and_classes_differ_within_a_batch(method: str) -> None:
    model, half = ToyBitModel(2, (4,), prefix_length=2, seed=9), PICTURES // 2
    options = [(1.0, 1.0), (2.5, 0.7)]
    parts = [
        Sampling.create(list(range(k * half, (k + 1) * half)), *option)
        for k, option in enumerate(options)
    ]
    sampling = Sampling(*(torch.cat(fields) for fields in zip(*parts, strict=True)))
    labels = [k for k in range(2) for _ in range(half)]
    tokens, _ = decode_all(
        METHODS[method], Cast(model, model.layout((4,))), model.condition(labels, True), sampling
    )
    for k, option in enumerate(options):
        law = enumerate_law(model, k, Sampling.create([0], *option))
        assert chi_square(sequence_index(tokens[k * half : (k + 1) * half], 4), law) > ALARM


@pytest.mark.parametrize("method", METHODS)
def test_pictures_admitted_in_mid_run_are_the_same_pictures(method: str) -> None:
    """Six pictures through two slots: neither slot nor neighbours nor the time matter."""
    model = ToyBitModel(3, (3, 3), prefix_length=2, seed=3)
    layout, decoding = model.layout((3, 3)), METHODS[method]
    labels, sampling = [0, 1, 1, 0, 1, 0], Sampling.create(list(range(6)), guidance=2.0)
    expected, _ = decode_all(decoding, Cast(model, layout), model.condition(labels, True), sampling)
    window = decoding.config.get("window", 1)
    state = decoding.init(Cast(model, layout), slots=2, guided=True, window=window)
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


def test_exact_match_gives_the_sequential_picture_in_fewer_passes() -> None:
    model, count = ToyBitModel(3, (4, 6), seed=2, sharpness=3.0), 100
    layout, sampling = model.layout((4, 6)), Sampling.create(list(range(count)), guidance=1.5)
    condition = model.condition([0] * count, True)
    expected, steps = decode_all(SequentialDecoding(), Cast(model, layout), condition, sampling)
    method = ExactMatchJacobiDecoding(window=6, init="left")
    tokens, committed = decode_all(method, Cast(model, layout), condition, sampling)
    assert torch.equal(tokens, expected)
    assert (committed > 0).sum(0).float().mean() < 0.8 * len(steps)


MUTANT = SpeculativeJacobiDecoding(window=3, coupling="independent", init="left-law")
MUTANT_BITWISE = SpeculativeJacobiDecoding(3, "independent", "left-law", rule="bitwise")


def test_a_residual_from_the_target_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    def from_p(self, q, drafts, numbers):
        key = (numbers.seed[:, None], numbers.ranks, numbers.attempt[:, None])
        u = bit_uniforms(*key, self.bits, stream=1)
        return Redrawn(self.draw(u), torch.ones_like(numbers.ranks, dtype=torch.bool))

    monkeypatch.setattr(BitLaw, "residual", from_p)
    assert run(MUTANT, Case(seed=1), 2 * PICTURES) < DETECTED


def test_a_waiting_draft_that_is_tested_again_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: the refusal is forgotten while its replacement is sought."""
    few_proposals(monkeypatch)
    honest = SpeculativeJacobiDecoding._shift

    def forgets(self, state, *rest):
        honest(self, state, *rest)
        state.method.refused = torch.zeros_like(state.method.refused)

    monkeypatch.setattr(SpeculativeJacobiDecoding, "_shift", forgets)
    assert run(MUTANT, Case(seed=1), 2 * PICTURES) < DETECTED


def test_a_waiting_draft_that_loses_its_law_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: the replacement is sought in what the new law, not the drafting one, has left."""
    few_proposals(monkeypatch)
    honest = SpeculativeJacobiDecoding._shift

    def renews(self, state, *rest):
        refused = state.method.refused
        state.method.refused = torch.zeros_like(refused)
        honest(self, state, *rest)
        state.method.refused = refused

    monkeypatch.setattr(SpeculativeJacobiDecoding, "_shift", renews)
    assert run(MUTANT, Case(seed=1), 2 * PICTURES) < DETECTED


def test_refused_bits_drawn_anew_are_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    def redraws(p, q, drafts, u):
        kept = u * q.part_probs(drafts) < p.part_probs(drafts)
        coin = (u * 1e4) % 1 < p.part_probs(torch.ones_like(drafts))
        return torch.where(kept, drafts, coin)

    monkeypatch.setattr(BitLaw, "couple_parts", redraws)
    assert run(MUTANT_BITWISE, Case(seed=1), 2 * PICTURES) < DETECTED


@pytest.mark.parametrize(
    "rule", ["hamming-grouped", "hamming-lantern/delta=0.5", "omega/omega=1.5"]
)
def test_relaxed_rules_are_not_exact_and_say_what_they_spend(rule: str) -> None:
    method = SpeculativeJacobiDecoding(3, "independent", "left-law", rule=rule)
    assert not method.lossless and SpeculativeJacobiDecoding(rule="bitwise").lossless
    assert run(method, Case(seed=1), 2 * PICTURES) < DETECTED
    model, count = ToyBitModel(4, (16,), seed=5), 200
    passes, spent = {}, {}
    for name in ("exact", "bitwise", rule):
        steps = list(
            SpeculativeJacobiDecoding(6, "independent", rule=name).decode(
                Cast(model, model.layout((16,))),
                model.condition([0] * count, False),
                Sampling.create(list(range(count))),
            )
        )
        passes[name] = float(torch.stack([s.committed > 0 for s in steps]).sum(0).float().mean())
        spent[name] = None if steps[0].spent is None else sum(float(s.spent.sum()) for s in steps)
    assert passes[rule] < passes["exact"] <= passes["bitwise"], passes
    assert spent["exact"] is None and spent["bitwise"] is None and spent[rule] > 0


def test_chances_by_hand() -> None:
    p = BitLaw(torch.logit(torch.tensor([[[0.8, 0.6]]])))
    q = BitLaw(torch.logit(torch.tensor([[[0.9, 0.9]]])))
    draft = torch.ones(1, 1, 2, dtype=torch.bool)  # p 0.48, q 0.81; flips: p 0.12, 0.32; q 0.09

    def chance(rule: str, p: BitLaw = p) -> float:
        """How often the draft is kept, of a fine grid of numbers for both of its bits."""
        middles = (torch.arange(1_000) + 0.5) / 1_000
        u = torch.cartesian_prod(middles, middles)[None]
        wide = [BitLaw(law.log_odds.expand(1, u.shape[1], -1)) for law in (p, q)]
        passes = parse_rule(rule).passes(*wide, draft.expand(1, u.shape[1], -1), u)
        return float(passes.double().mean())

    assert chance("exact") == pytest.approx(0.48 / 0.81, abs=1e-3)
    assert chance("bitwise") == pytest.approx(0.8 / 0.9 * 0.6 / 0.9, abs=1e-3)
    assert chance("omega/omega=1.5") == pytest.approx(1.5 * 0.48 / 0.81, abs=1e-3)
    assert chance("hamming-grouped/size=1") == pytest.approx(0.80 / 0.90, abs=1e-3)
    assert chance("hamming-grouped/size=9") == pytest.approx(0.92 / 0.99, abs=1e-3)
    assert chance("hamming-lantern/delta=0.31") == pytest.approx(0.48 / 0.81, abs=1e-3)
    assert chance("hamming-lantern/delta=0.33") == pytest.approx(0.80 / 0.81, abs=1e-3)
    impossible = BitLaw(certain(~draft))
    for rule in ("exact", "bitwise", "hamming-grouped", "hamming-lantern", "omega"):
        assert chance(rule, impossible) == 0


TABLES = ("block", "grouped", "lantern", "lantern++", "typical")


@pytest.mark.parametrize("rule", RULES)
def test_rules_that_read_every_code_are_refused_and_others_are_not(rule: str) -> None:
    method = SpeculativeJacobiDecoding(coupling="independent", rule=rule)
    cast = Cast(ToyBitModel(), ToyBitModel().layout((5,)))
    if rule not in TABLES:
        method.check(cast)
        return
    with pytest.raises(ValueError, match=r"needs laws that tell a table .* are vectors of 2 bits"):
        method.check(cast)


def test_what_does_not_fit_is_refused() -> None:
    model = ToyBitModel()
    layout = model.layout((5,))
    with pytest.raises(ValueError, match="measure_tv must be False for tokens that are vectors of"):
        SpeculativeJacobiDecoding(rule="omega", measure_tv=True).check(Cast(model, layout))
    codes = ToyTokenModel(3, (5,))
    for given, shape, message in (
        (model, (5,), "must force every bit"),
        (codes, (2, 5, 2), "must force one code"),
    ):
        forced = layout.with_forced(torch.ones(shape, dtype=torch.int64))
        with pytest.raises(ValueError, match=message):
            SequentialDecoding().check(Cast(given, forced))
    for given, forced, message in (
        (
            model,
            torch.full((2, 5, 2), 2),
            "must force tokens from 0 to 1, or -1 for none, got 2 to 2",
        ),
        (codes, torch.tensor([-1, 0, 3, 1, 2]), "tokens from 0 to 2, or -1 for none, got -1 to 3"),
        (codes, torch.tensor([-2, 0, 1, 1, 2]), "tokens from 0 to 2, or -1 for none, got -2 to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            SequentialDecoding().check(Cast(given, given.layout((5,)).with_forced(forced)))
    for rule in ("bitwise", "hamming-grouped", "hamming-lantern"):
        with pytest.raises(ValueError, match=f"rule {rule} needs laws that tell .* codes of 3"):
            SpeculativeJacobiDecoding(rule=rule).check(Cast(codes, codes.layout((5,))))
    for rule, message in (
        ("hamming-grouped/size=0", "size of rule hamming-grouped must be at least 1, got 0"),
        ("hamming-lantern/flips=0", "flips of rule hamming-lantern must be at least 1"),
        ("hamming-lantern/delta=2", r"delta of rule hamming-lantern must be in \(0, 1\], got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            SpeculativeJacobiDecoding(rule=rule)
    with pytest.raises(ValueError, match=r"top_k must be 0 \(off\) for a law over bits"):
        decode_all(
            SequentialDecoding(),
            Cast(model, layout),
            model.condition([0], False),
            Sampling.create([0], top_k=2),
        )
