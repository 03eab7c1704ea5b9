"""A run goes on from a checkpoint of its own recipe and of the weights that it reads, or not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from visual_ar.training.progress import (
    Average,
    Clock,
    build_optimisers,
    check_resumed,
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
