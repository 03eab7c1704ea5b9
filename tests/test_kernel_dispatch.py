"""Who verifies a window and how it is asked: the operator, the choice, and the compiled kernel."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from visual_ar.accel.kernels import device, dispatch
from visual_ar.accel.kernels.inputs import random_codes, random_window
from visual_ar.accel.kernels.reference import verify
from visual_ar.accel.kernels.specialise import bound_rule
from visual_ar.accel.rules.parse import RULES
from visual_ar.sampling import Warps

STRUCTURES = sorted({rule.structure for rule in RULES.values()} - {None})


def as_operator(given, rule="exact", coupling="maximal"):
    """Arguments of the operator."""
    warps, codes = Warps.of(given["sampling"]), random_codes(rule, 40)
    options = {"rule": rule, "coupling": coupling, "codes": codes}
    named = {**given, **given["sampling"]._asdict(), **options}
    del named["sampling"]
    return named | {
        "warp_temperature": warps.temperature,
        "warp_top_k": list(warps.top_k),
        "warp_top_p": warps.top_p,
    }


@pytest.mark.parametrize("guided", [True, False])
def test_the_operator_is_well_behaved(guided):
    given = random_window(11, guided=guided, forced=guided)
    operator = torch.ops.visual_ar.verify.default
    torch.library.opcheck(operator, (), as_operator(given))
    torch.library.opcheck(operator, (), as_operator(given, "lantern", "gumbel"))
    undrafted = given | {"drafts": None, "q": None}
    torch.library.opcheck(operator, (), as_operator(undrafted, coupling="gumbel"))


def test_the_operator_is_the_reference_on_a_cpu():
    given = random_window(12)
    given["warps"] = Warps.of(given["sampling"])
    for rule in ("exact", "omega/omega=1.5/decay=0.2", "typical", "lantern", "grouped"):
        codes = random_codes(rule, 40)
        bound = bound_rule(rule, codes, 40, torch.device("cpu"))
        pairs = zip(
            dispatch.verify(**given, rule=rule, codes=codes),
            verify(**given, rule=bound),
            strict=True,
        )
        assert all(torch.equal(*pair) for pair in pairs)


def test_the_operator_refuses_what_the_kernel_has_not():
    given = random_window() | {"warps": Warps()}
    with pytest.raises(ValueError, match=r"rule must be exact, grouped, .* got 'block'"):
        dispatch.verify(**given, rule="block")
    table = torch.zeros(40, 3, dtype=torch.int64)
    for rule, codes, message in (
        ("exact", table, r"codes must be left out with rule exact, got int64 \[40, 3\] on cpu"),
        ("lantern", None, r"codes must be given with rule lantern, got None"),
        ("lantern", table[1:], r"codes must be int64 \[40, k\] on cpu .* got int64 \[39, 3\]"),
        ("lantern++", table.float(), r"codes must be int64 \[40, k\] .* got float32 \[40, 3\]"),
        ("grouped", table, r"codes must be float32 \[40, k\] .* got int64"),
        ("lantern", table.to("meta"), r"codes must be .* on cpu .* on meta"),
    ):
        with pytest.raises(ValueError, match=message):
            dispatch.verify(**given, rule=rule, codes=codes)
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

    def compile_for(source, architecture, structure):
        compiled.append((architecture, structure))
        return b"binary"

    monkeypatch.setattr(device, "compile_for", compile_for)
    for _ in range(2):
        assert device.binary_for("sm_90") == b"binary"
    assert device.binary_for("sm_80") == b"binary"
    assert device.binary_for("sm_80", "Omega") == b"binary"
    assert compiled == [("sm_90", "Exact"), ("sm_80", "Exact"), ("sm_80", "Omega")]
    assert [path.suffix for path in (tmp_path / "visual_ar" / "kernels").iterdir()] == [
        ".cubin"
    ] * 3


def test_the_compiler_says_what_is_wrong():
    pytest.importorskip("cuda.bindings.nvrtc", reason="needs NVRTC")
    good = b'extern "C" __global__ void nothing() {}'
    assert device.compile_for(good, "sm_90").startswith(b"\x7fELF")
    with pytest.raises(RuntimeError, match=r"(?s)does not compile for sm_90: .*nothing"):
        device.compile_for(good.replace(b"()", b"(nothing)"), "sm_90")


@pytest.mark.parametrize(
    ("structure", "architecture"),
    [
        *((structure, "sm_90") for structure in STRUCTURES),
        *(("Exact", architecture) for architecture in ("sm_80", "sm_100")),
    ],
)
def test_the_kernel_compiles(structure, architecture):
    """With the compiler that a GPU's user has; .ci/kernels compiles the rest with nvcc."""
    pytest.importorskip("cuda.bindings.nvrtc", reason="needs NVRTC")
    binary = device.compile_for(device.SOURCE.read_bytes(), architecture, structure)
    assert binary.startswith(b"\x7fELF")
    for name in (*device.KERNELS.values(), "settle"):
        assert name.encode() in binary


PTXAS = """ptxas info    : Compiling entry function 'judge_float32' for 'sm_90'
ptxas info    : Function properties for judge_float32
    8 bytes stack frame, {spilled} bytes spill stores, 0 bytes spill loads
ptxas info    : Used 60 registers, used 1 barriers, 17072 bytes smem
"""


@pytest.mark.parametrize(
    ("spilled", "code", "text"),
    [
        (0, 0, "sm_90    Exact    judge_float32           60       0"),
        (8, 1, "sm_90    Exact    judge_float32           60       8"),
        (None, 0, "skipped, there is no nvcc on this machine"),
    ],
)
def test_continuous_integration_fails_on_a_spill(tmp_path, spilled, code, text):
    for tool in ("bash", "dirname", "mktemp", "rm", "awk", "tail", "cat"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    if spilled is not None:
        (tmp_path / "log").write_text(PTXAS.format(spilled=spilled))
        nvcc = tmp_path / "nvcc"
        nvcc.write_text(f"#!{shutil.which('bash')}\ncat {tmp_path / 'log'}\n")
        nvcc.chmod(0o755)
    script = Path(__file__).parent.parent / ".ci" / "kernels"
    command, only = [shutil.which("bash"), script, "Exact"], {"PATH": str(tmp_path)}
    result = subprocess.run(command, env=only, capture_output=True, text=True)
    assert result.returncode == code, result.stderr
    assert text in result.stdout
