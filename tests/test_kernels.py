"""The verification kernel: its reference is a pass of the method, its host build the reference."""

import pytest
import torch
from host_kernel import NARROW, OMEGA, RULES, bound, by_kernel, by_reference, same

from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.accel.kernels.inputs import random_window
from visual_ar.accel.kernels.reference import COUPLINGS, Verdict, verify
from visual_ar.accel.rules.parse import parse_rule
from visual_ar.cast import Cast
from visual_ar.sampling import Sampling, gumbel_noise, uniforms
from visual_ar.testing import ToyTokenModel, chi_square
from visual_ar.tokens.codes import CategoricalLaw

ALARM, DETECTED = 1e-4, 1e-9


class Recorder(ToyTokenModel):
    """A toy that remembers its last logits."""

    def predict(self, hidden, ranks):
        self.last = super().predict(hidden, ranks)
        return self.last


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("rule", ["exact", OMEGA, "typical"])
@pytest.mark.parametrize("guided", [True, False])
def test_the_reference_is_a_pass_of_the_method(rule, coupling, guided):
    pictures, width = 30, 4
    model = Recorder(5, (9,), seed=2)
    layout = model.layout((9,))
    layout.forced[3] = 1
    sampling = Sampling.create(list(range(pictures)), 1.7 if guided else 1.0, 0.9)
    sampling.top_k[::2], sampling.top_p[::3] = 4, 0.8
    method = SpeculativeJacobiDecoding(width, coupling, rule=rule)
    state = method.init(Cast(model, layout), pictures, guided, width)
    condition = model.condition([0] * pictures, guided)
    method.admit(state, torch.arange(pictures), condition, sampling)
    passes = 0
    while state.open_length.read() >= 0:
        first, open_ = state.length, ~state.done
        ranks = first[:, None] + torch.arange(width)
        drafts, q = state.tokens.gather(1, ranks[:, :-1]), state.method.q
        attempt = state.passes + 1
        step = method.advance(state)
        logits = model.last.chunk(2) if guided else (model.last, None)
        verdict = verify(
            *logits,
            sampling._replace(guidance=state.guidance.gather(1, ranks)),
            state.warps,
            drafts,
            q,
            first,
            attempt,
            parse_rule(rule),
            coupling,
            state.forced.gather(1, ranks),
        )
        exists = open_[:, None] & (ranks < layout.length)
        assert torch.equal(verdict.tokens[exists], state.tokens.gather(1, ranks)[exists])
        left = (layout.length - first).clamp(max=width)
        assert torch.equal(step.committed[open_], (verdict.run + 1).minimum(left)[open_])
        row = verdict.run[:, None] + 1 + torch.arange(width - 1)
        ahead = verdict.laws.gather(
            1, row.clamp(max=width - 1)[..., None].expand(-1, -1, model.vocab_size)
        )
        carried = (row < width) & ~state.done[:, None]
        assert torch.equal(ahead[carried], state.method.q[carried])
        assert not verdict.flags[open_].any()
        numbers = uniforms(sampling.seed[:, None], ranks, attempt[:, None])
        assert torch.equal(verdict.initial, numbers[3])
        passes += 1
    assert passes > 3


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", NARROW)
def test_the_kernel_is_the_reference(rule, coupling, dtype):
    """Equal tokens, but for uniform numbers within rounding of a boundary, which are counted."""
    near, total = 0, 0
    for seed in range(12):
        shape = {"pictures": 1 + seed % 4, "ranks": 1 + seed, "vocabulary": 1 + 37 * seed}
        given = random_window(seed, **shape, dtype=dtype, guided=seed % 3 > 0, forced=seed % 2 > 0)
        wanted, got = by_reference(given, rule, coupling), by_kernel(given, rule, coupling)
        torch.testing.assert_close(got.laws, wanted.laws, rtol=2e-5, atol=1e-7)
        assert torch.equal(got.flags, wanted.flags)
        differ = (got.tokens != wanted.tokens).any(1) | (got.run != wanted.run)
        near += int(differ.sum())
        total += len(differ)
        for shift in (-1e-5, 1e-5):  # then a number next to it gives the same
            moved = given | {"numbers": (given["numbers"] + shift).clamp(1e-7, 1 - 1e-7)}
            differ &= (by_reference(moved, rule, coupling).tokens != got.tokens).any(1)
        assert not differ.any()
    assert near <= 0.1 * total


def test_a_large_vocabulary():
    given = random_window(3, 2, 3, 70_001, torch.bfloat16)
    wanted, got = by_reference(given), by_kernel(given)
    alike = (got.laws > 0) == (wanted.laws > 0)
    assert int((~alike).sum()) <= 4  # codes at the edge of top-p, each of mass 1e-6
    pair = (law.where(alike, 0.0) for law in (got.laws, wanted.laws))
    torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-8)
    assert (got.tokens == wanted.tokens).float().mean() > 0.8


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_streamed_rows_give_the_same_bits(coupling):
    given = random_window(4, 4, 6, 300, torch.float16, forced=True)
    assert same(by_kernel(given, coupling=coupling), by_kernel(given, "exact", coupling, False))


@pytest.mark.parametrize("rule", RULES[2:])
def test_rules_leave_the_laws_alone(rule):
    """A rule may mark codes in the row it reads; streamed rows are the laws that are returned."""
    given = random_window(4, 4, 6, 300, torch.float16)
    streamed = by_kernel(given, rule, "maximal", False)
    assert torch.equal(streamed.laws, by_kernel(given).laws)
    assert same(streamed, by_kernel(given, rule))


@pytest.mark.parametrize("run", [by_reference, by_kernel])
def test_frozen_noise_is_that_of_sequential_decoding(run):
    given = random_window(13, 5, 7, 90) | {"drafts": None, "q": None}
    verdict = run(given, coupling="gumbel")
    ranks = given["rank"][:, None] + torch.arange(7)
    noise = gumbel_noise(given["sampling"].seed, ranks, 90)
    assert torch.equal(verdict.tokens, (verdict.laws.log() + noise).argmax(-1))
    assert verdict.run.tolist() == [0] * 5
    again = run(given | {"attempt": given["attempt"] + 1, "numbers": None}, coupling="gumbel")
    assert torch.equal(again.tokens, verdict.tokens)


@pytest.mark.parametrize("coupling", ["independent", "maximal"])
def test_without_drafts_every_rank_is_drawn(coupling):
    given = random_window(14, 3, 4, forced=True) | {"drafts": None, "q": None}
    for verdict in (by_kernel(given, coupling=coupling), by_reference(given, coupling=coupling)):
        drawn = CategoricalLaw(probabilities=verdict.laws).draw(given["numbers"][2])
        assert torch.equal(verdict.tokens, drawn)


def test_its_own_random_numbers():
    given = random_window(5, 6, 7)
    ranks = given["rank"][:, None] + torch.arange(7)
    numbers = uniforms(given["sampling"].seed[:, None], ranks, given["attempt"][:, None])
    injected = given | {"numbers": numbers}
    assert same(by_kernel(injected), by_kernel(given | {"numbers": None}))
    assert same(by_reference(injected), by_reference(given | {"numbers": None}))


@pytest.mark.parametrize("run", [by_reference, by_kernel])
def test_a_picture_does_not_depend_on_its_neighbours(run):
    given = random_window(6, 5, 4, forced=True) | {"numbers": None}
    order = torch.tensor([3, 0, 4, 1])  # a permutation of some slots

    def some(value):
        if isinstance(value, Sampling):
            return Sampling(*(option[order] for option in value))
        return value if value is None else value[order]

    part = run({name: some(value) for name, value in given.items()})
    whole = run(given)
    assert same(part, Verdict(*(value[order] for value in whole)))


def test_a_slice_of_a_larger_book_is_read_in_place():
    given = random_window(7, 3, 4, 60)
    wide = torch.full((3, 4, 200), torch.nan)
    wide[..., 80:140] = given["conditional"]
    assert same(by_kernel(given), by_kernel(given | {"conditional": wide[..., 80:140]}))


def test_ties_with_the_last_token_stay():
    logits = torch.tensor([3.0, 1.0, 1.0, 0.0, -0.0, -2.0, -torch.inf]).expand(4, 1, -1)
    sampling = Sampling.create([0] * 4)._replace(
        guidance=torch.ones(4, 1),
        top_k=torch.tensor([2, 4, 0, 0]),
        top_p=torch.tensor([1.0, 1.0, 0.8, 1e-9]),
    )
    given = random_window(0, 4, 1, 7) | {"sampling": sampling, "unconditional": None}
    given["conditional"] = logits
    for verdict in (by_kernel(given), by_reference(given)):
        assert (verdict.laws > 0).sum(-1)[:, 0].tolist() == [3, 5, 3, 1]


@pytest.mark.parametrize("run", [by_reference, by_kernel])
def test_a_top_k_above_the_vocabulary_or_below_one_is_off(run):
    given = random_window(16, 4, 3, 25)
    found = []
    for values in ([26, 25, -1, 2**40], [0, 0, 0, 0]):
        options = given["sampling"]._replace(top_k=torch.tensor(values))
        found.append(run(given | {"sampling": options}))
    assert same(*found)


def test_a_residual_without_mass_gives_a_draw_from_p():
    given = random_window(9, 3, 2, 8, guided=False)
    options = Sampling.create([0] * 3)
    given["sampling"] = options._replace(guidance=torch.ones(3, 2))
    law = by_reference(given).laws
    given["q"] = law[:, :1] * 2
    given["numbers"][0] = 0.9  # 0.9 * 2 p is not below p
    for verdict in (by_kernel(given), by_reference(given)):
        assert verdict.run.tolist() == [0, 0, 0] and not verdict.flags.any()
        drawn = CategoricalLaw(probabilities=law).draw(given["numbers"][1])
        assert torch.equal(verdict.tokens[:, 0], drawn[:, 0])


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_the_kernel_emits_the_law(coupling):
    """First tokens of many windows follow p; drafts come from q, and the numbers are its own."""
    pictures, codes = 15_000, 6
    one = random_window(10, 1, 2, codes)
    options = Sampling.create(list(range(pictures)), top_k=5)
    sampling = options._replace(guidance=torch.full((pictures, 2), 1.2))
    given = {
        name: value.expand(pictures, *value.shape[1:]).contiguous()
        for name, value in one.items()
        if isinstance(value, torch.Tensor) and name != "numbers"
    }
    given |= {"sampling": sampling, "numbers": None, "forced": None}
    q = CategoricalLaw(probabilities=given["q"])
    given["drafts"] = q.draw(uniforms(sampling.seed, torch.tensor(7), torch.tensor(0))[3][:, None])
    law = by_reference(given | {"numbers": torch.rand(4, pictures, 2)}).laws[0, 0].double()
    exact = by_kernel(given, coupling=coupling)
    assert chi_square(exact.tokens[:, 0], law) > ALARM
    assert 0.3 < float(exact.run.double().mean()) < 0.95
    p, q = (CategoricalLaw(probabilities=x.double()[:1]) for x in (exact.laws[:, :1], given["q"]))
    for rule in ("omega/omega=2.0", *RULES[2:5], "grouped/size=6/distance=2/gap=0.9"):
        lossy = by_kernel(given, rule, coupling)
        assert chi_square(lossy.tokens[:, 0], law) < DETECTED
        emitted = bound(given, rule).emitted(p, q).probabilities[0, 0]
        assert chi_square(lossy.tokens[:, 0], emitted) > ALARM
