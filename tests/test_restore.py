"""A picture's recipe sets every control back; recipes that cannot are refused in sentences."""

from pathlib import Path

import pytest
from PIL import Image

from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.app import live_drawing as drawing
from visual_ar.app import restore
from visual_ar.app.methods import make
from visual_ar.app.settings import settings
from visual_ar.png import write_png

WANTED = settings("dog", 3, "7", 3.0, "linear", 0.9, 4, 0.5)
RECIPE = {
    "model": "tiny",
    "class": "dog",
    "seed": 7,
    "guidance": 3.0,
    "guidance_schedule": "linear",
    "temperature": 0.9,
    "top_k": 4,
    "top_p": 0.5,
    "method": "jacobi",
    "window": 4,
}
METHOD = SpeculativeJacobiDecoding(window=4, coupling="gumbel", init="left")


@pytest.fixture
def drawn(tiny_pipeline, monkeypatch, tmp_path):
    """Copies of the files of three pictures, and what was shown before them."""
    monkeypatch.setattr(drawing, "PREVIEW_SECONDS", 0)
    shown, copies = [], []
    for one in drawing.drawing(tiny_pipeline, "tiny", METHOD, WANTED):
        shown.append(one)
        if one.images and isinstance(one.images[0], str):
            copies = [tmp_path / f"{index}.png" for index in range(len(one.images))]
            for copy, path in zip(copies, one.images, strict=True):
                copy.write_bytes(Path(path).read_bytes())
    return copies, shown


def test_a_drawing_shows_previews_and_ends_in_the_pipelines_pictures(drawn, tiny_pipeline):
    copies, shown = drawn
    assert shown[0].images == [] and len(shown) > 4
    assert "sequential decoding needs" in shown[1].status
    assert "instead of 16" in shown[-1].status and "lossless=True" in shown[-1].status
    tiny_pipeline.scheduler = METHOD
    expected = tiny_pipeline(**WANTED.call(tiny_pipeline)).images
    for copy, image in zip(copies, expected, strict=True):
        assert Image.open(copy).tobytes() == image.tobytes()


def test_a_restored_picture_is_the_same_picture(drawn, tiny_pipeline):
    copies, _ = drawn
    found = restore.read(copies[2], ["tiny"])
    assert found.model == "tiny" and found.method == "jacobi" and found.notes == []
    assert found.settings == settings("dog", 1, "9", 3.0, "linear", 0.9, 4, 0.5)
    assert found.values["window"] == "4" and found.values["coupling"] == "gumbel"
    assert found.values["measure_tv"] is False
    tiny_pipeline.scheduler = make(found.method, found.values, tiny_pipeline.scheduler)
    [again] = tiny_pipeline(**found.settings.call(tiny_pipeline)).images
    assert again.tobytes() == Image.open(copies[2]).tobytes()


def test_a_lossy_drawing_says_what_it_spent(tiny_pipeline):
    lossy = SpeculativeJacobiDecoding(window=4, rule="omega/omega=2.0")
    *_, last = drawing.drawing(tiny_pipeline, "tiny", lossy, WANTED)
    assert "lossless=False, total variation 0." in last.status


def test_another_size_than_the_models_own_is_told(tiny_pipeline):
    own = tiny_pipeline.size
    assert restore.restore({**RECIPE, "height": 8}, ["tiny"]).notes_for(own) == []
    for other in ({"height": 16}, {"frames": 2}, {"length": [1]}):
        [note] = restore.restore({**RECIPE, **other}, ["tiny"]).notes_for(own)
        assert "another size than the model's own" in note


def test_what_cannot_be_restored_is_told():
    recipe = {**RECIPE, "sheet": True, "class": ["dog", "cat"]}
    found = restore.restore(recipe, ["tiny"])
    assert found.settings.subject == "dog"
    assert "it is a sheet" in found.notes[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "other"}, "recipe's model must be one of tiny"),
        ({"method": ["jacobi"]}, "recipe's method must be one of sequential"),
        ({"method": "guess"}, "recipe's method must be one of sequential"),
        ({"class": {"a": 1}}, "recipe's prompt or class must be text"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"temperature": "hot"}, "temperature must be a number, got 'hot'"),
        ({"window": [1]}, "recipe's window must be a whole number or text, got"),
    ],
)
def test_recipes_from_anyone_are_not_trusted(change, message):
    with pytest.raises(ValueError, match=message):
        restore.restore({**RECIPE, **change}, ["tiny"])


def test_pictures_without_a_recipe_are_refused(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    with pytest.raises(ValueError, match="must carry a visual_ar recipe"):
        restore.read(tmp_path / "plain.png", ["tiny"])


def test_bombs_are_refused(tmp_path, monkeypatch):
    write_png(Image.new("RGB", (64, 64)), tmp_path / "large.png", {})
    monkeypatch.setattr("visual_ar.picture_file.MOST_PIXELS", 100)
    with pytest.raises(ValueError, match="upload must have at most 100 pixels"):
        restore.read(tmp_path / "large.png", ["tiny"])
