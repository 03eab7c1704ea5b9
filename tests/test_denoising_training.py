"""A denoiser's training, from a finished run to a pipeline and to the small change of one."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_training import TIMES

from visual_ar import loading
from visual_ar.accel.denoising import SpeculativeDenoisingDecoding
from visual_ar.data.dataset import Dataset, digest, save
from visual_ar.models.denoising import DenoisingLlamaGen
from visual_ar.pipeline import VisualARPipeline
from visual_ar.training import load_recipe, run
from visual_ar.training.bundle import save_pipeline
from visual_ar.training.progress import Log
from visual_ar.training.recipe import DenoisingRecipe, Optimiser, SamplingDefaults
from visual_ar.training.train_denoiser import DenoisingTraining, noisy_runs

WEIGHTS = "model/diffusion_pytorch_model.safetensors"
BASE = {
    "name": "tiny",
    "kind": "generator",
    "dataset": "emoji",
    "steps": 1,
    "batch": 4,
    "model": {},
    "minutes": None,
    "optimiser": {"learning_rate": 1e-3, "betas": [0.9, 0.95]},
    "splits": ["train"],
    "held_out": "test",
    "alias": 0.5,
    "soft": 0.1,
    "wrong": 0.3,
    "crops": 2,
    "shift": 1,
}
RECIPE = """
name = "tiny_denoising"
kind = "denoising"
dataset = "emoji"
base = "tiny"
steps = 6
batch = 4
longest = 5

[model]
adapter_dim = 8

[optimiser]
learning_rate = 1e-2
warmup = 2

[logging]
row = 1
measure = 3
checkpoint = 3
"""


@pytest.fixture
def runs(tmp_path: Path, make_tiny_pipeline: Any) -> Path:
    """A folder with a dataset, the finished run of a base, and a recipe."""
    pictures = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), np.uint8)
    splits = ["train"] * 16 + ["test"] * 8
    names = [("red apple", "green tree")[k % 2] for k in range(24)]
    items = [
        {"name": name, "tone": None, "prompt": name, "aliases": ["red tree"], "group": name}
        | {"split": split}
        for name, split in zip(names, splits, strict=True)
    ]
    counts = {"train": 16, "test": 8}
    manifest = {"name": "emoji", "shape": [24, 8, 8, 3], "pictures_sha256": digest(pictures)}
    manifest["counts"] = counts
    save(Dataset("emoji", pictures, splits, items, manifest=manifest), tmp_path / "data")
    pipe = make_tiny_pipeline(text=True)
    parts = (pipe.model, pipe.image_tokenizer, pipe.text_encoder)
    (tmp_path / "tiny").mkdir()
    save_pipeline(*parts, None, SamplingDefaults(temperature=0.8), tmp_path / "tiny" / "pipeline")
    (tmp_path / "tiny" / "metrics.json").write_text(json.dumps({"recipe": BASE}))
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


def train(runs: Path, name: str) -> dict[str, Any]:
    return run(runs / "recipe.toml", runs / "data", runs / name)


def rows(output: Path) -> list[dict[str, str]]:
    with (output / "log.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    write = Log.write

    def interrupted(self: Log, row: dict[str, Any]) -> None:
        if row["step"] == step:
            raise KeyboardInterrupt
        write(self, row)

    monkeypatch.setattr(Log, "write", interrupted)


def test_a_resumed_run_equals_an_uninterrupted_one_and_gives_a_pipeline(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = train(runs, "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 5)
        train(runs, "parts")
    train(runs, "parts")
    assert rows(runs / "parts") == rows(runs / "whole")
    ours, theirs = (load_file(runs / name / "pipeline" / WEIGHTS) for name in ("parts", "whole"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)

    base = load_file(runs / "tiny" / "pipeline" / WEIGHTS)
    assert all(torch.equal(base[key], theirs[key]) for key in base), "the base stays what it was"
    learned = theirs["denoiser.adapters.0.feed_forward.w2.weight"]
    assert bool(learned.any()), "the adapters start at zero"
    quality = metrics["quality"]
    assert 0 < quality["held_out_loss"] < 10 and 1 <= quality["passes"] <= 16
    assert (runs / "whole" / "samples.png").stat().st_size > 0
    pipe = VisualARPipeline.from_pretrained(runs / "whole" / "pipeline")
    assert isinstance(pipe.model, DenoisingLlamaGen)
    assert isinstance(pipe.scheduler, SpeculativeDenoisingDecoding)
    assert pipe.config.temperature == 0.8
    pipe.set_progress_bar_config(disable=True)
    assert pipe("red apple", seeds=1).images[0].size == (8, 8)

    base["output.weight"] += 1
    save_file(base, runs / "tiny" / "pipeline" / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="trained with other weights of the base"):
        train(runs, "parts")


def test_a_class_conditional_generator_learns_too(tmp_path: Path, make_tiny_pipeline: Any) -> None:
    pictures = np.random.default_rng(1).integers(0, 256, (12, 8, 8, 3), np.uint8)
    classes, splits = ["cat", "dog", "frog"], ["train"] * 8 + ["test"] * 4
    data = Dataset("cifar10", pictures, splits, labels=np.arange(12) % 3, classes=classes)
    pipe, run = make_tiny_pipeline(), tmp_path / "tiny"
    run.mkdir()
    (tmp_path / "out").mkdir()
    parts = (pipe.model, pipe.image_tokenizer, None, classes)
    save_pipeline(*parts, SamplingDefaults(), run / "pipeline")
    (run / "metrics.json").write_text(json.dumps({"recipe": BASE | {"dataset": "cifar10"}}))
    recipe = DenoisingRecipe(
        name="tiny_denoising",
        kind="denoising",
        dataset="cifar10",
        steps=2,
        batch=4,
        optimiser=Optimiser(learning_rate=1e-2),
        model={"adapter_dim": 8},
        base="tiny",
    )
    quality = DenoisingTraining(recipe, data, tmp_path / "out", torch.device("cpu")).train()
    assert 0 < quality["held_out_loss"] < 10
    again = VisualARPipeline.from_pretrained(tmp_path / "out" / "pipeline")
    assert again.config.class_names == classes
    assert bool(again.model.denoiser.encoding.fc2.weight.any()), "it starts at zero"


def test_the_small_change_brings_its_base_along(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(runs, "whole")
    base, delta = runs / "tiny" / "pipeline", runs / "whole" / "delta"
    monkeypatch.setattr(loading, "bundled", lambda: {"tiny": base, "tiny-sjd2": delta})
    whole = VisualARPipeline.from_pretrained(runs / "whole" / "pipeline")
    small = VisualARPipeline.from_pretrained("tiny-sjd2")
    ours, theirs = small.model.state_dict(), whole.model.state_dict()
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert small.config.temperature == 0.8 and small.scheduler.config.steps == 8
    for pipe in (small, whole):
        pipe.set_progress_bar_config(disable=True)
    tokens = [pipe("green tree", seeds=2, output_type="tokens").tokens for pipe in (small, whole)]
    assert torch.equal(*tokens)
    stored = load_file(delta / WEIGHTS)
    assert all(key.startswith("denoiser.") for key in stored)
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert str(runs) not in (delta / "model" / "config.json").read_text()

    damaged = dict(stored)
    damaged.popitem()
    save_file(damaged, delta / WEIGHTS)
    with pytest.raises(ValueError, match=r"lack the parameter denoiser\."):
        VisualARPipeline.from_pretrained("tiny-sjd2")
    save_file(stored, delta / WEIGHTS)
    index = json.loads((delta / "model_index.json").read_text())
    (delta / "model_index.json").write_text(json.dumps(index | {"_base": 3}))
    with pytest.raises(ValueError, match=r"_base in .*model_index\.json must be .* got 3"):
        VisualARPipeline.from_pretrained("tiny-sjd2")
    other = index | {"model": ["visual_ar.models.llamagen", "LlamaGen"]}
    (delta / "model_index.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match=r"must be a class that adds to another, got .*LlamaGen"):
        VisualARPipeline.from_pretrained("tiny-sjd2")
    (delta / "model_index.json").write_text(json.dumps(index))
    weights = load_file(base / WEIGHTS)
    weights["output.weight"] += 1
    save_file(weights, base / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="model of 'tiny' must have the weights that this one"):
        VisualARPipeline.from_pretrained("tiny-sjd2")


def test_a_base_that_does_not_fit_is_refused(runs: Path) -> None:
    recipe = runs / "recipe.toml"
    recipe.write_text(RECIPE.replace('base = "tiny"', 'base = "huge"'))
    with pytest.raises(FileNotFoundError, match=r"huge must be trained first, got .*metrics"):
        train(runs, "out")
    recipe.write_text(RECIPE.replace("adapter_dim", "adapter_width"))
    with pytest.raises(ValueError, match=r"model: unknown key 'adapter_width'; .* adapter_dim"):
        train(runs, "out")
    recipe.write_text(RECIPE.replace("longest = 5", "longest = 0"))
    with pytest.raises(ValueError, match="longest must be at least 1, got 0"):
        train(runs, "out")
    recipe.write_text(RECIPE)
    metrics = runs / "tiny" / "metrics.json"
    metrics.write_text(json.dumps({"recipe": BASE | {"dataset": "cifar10"}}))
    with pytest.raises(ValueError, match="base must be trained on emoji, got cifar10"):
        train(runs, "out")
    metrics.write_text(json.dumps({"recipe": BASE | {"family": "nar"}}))
    with pytest.raises(ValueError, match="base must be of the family llamagen, got nar"):
        train(runs, "out")
    metrics.write_text(json.dumps({"recipe": BASE | {"head": "bits", "soft": 0}}))
    with pytest.raises(ValueError, match="base must have a categorical head, got head 'bits'"):
        train(runs, "out")
    metrics.write_text("{}")
    with pytest.raises(ValueError, match=r"metrics\.json must tell the recipe of a run"):
        train(runs, "out")


def test_noise_grows_along_every_run() -> None:
    draw = torch.Generator().manual_seed(0)
    starts, levels = noisy_runs(50, 40, 7, draw)
    ranks = torch.arange(40).expand(50, -1)
    assert bool((starts <= ranks).all()) and int((ranks - starts).max()) == 6
    assert torch.equal(starts.gather(1, starts), starts), "a run starts at a rank of its own"
    within = starts[:, 1:] == starts[:, :-1]
    assert bool((levels.diff(dim=1)[within] >= 0).all())
    assert float(levels.min()) >= 0 and float(levels.max()) <= 1
    assert 0.4 < float(levels.mean()) < 0.6


def test_the_bundled_recipe_names_a_bundled_base() -> None:
    recipe: Any = load_recipe("emoji_denoising")
    assert load_recipe(recipe.base).kind == "generator"
    assert recipe.dataset == load_recipe(recipe.base).dataset and recipe.minutes <= 12
