"""The verification kernel: its reference is one pass of the method, its host build the reference.

The kernel's source is compiled by g++ with one thread a block, so that its arithmetic, random
numbers and laws are proven where there is no GPU.
"""

import ctypes
import functools
import shutil
import subprocess

import pytest
import torch

from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.accel.kernels import device, dispatch
from visual_ar.accel.kernels.inputs import random_codes, random_window
from visual_ar.accel.kernels.reference import (
    BAD_LAW,
    BAD_LOGITS,
    BAD_TOKEN,
    COUPLINGS,
    Verdict,
    verify,
)
from visual_ar.accel.kernels.specialise import bound_rule, for_kernel
from visual_ar.accel.rules.parse import parse_rule
from visual_ar.cast import Cast
from visual_ar.sampling import Sampling, Warps, gumbel_noise, philox, uniforms
from visual_ar.testing import ToyTokenModel, chi_square
from visual_ar.tokens.codes import CategoricalLaw

OMEGA = "omega/omega=1.5/decay=0.2"
RULES = (
    *("exact", OMEGA, "typical", "lantern/delta=0.3", "lantern++/factor=2.5"),
    "grouped/size=6/distance=0.6/gap=0.2",
)
NARROW = {torch.float32: 0, torch.float16: 0, torch.bfloat16: 1}
ALARM, DETECTED = 1e-4, 1e-9


def bound(given, rule):
    """A rule with a random table for the code book of a window."""
    vocabulary = given["conditional"].shape[-1]
    return bound_rule(rule, random_codes(rule, vocabulary), vocabulary, torch.device("cpu"))


def by_reference(given, rule="exact", coupling="maximal"):
    warps = Warps.of(given["sampling"])
    return verify(**given, warps=warps, rule=bound(given, rule), coupling=coupling)


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Builds the kernel for the host, once a rule: build(structure)."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++ to build the kernel for the host")
    folder = tmp_path_factory.mktemp("host")
    options = ["-xc++", "-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC"]
    options += ["-Wall", "-Wextra", "-Werror"]

    @functools.cache
    def library(structure):
        path = folder / f"{structure}.so"
        rule = f"-DRULE={structure}"
        subprocess.run([compiler, *options, rule, device.SOURCE, "-o", path], check=True)
        return ctypes.CDLL(str(path))

    return library


@pytest.fixture(scope="module")
def library(build):
    """The host build, for its single functions."""
    library = build("Exact")
    for name in ("exponential", "logarithm", "race_time"):
        getattr(library, f"{name}_on_host").restype = ctypes.c_float
    return library


@pytest.fixture
def by_kernel(build):
    """Runs the host build on arguments of `verify`."""

    def run(given, rule="exact", coupling="maximal", on_chip=True) -> Verdict:
        kernel_rule = for_kernel(bound(given, rule))
        launch = device.pack(**given, rule=kernel_rule, coupling=coupling, on_chip=on_chip)
        dtype, library = given["conditional"].dtype, build(kernel_rule.structure)
        library.verify_on_host(ctypes.byref(launch.arguments), dtype.itemsize, NARROW[dtype])
        return launch.verdict

    return run


def same(one: Verdict, other: Verdict) -> bool:
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


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


def test_random_numbers_are_those_of_the_library(library):
    draw = torch.Generator().manual_seed(0)
    for _ in range(50):
        words = torch.randint(0, 2**32, (4,), generator=draw)
        seed = torch.randint(-(2**63), 2**63 - 1, (), generator=draw)
        ours = (ctypes.c_uint32 * 4)(*words.tolist())
        library.philox_on_host(ours, ctypes.c_uint64(int(seed) % 2**64))
        assert list(ours) == philox(tuple(words.unbind()), seed).tolist()


def test_the_exponential(library):
    x = -torch.logspace(-8, 2, 4000, dtype=torch.float64).float()
    ours = [library.exponential_on_host(ctypes.c_float(value)) for value in x.tolist()]
    wanted = x.double().exp()
    error = (torch.tensor(ours, dtype=torch.float64) - wanted).abs() / wanted
    assert float(error[x > -87].max()) < 2.0**-22
    assert not any(value for value, at in zip(ours, x.tolist(), strict=True) if at <= -87)
    assert library.exponential_on_host(ctypes.c_float(0.0)) == 1.0


def test_the_logarithm(library):
    x = torch.cat(
        [torch.logspace(-44, 38, 3000, dtype=torch.float64), torch.linspace(0.5, 2, 3001)]
    )
    x = x.float()[x > 2e-45]
    ours = torch.tensor([library.logarithm_on_host(ctypes.c_float(v)) for v in x.tolist()])
    wanted = x.double().log()
    error = (ours.double() - wanted).abs()
    assert bool((error <= 2.0**-22 * wanted.abs().clamp(min=2.0**-24)).all())


def test_the_time_of_a_race(library):
    u = torch.cat([torch.logspace(-9.9, -0.001, 2000), 1 - torch.logspace(-7.2, -1, 500)]).float()
    ours = [library.race_time_on_host(ctypes.c_float(value)) for value in u.tolist()]
    wanted = -torch.log1p(-u.double())
    torch.testing.assert_close(torch.tensor(ours).double(), wanted, rtol=2.0**-21, atol=0)


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", NARROW)
def test_the_kernel_is_the_reference(by_kernel, rule, coupling, dtype):
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


def test_a_large_vocabulary(by_kernel):
    given = random_window(3, 2, 3, 70_001, torch.bfloat16)
    wanted, got = by_reference(given), by_kernel(given)
    alike = (got.laws > 0) == (wanted.laws > 0)
    assert int((~alike).sum()) <= 4  # codes at the edge of top-p, each of mass 1e-6
    pair = (law.where(alike, 0.0) for law in (got.laws, wanted.laws))
    torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-8)
    assert (got.tokens == wanted.tokens).float().mean() > 0.8


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_streamed_rows_give_the_same_bits(by_kernel, coupling):
    given = random_window(4, 4, 6, 300, torch.float16, forced=True)
    assert same(by_kernel(given, coupling=coupling), by_kernel(given, "exact", coupling, False))


@pytest.mark.parametrize("rule", RULES[2:])
def test_rules_leave_the_laws_alone(by_kernel, rule):
    """A rule may mark codes in the row it reads; streamed rows are the laws that are returned."""
    given = random_window(4, 4, 6, 300, torch.float16)
    streamed = by_kernel(given, rule, "maximal", False)
    assert torch.equal(streamed.laws, by_kernel(given).laws)
    assert same(streamed, by_kernel(given, rule))


@pytest.mark.parametrize("run", ["by_reference", "by_kernel"])
def test_frozen_noise_is_that_of_sequential_decoding(request, run):
    run = by_reference if run == "by_reference" else request.getfixturevalue(run)
    given = random_window(13, 5, 7, 90) | {"drafts": None, "q": None}
    verdict = run(given, coupling="gumbel")
    ranks = given["rank"][:, None] + torch.arange(7)
    noise = gumbel_noise(given["sampling"].seed, ranks, 90)
    assert torch.equal(verdict.tokens, (verdict.laws.log() + noise).argmax(-1))
    assert verdict.run.tolist() == [0] * 5
    again = run(given | {"attempt": given["attempt"] + 1, "numbers": None}, coupling="gumbel")
    assert torch.equal(again.tokens, verdict.tokens)


@pytest.mark.parametrize("coupling", ["independent", "maximal"])
def test_without_drafts_every_rank_is_drawn(by_kernel, coupling):
    given = random_window(14, 3, 4, forced=True) | {"drafts": None, "q": None}
    for verdict in (by_kernel(given, coupling=coupling), by_reference(given, coupling=coupling)):
        drawn = CategoricalLaw(probabilities=verdict.laws).sample(given["numbers"][2])
        assert torch.equal(verdict.tokens, drawn)


def test_its_own_random_numbers(by_kernel):
    given = random_window(5, 6, 7)
    ranks = given["rank"][:, None] + torch.arange(7)
    numbers = uniforms(given["sampling"].seed[:, None], ranks, given["attempt"][:, None])
    injected = given | {"numbers": numbers}
    assert same(by_kernel(injected), by_kernel(given | {"numbers": None}))
    assert same(by_reference(injected), by_reference(given | {"numbers": None}))


@pytest.mark.parametrize("run", ["by_reference", "by_kernel"])
def test_a_picture_does_not_depend_on_its_neighbours(request, run):
    run = by_reference if run == "by_reference" else request.getfixturevalue(run)
    given = random_window(6, 5, 4, forced=True) | {"numbers": None}
    order = torch.tensor([3, 0, 4, 1])  # a permutation of some slots

    def some(value):
        if isinstance(value, Sampling):
            return Sampling(*(option[order] for option in value))
        return value if value is None else value[order]

    part = run({name: some(value) for name, value in given.items()})
    whole = run(given)
    assert same(part, Verdict(*(value[order] for value in whole)))


def test_a_slice_of_a_larger_book_is_read_in_place(by_kernel):
    given = random_window(7, 3, 4, 60)
    wide = torch.full((3, 4, 200), torch.nan)
    wide[..., 80:140] = given["conditional"]
    assert same(by_kernel(given), by_kernel(given | {"conditional": wide[..., 80:140]}))


def test_ties_with_the_last_token_stay(by_kernel):
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


@pytest.mark.parametrize("run", ["by_reference", "by_kernel"])
def test_a_top_k_above_the_vocabulary_or_below_one_is_off(request, run):
    run = by_reference if run == "by_reference" else request.getfixturevalue(run)
    given = random_window(16, 4, 3, 25)
    found = []
    for values in ([26, 25, -1, 2**40], [0, 0, 0, 0]):
        options = given["sampling"]._replace(top_k=torch.tensor(values))
        found.append(run(given | {"sampling": options}))
    assert same(*found)


def damaged():
    """Every kind of bad input, each in a rank of its own, and the flags that it earns."""
    given = random_window(8, 4, 9, 30)
    given["conditional"][0, 0, 3] = torch.nan
    given["conditional"][0, 1] = -torch.inf
    given["unconditional"][0, 1] = 0
    given["conditional"][0, 2, 5] = torch.inf
    given["unconditional"][0, 2, 5] = 0
    given["drafts"][1, :2] = torch.tensor([-1, 30])
    given["drafts"][1, 2] = 2**40
    given["q"][2, 0] = 0
    given["q"][2, 1] = torch.nan
    given["q"][2, 2] = -given["q"][2, 2]
    given["forced"] = torch.full((4, 9), -1)
    given["forced"][2, 5] = 30
    given["sampling"].temperature[3] = 0
    flags = torch.zeros(4, 9, dtype=torch.int32)
    flags[0, :3] = BAD_LOGITS
    flags[1, :3] = BAD_TOKEN
    flags[2, :3] = BAD_LAW
    flags[2, 5] = BAD_TOKEN
    flags[3] = BAD_LOGITS
    return given, flags


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("rule", ["exact", "typical", *RULES[3:]])
@pytest.mark.parametrize("run", ["by_reference", "by_kernel"])
def test_bad_values_have_a_defined_result(request, run, rule, coupling):
    run = by_reference if run == "by_reference" else request.getfixturevalue(run)
    given, flags = damaged()
    verdict = run(given, rule, coupling)
    assert torch.equal(verdict.flags, flags)
    assert verdict.run.tolist()[:2] == [0, 0] and int(verdict.run[2]) == 0
    assert bool(((verdict.tokens >= 0) & (verdict.tokens < 30)).all())
    assert bool(verdict.laws.isfinite().all())
    torch.testing.assert_close(verdict.laws.sum(-1), torch.ones(4, 9))
    # Impossible codes are never drawn; a row without any is uniform.
    assert verdict.laws[0, 0, 3] == 0 and verdict.laws[0, 2, 5] == 0
    assert torch.equal(verdict.laws[0, 1], verdict.laws[0, 1, :1].expand(30))
    # The correction of a refused draft is a draw from p.
    law = CategoricalLaw(probabilities=verdict.laws[:, :1])
    drawn = law.sample(given["numbers"][1, :, :1])
    assert torch.equal(verdict.tokens[:3, 0], drawn[:3, 0])


def test_a_table_with_codes_outside_of_the_book_is_read_within_it(build):
    """Such codes count as absent: the result is that of the table with a code of no mass there."""
    given = random_window(15, 3, 5, 30, guided=False)
    given["conditional"][..., 7] = -torch.inf
    bad = torch.randint(0, 30, (30, 4), generator=torch.Generator().manual_seed(0))
    bad = bad.where(bad != 7, 8)
    good = bad.clone()
    bad[:, 1], good[:, 1] = torch.tensor([2**40, -1, 30]).repeat(10), 7
    found = []
    for table in (bad, good):
        rule = for_kernel(bound_rule("lantern/delta=0.5", table, 30, torch.device("cpu")))
        launch = device.pack(**given, rule=rule, coupling="maximal", on_chip=True)
        build("Lantern").verify_on_host(ctypes.byref(launch.arguments), 4, 0)
        found.append(launch.verdict)
    assert same(*found)


def test_a_residual_without_mass_gives_a_draw_from_p(by_kernel):
    given = random_window(9, 3, 2, 8, guided=False)
    options = Sampling.create([0] * 3)
    given["sampling"] = options._replace(guidance=torch.ones(3, 2))
    law = by_reference(given).laws
    given["q"] = law[:, :1] * 2
    given["numbers"][0] = 0.9  # 0.9 * 2 p is not below p
    for verdict in (by_kernel(given), by_reference(given)):
        assert verdict.run.tolist() == [0, 0, 0] and not verdict.flags.any()
        drawn = CategoricalLaw(probabilities=law).sample(given["numbers"][1])
        assert torch.equal(verdict.tokens[:, 0], drawn[:, 0])


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_the_kernel_emits_the_law(by_kernel, coupling):
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
    given["drafts"] = q.sample(
        uniforms(sampling.seed, torch.tensor(7), torch.tensor(0))[3][:, None]
    )
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coupling": "mutual"}, r"coupling must be one of .*, maximal, gumbel, got 'mutual'"),
        ({"q": None}, r"drafts and q must be given together, got only drafts"),
        ({"drafts": None}, r"drafts and q must be given together, got only q"),
        ({"conditional": torch.zeros(3, 40)}, r"conditional must be float32, float16 or bfloat16"),
        ({"conditional": torch.zeros(3, 5, 40).long()}, r"conditional must .* got int64"),
        ({"conditional": torch.zeros(3, 5, 2**18 + 1)}, r"V in \[1, 262144\]"),
        ({"conditional": torch.zeros(0, 5, 40)}, r"B and W of at least 1"),
        ({"unconditional": torch.zeros(3, 5, 41)}, r"unconditional must be float32 \[3, 5, 40\]"),
        ({"unconditional": torch.zeros(3, 5, 40).half()}, r"unconditional .* got float16"),
        (
            {"drafts": torch.zeros(3, 5).long()},
            r"drafts must be int64 \[3, 4\], got int64",
        ),
        ({"drafts": torch.zeros(3, 4)}, r"drafts must be int64 \[3, 4\], got float32"),
        ({"q": torch.zeros(3, 4, 40).double()}, r"q must be float32 \[3, 4, 40\], got float64"),
        ({"rank": torch.zeros(2).long()}, r"rank must be int64 \[3\], got int64 \[2\]"),
        ({"attempt": torch.zeros(3)}, r"attempt must be int64 \[3\], got float32"),
        ({"forced": torch.zeros(3, 4).long()}, r"forced must be int64 \[3, 5\]"),
        ({"numbers": torch.zeros(3, 3, 5)}, r"numbers must be float32 \[4, 3, 5\]"),
        ({"seed": torch.zeros(1).long()}, r"seed must be int64 \[3\], got int64 \[1\]"),
        ({"seed": torch.zeros(()).long()}, r"seed must be int64 \[3\], got int64 \[\]"),
        ({"guidance": torch.ones(3)}, r"guidance must be float32 \[3, 5\]"),
        ({"top_k": torch.zeros(3)}, r"top_k must be int64 \[3\], got float32"),
        ({"rank": torch.zeros(3, device="meta").long()}, r"rank must be on cpu .* got meta"),
    ],
)
def test_what_cannot_be_right_is_refused(change, message):
    given = random_window() | {"rule": parse_rule("exact"), "warps": Warps()}
    given["sampling"] = given["sampling"]._replace(
        **{name: value for name, value in change.items() if name in Sampling._fields}
    )
    given |= {name: value for name, value in change.items() if name not in Sampling._fields}
    with pytest.raises(ValueError, match=message):
        verify(**given)


on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def to_gpu(given):
    def move(value):
        if isinstance(value, Sampling):
            return Sampling(*(option.cuda() for option in value))
        return value if value is None else value.cuda()

    return {name: move(value) for name, value in given.items()}


def by_gpu(given, rule="exact", coupling="maximal"):
    warps = Warps.of(given["sampling"])
    codes = random_codes(rule, given["conditional"].shape[-1])
    codes = None if codes is None else codes.cuda()
    verdict = dispatch.verify(
        **to_gpu(given), warps=warps, rule=rule, coupling=coupling, codes=codes
    )
    return Verdict(*(value.cpu() for value in verdict))


@on_a_gpu
@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", NARROW)
def test_a_gpu_gives_the_bits_of_the_host_build(monkeypatch, by_kernel, rule, coupling, dtype):
    monkeypatch.setenv(dispatch.VARIABLE, "cuda")
    tables = parse_rule(rule).compares_codes  # of V x V distances
    for seed, vocabulary in enumerate((1, 31, 1000, 16_384, 70_001)[: 3 if tables else 5]):
        given = random_window(seed, 2 + seed, 5, vocabulary, dtype, seed % 2 > 0, seed % 3 > 0)
        for numbers in (given["numbers"], None):
            injected = given | {"numbers": numbers}
            assert same(by_gpu(injected, rule, coupling), by_kernel(injected, rule, coupling))


@on_a_gpu
def test_bad_values_on_a_gpu(monkeypatch, by_kernel):
    monkeypatch.setenv(dispatch.VARIABLE, "cuda")
    given, flags = damaged()
    verdict = by_gpu(given)
    assert torch.equal(verdict.flags, flags)
    assert same(verdict, by_kernel(given))


@on_a_gpu
def test_a_captured_graph_follows_its_inputs(monkeypatch, by_kernel):
    monkeypatch.setenv(dispatch.VARIABLE, "cuda")
    first, second = (random_window(seed, 3, 6, 500) | {"numbers": None} for seed in (1, 2))
    static, warps = to_gpu(first), Warps(True, (1,), True)
    dispatch.verify(**static, warps=warps)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = dispatch.verify(**static, warps=warps)
    for given in (first, second, first):
        for name, value in to_gpu(given).items():
            pairs = (
                zip(static[name], value, strict=True)
                if name == "sampling"
                else [(static[name], value)]
            )
            for old, new in pairs:
                if old is not None:
                    old.copy_(new)
        graph.replay()
        assert same(Verdict(*(value.cpu() for value in captured)), by_kernel(given))
