"""The verification kernel on a GPU gives the bits of its host build. Skipped without one."""

import pytest
import torch
from host_kernel import (
    IMPOSSIBLE,
    NARROW,
    RULES,
    by_gpu,
    by_kernel,
    by_reference,
    damaged,
    on_a_gpu,
    same,
    to_gpu,
    with_impossible_codes,
)

from visual_ar.accel.kernels import dispatch
from visual_ar.accel.kernels.inputs import random_window
from visual_ar.accel.kernels.reference import COUPLINGS, Verdict
from visual_ar.accel.rules.parse import parse_rule
from visual_ar.sampling import Warps

pytestmark = on_a_gpu


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", NARROW)
def test_a_gpu_gives_the_bits_of_the_host_build(monkeypatch, rule, coupling, dtype):
    monkeypatch.setenv(dispatch.VARIABLE, "cuda")
    tables = parse_rule(rule).codes_dtype is not None  # of V x V distances
    for seed, vocabulary in enumerate((1, 31, 1000, 16_384, 70_001)[: 3 if tables else 5]):
        given = random_window(seed, 2 + seed, 5, vocabulary, dtype, seed % 2 > 0, seed % 3 > 0)
        for numbers in (given["numbers"], None):
            injected = given | {"numbers": numbers}
            assert same(by_gpu(injected, rule, coupling), by_kernel(injected, rule, coupling))


def test_bad_values_on_a_gpu(monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "cuda")
    given, flags = damaged()
    verdict = by_gpu(given)
    assert torch.equal(verdict.flags, flags)
    assert same(verdict, by_kernel(given))


def test_a_captured_graph_follows_its_inputs(monkeypatch):
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


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("names", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
@pytest.mark.parametrize("backend", ["cuda", "torch"])
def test_impossible_codes_stay_so_under_guidance_on_a_gpu(monkeypatch, backend, names, dtype):
    monkeypatch.setenv(dispatch.VARIABLE, backend)
    given = with_impossible_codes(3, names, dtype)
    found = by_gpu(given)
    if backend == "cuda":
        assert same(found, by_kernel(given))
    wanted = by_reference(given)
    torch.testing.assert_close(found.laws, wanted.laws, rtol=2e-5, atol=1e-7)
    assert torch.equal(found.flags, wanted.flags) and not found.flags.any()
