"""A picture's recipe survives the file, and files without one are refused by name."""

import os

import pytest
from PIL import Image, PngImagePlugin

from visual_ar.png import KEY, read_recipe, write_png

RECIPE = {"prompt": "Kätzchen 🐱", "seed": 2**62, "guidance": 4.5, "class": None, "list": [1, "a"]}


@pytest.fixture
def image():
    return Image.linear_gradient("L").convert("RGB")


def test_recipe_and_pixels_survive(image, tmp_path):
    write_png(image, tmp_path / "picture.png", RECIPE)
    assert read_recipe(tmp_path / "picture.png") == RECIPE
    assert Image.open(tmp_path / "picture.png").tobytes() == image.tobytes()


def test_names_of_files_that_are_not_utf_8_survive(image, tmp_path):
    recipe = {"complete": os.fsdecode(b"half \xff \\udcff.png"), "prompt": "\\ 🐱"}
    write_png(image, tmp_path / "picture.png", recipe)
    assert read_recipe(tmp_path / "picture.png") == recipe


def test_failed_write_leaves_the_old_file_and_nothing_else(image, tmp_path):
    path = tmp_path / "picture.png"
    write_png(image, path, RECIPE)
    before = path.read_bytes()
    broken = Image.new("LAB", (4, 4))  # PNG has no such mode
    with pytest.raises(OSError, match="LAB"):
        write_png(broken, path, RECIPE)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_pictures_without_a_recipe_are_refused(image, tmp_path):
    plain, other, broken = (tmp_path / name for name in ("plain.png", "other.png", "broken.png"))
    image.save(plain)
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text(KEY, "[not json")
    image.save(other, pnginfo=chunks)
    deep = tmp_path / "deep.png"
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text(KEY, "[" * 100_000)
    image.save(deep, pnginfo=chunks)
    for path in (plain, other, deep):
        with pytest.raises(ValueError, match=rf"visual_ar recipe, got '.*{path.name}' without one"):
            read_recipe(path)
    broken.write_bytes(plain.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"readable PNG, got '.*broken.png'"):
        read_recipe(broken)
    with pytest.raises(FileNotFoundError, match=r"existing file, got '.*absent.png'"):
        read_recipe(tmp_path / "absent.png")
