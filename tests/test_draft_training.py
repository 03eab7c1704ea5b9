"""Training of a draft head: from a recipe and a finished generator to a pipeline that has one."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_training import TIMES

from visual_ar.accel.draft_head import DraftHeadDecoding
from visual_ar.data.dataset import Dataset, digest, save
from visual_ar.pipeline import VisualARPipeline
from visual_ar.training import load_recipe, run
from visual_ar.training.progress import Log

RECIPE = """
name = "emoji_draft"
kind = "draft"
dataset = "cifar10"
base = "emoji"
steps = 6
batch = 4
splits = ["train"]
held_out = "test"
soft = 0.05
crops = 2
shift = 1
depth = 2

[optimiser]
learning_rate = 2e-3
muon = true

[logging]
row = 1
measure = 3
checkpoint = 3
"""
CHAIN = {"acceptance_1", "acceptance_2"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A prepared folder of 24 noisy pictures in three classes."""
    draw = np.random.default_rng(0)
    pictures = draw.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
    splits = ["train"] * 18 + ["test"] * 6
    manifest = {
        "name": "cifar10",
        "shape": list(pictures.shape),
        "pictures_sha256": digest(pictures),
        "counts": {"train": 18, "test": 6},
    }
    labels = np.arange(24) % 3
    dataset = Dataset(
        "cifar10", pictures, splits, [], labels, ["cat", "dog", "frog"], manifest=manifest
    )
    folder = tmp_path / "data"
    save(dataset, folder)
    return folder


@pytest.fixture
def recipe(tmp_path: Path, tiny_pipeline: VisualARPipeline) -> Path:
    """A recipe whose generator is finished."""
    tiny_pipeline.save_pretrained(tmp_path / "emoji" / "pipeline")
    path = tmp_path / "draft.toml"
    path.write_text(RECIPE)
    return path


def _rows(output: Path) -> list[dict[str, str]]:
    with (output / "log.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def test_a_resumed_head_equals_an_uninterrupted_one(
    recipe: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    metrics = run(recipe, data, whole)
    write = Log.write

    def interrupted(self: Log, row: dict[str, Any]) -> None:
        if row["step"] == 5:
            raise KeyboardInterrupt
        write(self, row)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Log, "write", interrupted)
        run(recipe, data, parts)
    run(recipe, data, parts)
    assert _rows(parts) == _rows(whole)
    weights = "pipeline/draft_head/diffusion_pytorch_model.safetensors"
    ours, theirs = (load_file(output / weights) for output in (parts, whole))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert {value.dtype for value in ours.values()} == {torch.float16}

    quality = metrics["quality"]
    assert set(quality) == {*CHAIN, "accepted_length", "window", "held_out_pictures"}
    assert all(0 < quality[key] <= 1 for key in CHAIN)
    assert 1 <= quality["accepted_length"] <= quality["window"] == 5

    path = tmp_path / "emoji" / "pipeline" / "model" / "diffusion_pytorch_model.safetensors"
    trained = load_file(path)
    other = trained | {"output.weight": trained["output.weight"] + 1}
    save_file(other, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="trained with other weights of the base"):
        run(recipe, data, parts)
    save_file(trained, path, metadata={"format": "pt"})

    base = VisualARPipeline.from_pretrained(tmp_path / "emoji" / "pipeline")
    pipe = VisualARPipeline.from_pretrained(whole / "pipeline")
    assert pipe.config.guidance_scale == base.config.guidance_scale
    assert pipe.config.class_names == base.config.class_names
    assert type(pipe.scheduler) is type(base.scheduler)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DraftHeadDecoding(window=3)
    stats = pipe(class_labels="cat", seeds=1).stats
    assert stats.draft_evaluations == 2 * stats.passes[0]
    assert (whole / "pipeline" / "draft_head" / "config.json").read_text().count(str(tmp_path)) == 0


def test_a_head_needs_its_generator(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "draft.toml"
    path.write_text(RECIPE)
    with pytest.raises(
        FileNotFoundError, match="the generator must be trained first: recipe emoji"
    ):
        run(path, data, tmp_path / "out")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("depth = 0", "depth must be at least 1, got 0"),
        ("guidance = [3.0, 1.0]", r"guidance must be a range from low to high.*got \[3.0, 1.0\]"),
        ("temperature = [0.0, 1.0]", r"temperature must be a range .* at least 0.1, got \[0.0"),
        ("model = {dim = 32}", "model must be left out, a draft head has the sizes of its gener"),
    ],
)
def test_bad_recipes_are_refused(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "draft.toml"
    path.write_text(RECIPE.replace("depth = 2", line))
    with pytest.raises(ValueError, match=message):
        load_recipe(path)


def test_the_bundled_head_is_small() -> None:
    """A head for the emoji generator stays below 2 MB in float16."""
    from visual_ar.models.draft_head import DraftHead

    options = load_recipe("emoji").model
    with torch.device("meta"):
        head = DraftHead(options["dim"], options["n_head"], 4096, 16)
    assert 2 * sum(parameter.numel() for parameter in head.parameters()) < 2e6
    assert load_recipe("emoji_draft").base == "emoji"
