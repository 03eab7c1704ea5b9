"""`visual-ar bench` measures a saved pipeline at its own settings and prints what was asked for."""

import json

import pytest
import torch
from typer.testing import CliRunner

from visual_ar.accel.sequential import SequentialDecoding
from visual_ar.cli.main import app
from visual_ar.evaluation import speed
from visual_ar.evaluation.speed import Schedule
from visual_ar.evaluation.speed_table import heading
from visual_ar.evaluation.workload import Options, from_pipeline


def test_a_pipeline_is_measured_at_its_own_sampling_settings(make_tiny_pipeline):
    pipe = make_tiny_pipeline(text=True, temperature=0.8, top_k=5, guidance_schedule="linear")
    schedule = Schedule(pictures=4, batches=(4,), rounds=1, warmup=0, seed=9)
    report = speed.bench_pipeline(
        pipe, "tiny", ["red apple", "tree"], Options(top_p=0.9), ["exact-match:window=4"], schedule
    )
    assert report["model"] == "tiny"
    assert report["sampling"] == {
        "guidance_scale": 2.0,
        "temperature": 0.8,
        "top_k": 5,
        "top_p": 0.9,
        "guidance_schedule": "linear",
    }
    drawn = pipe(["red apple", "tree"] * 2, top_p=0.9, seeds=9, output_type="tokens")
    work = from_pipeline(pipe, ["red apple", "tree"], Options(top_p=0.9))
    contender = speed.Contender(SequentialDecoding(), 1)
    assert torch.equal(speed.draw(contender, work, range(4), [9, 10, 11, 12]).tokens, drawn.tokens)
    row = report["methods"][1]["batches"][0]
    assert row["identical"]["mismatch_rate"] == 0
    assert "temperature 0.8" in heading(report)
    assert "guidance_schedule linear" in heading(report)


@pytest.fixture
def saved(tiny_pipeline, tmp_path):
    """Folder of a tiny class-conditional pipeline."""
    tiny_pipeline.save_pretrained(tmp_path / "tiny")
    return str(tmp_path / "tiny")


def command(*words):
    return CliRunner().invoke(app, ["bench", "--device", "cpu", "--rounds", "1", *words])


def test_the_command_prints_one_json_document(saved):
    words = ["--methods", "jacobi:window=4 exact-match:window=2", "--pictures", "2", "--plain"]
    result = command("--model", saved, *words, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    names = ["sequential", "jacobi:window=4", "exact-match:window=2"]
    assert [method["name"] for method in report["methods"]] == names
    assert report["subjects"] == ["cat", "dog", "frog"]
    assert report["batches"] == [1, 2]
    assert report["sampling"] == {
        "guidance_scale": 2.0,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "guidance_schedule": "constant",
    }


def test_the_command_prints_a_table(saved):
    result = command("--model", saved, "--methods", "jacobi:window=4", "--pictures", "1")
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert "1 rounds of 1 pictures at batch 1;" in text
    assert "bits a token" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "warp"], "method must be one of"),
        (["--methods", "jacobi:window=0"], "window must be"),
        (["--class", "horse"], "class_labels must be"),
        (["--pictures", "4", "--batch", "3"], "batch must be at least 1 and divide the 4 pictures"),
        (["--plain", "--top-k", "5"], "top-k must be left out with --plain, got 5"),
        (["--top-p", "2"], "top_p must be in (0, 1], got 2"),
    ],
)
def test_wrong_options_end_in_one_sentence(saved, words, message):
    result = command("--model", saved, *words)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
