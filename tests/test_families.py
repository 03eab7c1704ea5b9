"""The table of families compares what can be compared, and counts what each model did."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from visual_ar.accel.groups import GroupDecoding
from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.accel.loop import window
from visual_ar.cli import drawing
from visual_ar.cli.main import app
from visual_ar.data.dataset import Dataset
from visual_ar.evaluation.families import bench_families, comparable, measured_quality
from visual_ar.evaluation.quality import Features
from visual_ar.evaluation.speed import Schedule
from visual_ar.models.nar import NAR

SCHEDULE = Schedule(pictures=2, batches=(1, 2), rounds=1, warmup=0)


@pytest.fixture
def pipes(make_tiny_pipeline, make_parallel_pipeline, monkeypatch):
    """A next-token and a parallel pipeline of one tokenizer, and one of another."""
    monkeypatch.setattr(window, "tuned_window", lambda *given: 4)
    plain, other = make_tiny_pipeline(), make_tiny_pipeline(text=True)
    with torch.no_grad():
        next(iter(other.image_tokenizer.parameters())).add_(1)
    return {"fast": make_parallel_pipeline(plain), "other": other, "plain": plain}


def test_families_with_one_tokenizer_are_compared(pipes):
    assert [list(some) for some in comparable(pipes)] == [["other"], ["plain", "fast"]]
    report = bench_families(
        pipes,
        lambda pipe: ["red apple"] if pipe.text_encoder else ["cat"],
        schedule=SCHEDULE,
        quality=lambda pipe: {"share": 0.5} if pipe is pipes["fast"] else None,
    )
    alone, rows = report["families"]
    assert [row["model"] for row in alone] == ["other"]
    names = [(row["model"], row["method"]) for row in rows]
    assert names == [
        ("plain", "SequentialDecoding"),
        ("fast", "GroupDecoding"),
        ("plain+fast", "HybridDecoding"),
    ]
    assert [row["quality"] for row in rows] == [None, {"share": 0.5}, None]
    sequential, groups, hybrid = (row["batches"][1] for row in rows)
    assert sequential["passes_per_picture"] == 16 and groups["passes_per_picture"] == 7
    work = sum((1, 2, 3, 4, 4, 3, 2))  # a pass is as wide as the group that it feeds or draws
    assert groups["head_evaluations_per_picture"] == work
    assert hybrid["passes_per_picture"] <= 16
    drafted = hybrid["head_evaluations_per_picture"] - 4 * hybrid["passes_per_batch"]
    assert drafted == pytest.approx(work)
    assert rows[2]["parameters"] == rows[0]["parameters"] + rows[1]["parameters"]
    assert pipes["plain"]._drafts is None


def test_every_pair_has_its_own_drafter(pipes, make_parallel_pipeline):
    plain, fast = pipes["plain"], pipes["fast"]
    slow = make_parallel_pipeline(plain)
    slow.register_modules(
        model=NAR(
            dim=32, n_layer=2, n_head=2, vocab_size=16, grid_size=4, ffn_dim=48, num_classes=3
        ).eval()
    )
    some = {"plain": plain, "fast": fast, "slow": slow}
    (rows,) = bench_families(some, lambda pipe: ["cat"], schedule=SCHEDULE)["families"]
    sizes = {row["model"]: row["parameters"] for row in rows}
    assert sizes["slow"] > sizes["fast"]
    for name in ("fast", "slow"):
        assert sizes[f"plain+{name}"] == sizes["plain"] + sizes[name]
    assert plain.draft_model is None


def test_quality_stands_beside_the_method_it_was_measured_of(pipes):
    plain = pipes["plain"]
    plain.register_modules(scheduler=SpeculativeJacobiDecoding(window=4))
    (rows,) = bench_families(
        {"plain": plain}, lambda pipe: ["cat"], schedule=SCHEDULE, quality=lambda pipe: {"x": 1.0}
    )["families"]
    found = [(row["method"], row["quality"]) for row in rows]
    assert found == [
        ("SequentialDecoding", None),
        ("SpeculativeJacobiDecoding", {"x": 1.0}),
    ]


def test_a_quality_that_cannot_be_measured_is_refused_before_anything_is_drawn(pipes):
    drawn = []

    def refuse(pipe):
        raise ValueError("prompts must be in 1..3, got 4")

    with pytest.raises(ValueError, match=r"prompts must be in 1\.\.3"):
        bench_families(
            pipes,
            lambda pipe: ["red apple"] if pipe.text_encoder else ["cat"],
            schedule=SCHEDULE,
            quality=refuse,
            progress=lambda done, total: drawn.append(done),
        )
    assert not drawn


def test_every_dataset_is_checked_before_the_first_is_drawn_for(pipes):
    pictures = np.zeros((4, 8, 8, 3), np.uint8)
    labelled = Dataset(
        "cifar10", pictures, ["test"] * 4, labels=np.zeros(4, int), classes=["cat", "dog", "frog"]
    )
    items = [{"prompt": f"thing {n}", "group": f"thing {n}", "aliases": []} for n in range(3)]
    named = Dataset("emoji", pictures[:3], ["train"] * 3, items)
    features = Features(lambda pixels: pytest.fail("a feature was extracted"), "none")
    with pytest.raises(ValueError, match=r"prompts must be in 1\.\.3, got 4"):
        measured_quality(pipes["plain"], [labelled, named], features, 4, 0)


def test_the_command_prints_the_table(pipes, monkeypatch):
    monkeypatch.setattr("visual_ar.assets.bundled", lambda: {"fast": "", "plain": ""})
    monkeypatch.setattr(drawing, "load", lambda name, *given: pipes[name])
    words = ["bench", "--suite", "families", "--pictures", "2", "--rounds", "1", "--warmup", "0"]
    result = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    printed = " ".join(result.stdout.split())
    for text in ("plain Sequential", "fast Group", "plain+fast Hybrid", "not measured (--data)"):
        assert text in printed
    result = CliRunner().invoke(app, [*words, "--json"])
    assert json.loads(result.stdout)["families"][0][1]["method"] == GroupDecoding.__name__


def test_options_that_do_not_fit_are_refused():
    words = ["bench", "--suite", "families", "--draft-model", "emoji"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code != 0
    assert "must be left out with --suite families" in str(result.exception) + result.output


def test_no_model_is_refused():
    with pytest.raises(ValueError, match="models must name at least one model, got none"):
        bench_families({}, lambda pipe: ["cat"])


def test_a_drafter_is_refused_where_nothing_verifies():
    result = CliRunner().invoke(app, ["generate", "tree", "--draft-model", "emoji-nar"])
    assert result.exit_code != 0
    assert "draft_model must be left out without --method hybrid" in (
        str(result.exception) + result.output
    )
