"""Tiny runs from recipe to model, interrupted and resumed."""

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_training import GENERATOR, TIMES, TOKENIZER, save_squares

from visual_ar.accel.hybrid import HybridDecoding
from visual_ar.accel.sequential import SequentialDecoding
from visual_ar.pipeline import VisualARPipeline
from visual_ar.tokenizers.vq import VQTokenizer
from visual_ar.training import run
from visual_ar.training.progress import Log, load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder of 60 coloured squares, named like emoji."""
    return save_squares(tmp_path_factory.mktemp("data") / "emoji")


class Finished(NamedTuple):
    """A run that was never interrupted."""

    folder: Path
    metrics: dict[str, Any]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the finished runs lie beside each other, with their recipes."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "tokenizer.toml").write_text(TOKENIZER)
    (folder / "emoji.toml").write_text(GENERATOR)
    return folder


@pytest.fixture(scope="module")
def tokenizer(data: Path, runs: Path) -> Finished:
    folder = runs / "emoji_tokenizer"
    return Finished(folder, run(runs / "tokenizer.toml", data, folder))


@pytest.fixture(scope="module")
def generator(data: Path, runs: Path, tokenizer: Finished) -> Finished:
    folder = runs / "emoji"
    return Finished(folder, run(runs / "emoji.toml", data, folder))


def _rows(output: Path) -> list[dict[str, str]]:
    with (output / "log.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def _stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Interrupts a run, as Ctrl-C would, when it logs this step."""
    write = Log.write

    def interrupted(self: Log, row: dict[str, Any]) -> None:
        if row["step"] == step:
            raise KeyboardInterrupt
        write(self, row)

    monkeypatch.setattr(Log, "write", interrupted)


def _in_parts(
    recipe: Path, data: Path, output: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs a recipe until a step, and then to its end."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        _stop_at(patch, step)
        run(recipe, data, output)
    assert not (output / "metrics.json").exists()
    left = output / ".0123456789abcdef.part"  # by a process that was killed while it wrote
    left.touch()
    run(recipe, data, output)
    assert not left.exists()


def test_a_resumed_tokenizer_equals_an_uninterrupted_one(
    tokenizer: Finished, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts, metrics = tokenizer.folder, tmp_path / "parts", tokenizer.metrics
    recipe = tmp_path / "tokenizer.toml"
    recipe.write_text(TOKENIZER)
    _in_parts(recipe, data, parts, 6, monkeypatch)
    assert _rows(parts) == _rows(whole)
    ours, theirs = (
        load_file(folder / "model" / "diffusion_pytorch_model.safetensors")
        for folder in (parts, whole)
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)

    assert metrics["quality"] == json.loads((whole / "metrics.json").read_text())["quality"]
    assert metrics["steps"] == 8
    assert metrics["recipe"]["batch"] == 4
    assert 0 < metrics["quality"]["train_usage"] <= 1
    assert math.isfinite(metrics["quality"]["held_out_psnr"])
    assert (whole / "samples.png").stat().st_size > 0
    assert isinstance(VQTokenizer.from_pretrained(whole / "model"), VQTokenizer)
    assert not list(whole.glob("*.part"))
    recipe.write_text(TOKENIZER.replace("shift = 1", "shift = 2"))
    with pytest.raises(ValueError, match="checkpoint was trained with shift 1, got 2"):
        run(recipe, data, parts)


def test_a_resumed_generator_equals_an_uninterrupted_one(
    tokenizer: Finished,
    generator: Finished,
    runs: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(tokenizer.folder, tmp_path / "emoji_tokenizer")
    recipe, whole, parts = runs / "emoji.toml", generator.folder, tmp_path / "parts"
    _in_parts(recipe, data, parts, 5, monkeypatch)
    assert _rows(parts) == _rows(whole)
    for folder in ("model", "text_encoder"):
        name = f"pipeline/{folder}/diffusion_pytorch_model.safetensors"
        ours, theirs = (load_file(output / name) for output in (parts, whole))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)

    assert generator.metrics["quality"]["held_out_loss"] < 2 * math.log(16)
    assert (whole / "samples.png").stat().st_size > 0
    pipe = VisualARPipeline.from_pretrained(whole / "pipeline")
    assert pipe.model.vocab_size == 16
    assert pipe.text_encoder.config.length == pipe.model.prefix_length == 5
    assert "alias" in pipe.text_encoder.config.words
    assert pipe.config.guidance_scale == 3.0
    pipe.scheduler = SequentialDecoding()
    assert pipe("alias", seeds=1).images[0].size == (pipe.config.width, pipe.config.height)
    assert (whole / "pipeline" / "model" / "config.json").read_text().count(str(runs)) == 0

    weights = tmp_path / "emoji_tokenizer" / "model" / "diffusion_pytorch_model.safetensors"
    other = load_file(weights)
    other["decoder.conv_out.bias"] += 1
    save_file(other, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="trained with other weights of the tokenizer"):
        run(recipe, data, parts)


def test_a_parallel_generator_starts_from_a_next_token_trunk(
    tokenizer: Finished,
    generator: Finished,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(tokenizer.folder, tmp_path / "emoji_tokenizer")
    parallel = tmp_path / "emoji_nar.toml"
    family = 'name = "emoji_nar"\nfamily = "nar"\ntrunk = "emoji"'
    text = GENERATOR.replace('name = "emoji"', family).replace("steps = 6", "steps = 3")
    parallel.write_text(text.replace("n_layer = 2", "n_layer = 1\nffn_dim = 24"))
    monkeypatch.setattr("visual_ar.training.trunk.bundled", dict)
    with pytest.raises(FileNotFoundError, match="trunk must be trained first: recipe emoji"):
        run(parallel, data, tmp_path / "emoji_nar")
    shutil.copytree(generator.folder, tmp_path / "emoji")
    metrics = run(parallel, data, tmp_path / "emoji_nar")
    assert metrics["quality"]["held_out_loss"] < 2 * math.log(16)
    assert not list((tmp_path / "emoji_nar").glob("captions*"))
    pipe = VisualARPipeline.from_pretrained(tmp_path / "emoji_nar" / "pipeline")
    assert pipe.model.grid == (4, 4)
    output = pipe("alias", seeds=1)
    assert output.stats.passes == [7]
    trunk = VisualARPipeline.from_pretrained(tmp_path / "emoji" / "pipeline")
    trunk.draft_with(pipe)
    trunk.scheduler = HybridDecoding(window=4)
    assert trunk("alias", seeds=1).images[0].size == output.images[0].size


def test_a_generator_needs_its_tokenizer(data: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "emoji.toml"
    recipe.write_text(GENERATOR)
    with pytest.raises(FileNotFoundError, match="tokenizer must be trained first"):
        run(recipe, data, tmp_path / "out")


def test_checkpoints_keep_everything(tmp_path: Path) -> None:
    state: dict[str, Any] = {
        "step": 3,
        "rate": 0.1,
        "missing": None,
        "nested": {0: [torch.arange(3), {"a": torch.ones(2, 2).t()}], "name": "x"},
        "empty": [],
    }
    assert load_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, state)
    again = load_checkpoint(tmp_path)
    assert again is not None
    assert [again[k] for k in ("step", "rate", "missing", "empty")] == [3, 0.1, None, []]
    assert torch.equal(again["nested"][0][0], torch.arange(3))
    assert again["nested"]["name"] == "x"
