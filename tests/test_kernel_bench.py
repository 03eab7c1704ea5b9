"""What a pass costs: `visual-ar bench kernels` and `bench loop` on tiny sizes; the GPU report."""

import io
import itertools
import json

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from visual_ar.cli.main import app
from visual_ar.evaluation import gpu_report, kernel_speed, timing
from visual_ar.evaluation.kernel_speed import Grid, bench_kernels
from visual_ar.evaluation.kernel_table import render_kernels, render_loop
from visual_ar.evaluation.loop_speed import bench_loop, random_model, weight_bytes
from visual_ar.models.llamagen import LlamaGen

CPU = torch.device("cpu")
SMALL = Grid((1, 2), (3,), (20,), ("exact", "lantern"), torch.float32, top_k=5)


def command(*words):
    return CliRunner().invoke(app, ["bench", *words, "--device", "cpu", "--copied", "1"])


def ticking(step=1e-3):
    """A clock that advances by `step` at every look."""
    ticks = itertools.count()
    return lambda: step * next(ticks)


def tiny():
    model = LlamaGen(
        dim=16, n_layer=2, n_head=2, vocab_size=12, grid_size=6, ffn_dim=24, num_classes=3
    )
    torch.nn.init.normal_(model.output.weight, std=0.5)
    return model.eval()


def test_a_call_is_timed_without_its_warm_up():
    calls = []
    functions = [lambda: calls.append("a"), lambda: calls.append("b")]
    seconds = timing.seconds_a_call(functions, CPU, calls=5, rounds=3, clock=ticking(6.0))
    assert seconds == 1.0  # 6 seconds a round of three turns of both
    assert calls.count("a") == calls.count("b") == 1 + 3 * 4
    assert timing.copy_bandwidth(CPU, 1000, ticking(2.0)) == 2000 / 0.5


def test_every_window_of_the_grid_is_timed():
    found = bench_kernels(SMALL, CPU, ("torch", "kernel", "flashinfer"), ticking(), copied=1000)
    assert [(row["pictures"], row["rule"]) for row in found["rows"]] == [
        (1, "exact"),
        (1, "lantern"),
        (2, "exact"),
        (2, "lantern"),
    ]
    assert set(found["missing"]) == {"kernel", "flashinfer"}
    row = found["rows"][2]
    assert row["bytes"] == 3 * 2 * 3 * 20 * 4  # two logits, one law
    result = row["results"]["torch"]
    assert result["floor_ratio"] == pytest.approx(result["seconds"] / row["floor_seconds"])
    assert result["bytes_per_second"] == pytest.approx(row["bytes"] / result["seconds"])
    json.dumps(found)
    assert render_kernels(found)


def test_a_contender_that_breaks_is_reported(monkeypatch):
    def refuse(function):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", refuse)
    grid = SMALL._replace(pictures=(1,), rules=("exact",))
    found = bench_kernels(grid, CPU, ("torch.compile", "torch"), ticking(), copied=1000)
    results = found["rows"][0]["results"]
    assert results["torch.compile"] == {"error": "no compiler"}
    assert "seconds" in results["torch"]
    assert render_kernels(found)


@pytest.mark.parametrize("capturable", [True, False])
def test_another_s_kernel_is_captured_where_it_can_be(monkeypatch, capturable):
    """With a CPU as a device that captures, where eager calls take three times as long."""

    def seconds(calls, device, captured=True, calls_a_round=32, clock=None):
        if captured and calls == ["theirs"] and not capturable:
            raise RuntimeError("operation not permitted when stream is capturing")
        return 1.0 if captured else 3.0

    contenders = {
        "ours": kernel_speed.Contender(lambda *_: "ours", True, lambda device: None),
        "torch": kernel_speed.Contender(lambda *_: "torch", False, lambda device: None),
        "theirs": kernel_speed.Contender(lambda *_: "theirs", True, lambda device: None, True),
    }
    monkeypatch.setattr(kernel_speed, "CONTENDERS", contenders)
    monkeypatch.setattr(timing, "captures", lambda device: True)
    monkeypatch.setattr(timing, "copy_bandwidth", lambda *given: 1e9)
    monkeypatch.setattr(timing, "launch_seconds", lambda *given: 1e-6)
    monkeypatch.setattr(timing, "seconds_a_call", seconds)
    grid = SMALL._replace(pictures=(1,), rules=("exact",))
    found = bench_kernels(grid, CPU, tuple(contenders))
    results = found["rows"][0]["results"]
    told = {name: (result["seconds"], result["captured"]) for name, result in results.items()}
    theirs = (1.0, True) if capturable else (3.0, False)
    assert told == {"ours": (1.0, True), "torch": (3.0, False), "theirs": theirs}
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render_kernels(found))
    lines = [line.split() for line in console.export_text().splitlines()]
    runs = {line[0]: line[-1] for line in lines if line and line[0] in contenders}
    assert runs == {"ours": "graph", "torch": "eager", "theirs": "graph" if capturable else "eager"}


def test_the_kernel_takes_part_where_it_serves(monkeypatch):
    """With the operator in the kernel's place; that it is asked is what counts."""
    monkeypatch.setattr(
        kernel_speed.dispatch, "choose", lambda device: kernel_speed.dispatch.Choice("cuda", "")
    )
    asked = []
    monkeypatch.setattr(
        kernel_speed.dispatch, "verify", lambda *_, **given: asked.append(given["rule"])
    )
    bench_kernels(SMALL, CPU, ("kernel",), ticking(), copied=1000)
    assert set(asked) == {"exact", "lantern"}


@pytest.mark.parametrize("method", ["sequential", "jacobi:window=3", "exact-match:window=2"])
def test_a_pass_is_split(method):
    model = tiny()
    found = bench_loop(model, "tiny", [method], batch=2, passes=2, clock=ticking(), copied=1000)
    row = found["rows"][0]
    parts = row["forward_seconds"] + (row["verify_seconds"] or 0) + row["rest_seconds"]
    assert parts == pytest.approx(row["seconds"])
    assert row["verify_seconds"] is None and not row["captured"]
    assert row["tokens_per_pass"] >= 2
    assert row["tokens_per_second"] == pytest.approx(row["tokens_per_pass"] / row["seconds"])
    rate = 2 * found["copy_bytes_per_second"] / found["weight_bytes"]
    assert found["limit_tokens_per_second"] == pytest.approx(rate)
    json.dumps(found)
    assert render_loop(found)


def test_tables_that_are_looked_up_are_not_read_whole():
    model = tiny()
    tables = model.tok_embeddings.weight.nbytes + model.cls_embedding.embedding_table.weight.nbytes
    assert weight_bytes(model) == sum(p.nbytes for p in model.parameters()) - tables


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["kernels", "--window", "1"], "window must be at least 2, got 1"),
        (["kernels", "-b", "0"], "pictures must be at least 1, got 0"),
        (["kernels", "--rule", "block"], "rule must be exact, grouped, lantern"),
        (["kernels", "--by", "hand"], "contender must be one of kernel, torch"),
        (["kernels", "--top-k", "-1"], "top_k must be at least 0 (0 is off), got -1"),
        (["kernels", "--coupling", "loose"], "coupling must be one of"),
        (["loop", "--size", "GPT-S"], "size must be one of GPT-B, "),
    ],
)
def test_wrong_options_end_in_one_sentence(words, message):
    result = command(*words)
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())


def test_a_loop_needs_numbers():
    with pytest.raises(ValueError, match=r"window must be a number .* got 'jacobi'"):
        bench_loop(tiny(), "tiny", ["jacobi"])
    with pytest.raises(ValueError, match="passes must be at least 1, got 0"):
        bench_loop(tiny(), "tiny", ["sequential"], passes=0)


def test_the_commands(monkeypatch):
    words = ["--by", "torch", "-b", "1", "-w", "2", "--vocabulary", "16", "--top-k", "3"]
    result = command("kernels", *words, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rows"][0]["window"] == 2
    monkeypatch.setattr("visual_ar.evaluation.loop_speed.SIZES", {"small": (1, 2, 16)})
    result = command("loop", "--size", "small", "--grid", "4", "--methods", "sequential")
    assert result.exit_code == 0, result.output
    assert "a pass of small, batch 1" in result.stdout


def test_random_weights_give_laws_that_are_not_flat(monkeypatch):
    monkeypatch.setattr("visual_ar.evaluation.loop_speed.SIZES", {"small": (1, 2, 16)})
    model = random_model("small", CPU, torch.bfloat16, grid=4)
    assert model.dtype == torch.bfloat16 and bool(model.output.weight.std() > 0)


def test_the_report_needs_a_gpu():
    with pytest.raises(ValueError, match="device must be a CUDA GPU for this report, got cpu"):
        gpu_report.run(CPU)


def test_the_report_says_so_in_one_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"Error: device must be a CUDA GPU .* got cpu"):
        gpu_report.main([])


def test_a_kernel_asked_for_where_there_is_none_is_missing(monkeypatch):
    monkeypatch.setenv(kernel_speed.dispatch.VARIABLE, "cuda")
    found = bench_kernels(SMALL, CPU, ("kernel",), ticking(), copied=1000)
    assert "the kernel needs a CUDA GPU, this is cpu" in found["missing"]["kernel"]
    assert all(row["results"] == {} for row in found["rows"])


def test_stages_end_with_the_time():
    def broken(left):
        raise RuntimeError("out of memory")

    stages = {"first": lambda left: left, "broken": broken, "late": lambda left: left}
    found = gpu_report.run_stages(stages, 5.0, ticking(1.0))
    assert found["first"] == 4.0 and found["broken"] == {"error": "out of memory"}
    assert found["late"] is None and set(found["seconds"]) == {"first", "broken"}


def test_stages_are_told_and_written_as_they_end(tmp_path, monkeypatch, capsys):
    def cut(left):
        raise KeyboardInterrupt

    stages = {"tests": lambda left: {"summary": "3 passed"}, "cut": cut}
    monkeypatch.setattr(
        gpu_report,
        "run",
        lambda device, minutes, tell: gpu_report.run_stages(stages, minutes, ticking(1.0), tell),
    )
    path = tmp_path / "report.json"
    with pytest.raises(KeyboardInterrupt):
        gpu_report.main(["--minutes", "60", str(path)])
    assert "tests: {'summary': '3 passed'}" in capsys.readouterr().out
    assert json.loads(path.read_text())["tests"] == {"summary": "3 passed"}


@pytest.mark.parametrize("minutes", [0.1, -1, float("nan")])
def test_too_few_minutes_are_refused(minutes):
    with pytest.raises(ValueError, match=r"minutes must be at least 0\.5, got"):
        gpu_report.run(torch.device("cuda"), minutes=minutes)


def test_what_was_measured_stands_beside_what_is_aimed_at():
    fast = {"kernel": {"seconds": 9e-6, "floor_ratio": 3.0}, "torch": {"seconds": 4e-4}}
    large = {"kernel": {"seconds": 1e-4, "floor_ratio": 2.5}}
    document = {
        "kernels": {"rows": [{"pictures": 1, "results": fast}, {"pictures": 64, "results": large}]},
        "jacobi": {"rows": [{"seconds": 2e-3, "forward_seconds": 1.9e-3}]},
        "sequential": None,
        "tests": {"summary": "40 passed, 3 skipped", "status": 0},
    }
    found = gpu_report.bars(document)
    assert [bar.met for bar in found] == [True, True, False, None, True, None, True]
    assert [bar.measured for bar in found][:3] == ["9.0 us", "44.4x", "2.50x"]
    assert found[4].measured == "5.0%" and found[5].measured is None
    assert gpu_report.render(found).row_count == len(found)
    assert [bar.met for bar in gpu_report.bars({})] == [None] * 7


@pytest.mark.parametrize(
    "tests",
    [
        {"summary": "39 passed, 1 error", "status": 1},
        {"summary": "5 passed, 1 failed", "status": 1},
        {"summary": "no tests ran", "status": 5},
        {"summary": "not finished in time", "status": None},
        {"error": "no memory: 3 passed"},
    ],
)
def test_only_the_exit_status_says_that_tests_passed(tests):
    bar = gpu_report.bars({"tests": tests})[-1]
    assert bar.met is False and bar.measured in tests.values()


@pytest.mark.parametrize(("body", "status"), [("pass", 0), ("1 / 0", 1)])
def test_the_exit_status_of_the_test_run_is_told(tmp_path, monkeypatch, body, status):
    """An error of a fixture after a test that passed: its line still says passed."""
    (tmp_path / "tests").mkdir()
    text = f"import pytest\n@pytest.fixture\ndef end():\n    yield\n    {body}\n"
    (tmp_path / "tests" / "test_some.py").write_text(f"{text}def test_gpu(end):\n    pass\n")
    monkeypatch.setattr(gpu_report, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_report, "TESTS", ("some",))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # it starts sooner without
    found = gpu_report._tests(3600.0)
    assert "1 passed" in found["summary"] and found["status"] == status
