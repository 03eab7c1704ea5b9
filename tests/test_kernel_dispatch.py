"""Who verifies a window and how it is asked: the operator, the choice, and the compiled kernel."""

import pytest
import torch

from visual_ar.accel.kernels import device, dispatch
from visual_ar.accel.kernels.inputs import random_window
from visual_ar.accel.kernels.reference import verify
from visual_ar.accel.rules import parse_rule
from visual_ar.sampling import Warps


def as_operator(given, rule="exact", coupling="maximal"):
    """Arguments of the operator."""
    warps = Warps.of(given["sampling"])
    named = {**given, **given["sampling"]._asdict(), "rule": rule, "coupling": coupling}
    del named["sampling"]
    return named | {
        "warp_temperature": warps.temperature,
        "warp_top_k": list(warps.top_k),
        "warp_top_p": warps.top_p,
    }


@pytest.mark.parametrize("guided", [True, False])
def test_the_operator_is_well_behaved(guided):
    given = random_window(11, guided=guided, forced=guided)
    torch.library.opcheck(torch.ops.visual_ar.verify.default, (), as_operator(given))


def test_the_operator_is_the_reference_on_a_cpu():
    given = random_window(12)
    given["warps"] = Warps.of(given["sampling"])
    for rule in ("exact", "omega/omega=1.5/decay=0.2"):
        pairs = zip(
            dispatch.verify(**given, rule=rule),
            verify(**given, rule=parse_rule(rule)),
            strict=True,
        )
        assert all(torch.equal(*pair) for pair in pairs)


def test_the_operator_refuses_what_the_kernel_has_not():
    given = random_window() | {"warps": Warps()}
    with pytest.raises(ValueError, match=r"rule must be exact or omega .* got 'typical'"):
        dispatch.verify(**given, rule="typical")
    with pytest.raises(ValueError, match=r"drafts must be int64"):
        dispatch.verify(**given | {"drafts": torch.zeros(3, 4)})


def test_the_variable_decides(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    assert dispatch.choose(cpu).backend == "torch" and "this is cpu" in dispatch.choose(cpu).reason
    monkeypatch.setenv(dispatch.VARIABLE, "torch")
    assert dispatch.choose(cpu) == ("torch", "VISUAL_AR_KERNELS asks for it")
    monkeypatch.setenv(dispatch.VARIABLE, "cuda")
    with pytest.raises(RuntimeError, match=r"asks for the CUDA kernel on cpu, but .* CUDA GPU"):
        dispatch.choose(cpu)
    monkeypatch.setenv(dispatch.VARIABLE, "fast")
    with pytest.raises(ValueError, match=r"must be one of auto, torch, cuda, got 'fast'"):
        dispatch.choose(cpu)


def test_a_kernel_that_does_not_load_is_replaced_with_one_warning(monkeypatch):
    def refuse(index):
        raise RuntimeError("no such driver")

    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    monkeypatch.setattr(device, "load", refuse)
    dispatch._load_problem.cache_clear()
    dispatch._warn.cache_clear()
    gpu = torch.device("cuda", 0)
    try:
        with pytest.warns(UserWarning, match="plain torch, which is slower: .* no such driver"):
            assert dispatch.choose(gpu).backend == "torch"
        assert dispatch.choose(gpu).backend == "torch"  # warnings are errors here
        monkeypatch.setenv(dispatch.VARIABLE, "cuda")
        with pytest.raises(RuntimeError, match=r"on cuda:0, but .* no such driver"):
            dispatch.choose(gpu)
    finally:
        dispatch._load_problem.cache_clear()
        dispatch._warn.cache_clear()


def test_a_compiled_kernel_is_kept(monkeypatch, tmp_path):
    pytest.importorskip("cuda.bindings.nvrtc", reason="needs NVRTC")
    monkeypatch.setenv("VISUAL_AR_CACHE", str(tmp_path))
    compiled = []

    def compile_for(source, architecture):
        compiled.append(architecture)
        return b"binary"

    monkeypatch.setattr(device, "compile_for", compile_for)
    for _ in range(2):
        assert device.binary_for("sm_90") == b"binary"
    assert device.binary_for("sm_80") == b"binary"
    assert compiled == ["sm_90", "sm_80"]
    assert [path.suffix for path in (tmp_path / "visual_ar" / "kernels").iterdir()] == [
        ".cubin"
    ] * 2


def test_the_compiler_says_what_is_wrong():
    pytest.importorskip("cuda.bindings.nvrtc", reason="needs NVRTC")
    good = b'extern "C" __global__ void nothing() {}'
    assert device.compile_for(good, "sm_90").startswith(b"\x7fELF")
    with pytest.raises(RuntimeError, match=r"(?s)does not compile for sm_90: .*nothing"):
        device.compile_for(good.replace(b"()", b"(nothing)"), "sm_90")
