"""A picture's recipe survives the file, and files without one are refused by name."""

import io
import os

import pytest
from PIL import Image, ImageSequence, PngImagePlugin

from visual_ar.png import FRAMES_A_SECOND, KEY, png_bytes, read_recipe, write_png

RECIPE = {"prompt": "Kätzchen 🐱", "seed": 2**62, "guidance": 4.5, "class": None, "list": [1, "a"]}


@pytest.fixture
def image():
    return Image.linear_gradient("L").convert("RGB")


def test_recipe_and_pixels_survive(image, tmp_path):
    write_png(image, tmp_path / "picture.png", RECIPE)
    assert read_recipe(tmp_path / "picture.png") == RECIPE
    assert Image.open(tmp_path / "picture.png").tobytes() == image.tobytes()


def test_a_clip_keeps_its_frames_and_its_recipe(image, tmp_path):
    frames = [image, image.rotate(90), image.rotate(180)]
    write_png(frames, tmp_path / "clip.png", RECIPE)
    assert read_recipe(tmp_path / "clip.png") == RECIPE
    for content in (tmp_path / "clip.png", io.BytesIO(png_bytes(frames))):
        with Image.open(content) as clip:
            assert clip.n_frames == 3 and clip.info["duration"] == 1000 // FRAMES_A_SECOND
            seen = [frame.convert("RGB").tobytes() for frame in ImageSequence.Iterator(clip)]
    assert seen == [frame.tobytes() for frame in frames]


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
