"""A run goes on from a checkpoint of its own recipe and of the weights that it reads, or not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from visual_ar.training.progress import (
    CHECKPOINT,
    Average,
    Clock,
    Log,
    build_optimisers,
    check_resumed,
    load_checkpoint,
    progress_state,
    save_checkpoint,
)
from visual_ar.training.recipe import (
    Captions,
    GeneratorRecipe,
    Logging,
    Optimiser,
    Recipe,
    SamplingDefaults,
)

RECIPE = GeneratorRecipe(
    name="emoji",
    kind="generator",
    dataset="emoji",
    steps=10,
    batch=4,
    optimiser=Optimiser(learning_rate=1e-3, betas=(0.8, 0.9)),
    model={"dim": 16, "channel_multipliers": (1, 2)},
    tokenizer="emoji_tokenizer",
)
SOURCES = {"tokenizer": "a" * 64}


def _save(folder: Path, recipe: Recipe, **entries: Any) -> dict[str, Any]:
    """A checkpoint of a run of a small model; returns what it holds."""
    model = torch.nn.Linear(2, 2)
    optimisers = build_optimisers(model, recipe.optimiser)
    state = progress_state(recipe, Clock(recipe), Average(model, 0.9), optimisers)
    save_checkpoint(folder, state | entries)
    return state


def test_the_same_run_goes_on_and_a_new_folder_is_never_refused(tmp_path: Path) -> None:
    check_resumed(tmp_path, RECIPE, SOURCES)
    _save(tmp_path, RECIPE, **SOURCES)
    check_resumed(tmp_path, RECIPE, SOURCES)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 20, "minutes": 3.0},
        {"logging": Logging(row=1)},
        {"sampling": SamplingDefaults(top_k=5)},
        {"name": "copy"},
    ],
)
def test_what_no_step_depends_on_may_change(tmp_path: Path, change: dict[str, Any]) -> None:
    _save(tmp_path, RECIPE)
    check_resumed(tmp_path, replace(RECIPE, **change), {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 8}, "new folder: its checkpoint was trained with batch 4, got 8"),
        ({"splits": ("train", "extra")}, r"splits \['train'\], got \('train', 'extra'\)"),
        ({"model": {"dim": 32}}, r"model .*'dim': 16.*, got \{'dim': 32\}"),
        ({"text": {"dim": 16}}, r"text None, got \{'dim': 16\}"),
        (
            {"optimiser": replace(RECIPE.optimiser, betas=(0.8, 0.95))},
            r"optimiser\.betas \[0\.8, 0\.9\], got \(0\.8, 0\.95\)",
        ),
        ({"captions": Captions(weight=1.0)}, r"captions\.weight 0\.5, got 1\.0"),
    ],
)
def test_another_recipe_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    _save(tmp_path, RECIPE)
    with pytest.raises(ValueError, match=message):
        check_resumed(tmp_path, replace(RECIPE, **change), {})


def test_other_weights_are_refused(tmp_path: Path) -> None:
    _save(tmp_path, RECIPE, **SOURCES)
    with pytest.raises(ValueError, match=r"weights of the tokenizer, of fingerprint a+, got b+"):
        check_resumed(tmp_path, RECIPE, {"tokenizer": "b" * 64})


def test_a_checkpoint_from_before_an_option_or_a_fingerprint_had_the_default(
    tmp_path: Path,
) -> None:
    state = _save(tmp_path, RECIPE)
    del state["recipe"]["flip"], state["recipe"]["captions"]["rate"], state["recipe"]["batch"]
    save_checkpoint(tmp_path, state)
    check_resumed(tmp_path, RECIPE, SOURCES)
    with pytest.raises(ValueError, match=r"captions\.rate 0\.1, got 0\.2"):
        check_resumed(tmp_path, replace(RECIPE, captions=Captions(rate=0.2)), SOURCES)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def _other_tensors(path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, path)


def _no_state(path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, path, metadata={"state": "[" * 100_000})


def _lost_tensor(path: Path) -> None:
    with safe_open(path, "pt") as file:
        told = file.metadata()
    save_file({"weight": torch.zeros(2)}, path, metadata=told)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [_cut, _other_tensors, _no_state, _lost_tensor, _folder])
def test_a_damaged_checkpoint_is_one_sentence(tmp_path: Path, damage: Any) -> None:
    _save(tmp_path, RECIPE)
    damage(tmp_path / CHECKPOINT)
    with pytest.raises(ValueError, match=r"checkpoint.safetensors must be a (whole check|file)"):
        load_checkpoint(tmp_path)
    if damage is not _lost_tensor:  # which a recipe does not hold
        with pytest.raises(ValueError, match=r"checkpoint.safetensors must be a (whole|file)"):
            check_resumed(tmp_path, RECIPE, SOURCES)


def test_a_checkpoint_without_its_recipe_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"recipe": 3})
    with pytest.raises(ValueError, match="must tell the recipe of its run"):
        check_resumed(tmp_path, RECIPE, SOURCES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"loss,seconds\n1.5,3\n", "must tell the step in every row, got"),
        (b"step,loss\nten,3\n", "must tell the step in every row, got"),
        (b"step,loss\n10,3,4,5\n", "must tell the step in every row, got"),
        (b"\xff\xfe\x00step", "must be a table with a column step"),
        (b'step,loss\n"10,3\n', "must be a table with a column step"),
    ],
)
def test_a_damaged_log_is_one_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "log.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Log(tmp_path / "log.csv", 100)


def test_a_log_whose_last_row_was_cut_goes_on(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("step,loss\n10,3\n20")
    Log(tmp_path / "log.csv", 15).write({"step": 20, "loss": 2.5})
    assert (tmp_path / "log.csv").read_text().split() == ["step,loss", "10,3", "20,2.5"]
