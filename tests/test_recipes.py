"""Recipes are read strictly, and name a data set, options and a machine that fit."""

from pathlib import Path

import pytest
from tiny_training import TOKENIZER, save_squares

from visual_ar.training import bundled, load_recipe, run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder of 60 coloured squares, named like emoji."""
    return save_squares(tmp_path_factory.mktemp("data") / "emoji")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.toml"
    path.write_text(TOKENIZER)
    return path


def test_every_bundled_recipe_is_valid() -> None:
    for name, path in bundled().items():
        for device in ("cpu", "cuda"):
            assert load_recipe(path, device).name == name
    sizes = [load_recipe("emoji", device).model for device in ("cpu", "cuda")]
    assert sizes[0]["dim"] < sizes[1]["dim"], "a GPU trains a larger variant"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("steps = 8", "stepz = 8", "unknown key 'stepz'"),
        ("steps = 8", "", "key 'steps' is missing"),
        ("steps = 8", "steps = 8.5", "steps must be int, got 8.5"),
        ("steps = 8", "steps = true", "steps must be int, got True"),
        ("warmup = 2", 'warmup = "two"', "optimiser: warmup must be int, got 'two'"),
        ("start = 0.3", "start = 0.3\nlevel = 1", "codebook: unknown key 'level'"),
        ('kind = "tokenizer"', 'kind = "tokeniser"', "kind must be one of"),
        ("steps = 8", "steps = = 8", "is not a TOML file"),
    ],
)
def test_bad_recipes_are_refused(recipe: Path, before: str, after: str, message: str) -> None:
    recipe.write_text(TOKENIZER.replace(before, after))
    with pytest.raises(ValueError, match=message):
        load_recipe(recipe)


def test_unknown_recipes_and_model_options_are_refused(
    recipe: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"one of emoji_tokenizer, .*, got 'emojis'"):
        load_recipe("emojis")
    recipe.write_text(TOKENIZER.replace("channels = 4", "width = 4", 1))
    with pytest.raises(ValueError, match=r"model: unknown key 'width'"):
        run(recipe, data, tmp_path / "out")
    recipe.write_text(TOKENIZER.replace('dataset = "emoji"', 'dataset = "cifar10"'))
    with pytest.raises(ValueError, match="data must be the dataset cifar10, got emoji"):
        run(recipe, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_gpu_table_replaces_what_stands_above_it(recipe: Path) -> None:
    recipe.write_text(TOKENIZER + "[gpu]\nbatch = 64\n[gpu.model]\nchannels = 32\n")
    on_cpu, on_gpu = load_recipe(recipe, "cpu"), load_recipe(recipe, "cuda:1")
    assert (on_cpu.batch, on_gpu.batch) == (4, 64)
    assert on_gpu.model == on_cpu.model | {"channels": 32}
