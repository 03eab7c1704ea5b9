"""Runs recipes: reads one, prepares its folder, trains it, writes its metrics."""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from visual_ar.data.dataset import Dataset, load
from visual_ar.models.denoising import OPTIONS
from visual_ar.text_encoder import TextEncoder
from visual_ar.tokenizers.binary import BinaryTokenizer
from visual_ar.tokenizers.vq import VQTokenizer
from visual_ar.training import plan
from visual_ar.training.binary_tokenizer import BinaryTokenizerTraining
from visual_ar.training.bundle import pack
from visual_ar.training.generator import GeneratorTraining
from visual_ar.training.head_kinds import MODELS
from visual_ar.training.progress import write_json
from visual_ar.training.recipe import (
    DenoisingRecipe,
    DraftRecipe,
    GeneratorRecipe,
    Recipe,
    TokenizerRecipe,
    check_options,
)
from visual_ar.training.recipe_file import bundled, load_recipe
from visual_ar.training.tokenizer import TokenizerTraining
from visual_ar.training.train_denoiser import DenoisingTraining
from visual_ar.training.train_draft_head import DraftTraining
from visual_ar.training.trunk import bundle_name
from visual_ar.write_beside import clear_parts


def run(
    recipe: str | Path,
    data: Path,
    output: Path,
    device: str = "cpu",
    ends: float | None = None,
    packed: Path | None = None,
) -> dict[str, Any]:
    """Trains a recipe to its end, going on from the last checkpoint in `output`.

    Args:
        recipe: the name of a bundled recipe or the path of a TOML file.
        data: folder of the prepared dataset that the recipe names.
        output: folder of the run; afterwards it holds `log.csv`, `metrics.json` and the folder
            `model/` of a tokenizer or `pipeline/` of a generator, draft head or denoiser; that of a
            denoiser also holds `delta/`, what was trained alone.
        device: "cpu" or "cuda".
        ends: when it ends at the latest, in seconds of `time.monotonic`.
        packed: folder that has what was trained at every checkpoint, as models are bundled.

    Returns:
        The content of `metrics.json`.

    Raises:
        ValueError: the recipe or the dataset is not what it should be.
        FileNotFoundError: there is no dataset at `data`.
    """
    options = load_recipe(recipe, device)
    dataset = load(data)
    if dataset.name != options.dataset:
        raise ValueError(f"data must be the dataset {options.dataset}, got {dataset.name}")
    _check_models(options)
    output.mkdir(parents=True, exist_ok=True)
    clear_parts(output)
    training = _training(options, dataset, output, torch.device(device))
    if ends is not None:
        training.clock.end_in(ends - time.monotonic())
    if packed is not None:
        training.kept = partial(_pack, output, packed)
    quality = training.train()
    if packed is not None and training.clock.step:
        _pack(output, packed)
    metrics = {
        "recipe": dataclasses.asdict(options),
        "quality": quality,
        "steps": training.clock.step,
        "minutes": training.clock.seconds / 60,
        "speed": None if training.speed is None else training.speed._asdict(),
        "hardware": hardware(device),
        "torch": torch.__version__,
    }
    write_json(output / "metrics.json", metrics)
    return metrics


def _check_models(recipe: Recipe) -> None:
    """Raises ValueError for an argument of a model that no one knows."""
    if isinstance(recipe, TokenizerRecipe):
        kind = VQTokenizer if recipe.binary is None else BinaryTokenizer
        check_options(recipe.model, kind, f"{recipe.name}: model")
    if isinstance(recipe, DenoisingRecipe):
        for key in recipe.model:
            if key not in OPTIONS:
                names = ", ".join(OPTIONS)
                raise ValueError(
                    f"{recipe.name}: model: unknown key {key!r}; known keys are {names}"
                )
    if isinstance(recipe, GeneratorRecipe):
        model = MODELS[recipe.family, recipe.head]
        check_options(recipe.model, model, f"{recipe.name}: model")
        if recipe.text is not None:
            check_options(recipe.text, TextEncoder, f"{recipe.name}: text")


def _training(
    recipe: Recipe, data: Dataset, output: Path, device: torch.device
) -> TokenizerTraining | GeneratorTraining | DraftTraining | DenoisingTraining:
    if isinstance(recipe, TokenizerRecipe):
        tokenizer = TokenizerTraining if recipe.binary is None else BinaryTokenizerTraining
        return tokenizer(recipe, data, output, device)
    if isinstance(recipe, DraftRecipe):
        return DraftTraining(recipe, data, output, device)
    if isinstance(recipe, DenoisingRecipe):
        return DenoisingTraining(recipe, data, output, device)
    assert isinstance(recipe, GeneratorRecipe)
    return GeneratorTraining(recipe, data, output, device)


def _pack(output: Path, packed: Path) -> None:
    """Packs what a run saved last; of a model that adds to another one, only what it adds."""
    delta = output / "delta"
    pack(delta if delta.is_dir() else output / "pipeline", packed)


def run_for(
    minutes: float,
    data_root: Path,
    output_root: Path,
    device: str = "cpu",
    only: Sequence[str] = (),
    packed: Path | None = None,
) -> list[str]:
    """Trains several models in some minutes, see `plan`.

    Args:
        minutes: in all.
        data_root: holds the prepared datasets.
        output_root: gets a folder a recipe; what is there goes on.
        device: "cpu" or "cuda".
        only: recipes of `plan.SHARES`; none is all.
        packed: gets a folder a model, as they are bundled; None is `output_root`/packed.

    Returns:
        the recipes that were trained.

    Raises:
        ValueError: an unknown recipe, or too few minutes.
        FileNotFoundError: there is no dataset.
    """
    recipes = plan.chosen(only)
    plan.check_minutes(minutes, recipes)
    plan.place_tokenizers(output_root)
    folder = output_root / "packed" if packed is None else packed
    trained = []
    for slot in plan.slots(minutes, recipes):
        name = slot.recipe
        data = data_root / load_recipe(name, device).dataset
        place = folder / bundle_name(name)
        place.parent.mkdir(parents=True, exist_ok=True)
        if run(name, data, output_root / name, device, slot.ends, place)["steps"]:
            trained.append(name)
    return trained


def run_all(data_root: Path, output_root: Path, device: str = "cpu") -> None:
    """Trains every bundled recipe in order; finished ones are passed over."""
    for name in bundled():
        if not (output_root / name / "metrics.json").exists():
            run(name, data_root / load_recipe(name, device).dataset, output_root / name, device)


def hardware(device: str) -> str:
    """The processor in words."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} CPU cores ({platform.machine()}), {torch.get_num_threads()} threads"
