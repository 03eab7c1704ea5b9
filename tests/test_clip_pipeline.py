"""Clips through the pipeline, the command line, the page's files and the service."""

import base64
import io
import shlex

import httpx
import numpy as np
import pytest
import torch
from clips import CELL, FRAMES, SIDE, build_tiny_clip_pipeline
from PIL import Image, ImageSequence
from typer.testing import CliRunner

from visual_ar.app import live_drawing
from visual_ar.app.acceptance_map import acceptance_map
from visual_ar.app.settings import settings
from visual_ar.cli import generate
from visual_ar.cli.main import app
from visual_ar.png import read_recipe

PIXELS = SIDE * CELL
GRID = (FRAMES, SIDE, SIDE)
PATH = "/v1/images/generations"


@pytest.fixture
def clips():
    """A pipeline of clips."""
    return build_tiny_clip_pipeline()


def frames_of(file):
    """Every frame of an animated PNG as RGB."""
    with Image.open(file) as image:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]


def same(ours, theirs):
    """Whether two lists of frames agree, up to the rounding of a batch of another size."""
    assert len(ours) == len(theirs)
    return all(
        np.allclose(np.asarray(a), np.asarray(b), rtol=0, atol=1)
        for a, b in zip(ours, theirs, strict=True)
    )


def test_clips_come_as_diffusers_video_pipelines_give_them(clips):
    call = {"class_labels": ["cat", "dog"], "seeds": 3}
    drawn = clips(**call)
    assert drawn.images is None and len(drawn.frames) == 2
    assert [len(frames) for frames in drawn.frames] == [FRAMES, FRAMES]
    assert all(frame.size == (PIXELS, PIXELS) for frames in drawn.frames for frame in frames)
    arrays = clips(**call, output_type="np").frames
    assert arrays.shape == (2, FRAMES, PIXELS, PIXELS, 3)
    tensors = clips(**call, output_type="pt").frames
    assert tensors.shape == (2, FRAMES, 3, PIXELS, PIXELS)
    assert np.allclose(arrays, tensors.permute(0, 1, 3, 4, 2).numpy())
    assert (np.asarray(drawn.frames[1][1]) == (arrays[1, 1] * 255).round()).all()
    assert drawn.stats.acceptance_map.shape == (2, *GRID)


def test_previews_of_clips_end_in_the_clip(clips):
    *before, last = clips.stream(class_labels="dog", seeds=4)
    assert len(before) > 1 and all(len(one.images()[0]) == FRAMES for one in (*before, last))
    [expected] = clips(class_labels="dog", seeds=4).frames
    assert same(last.images()[0], expected)
    first = np.asarray(before[0].images()[0][1])
    grey = clips.image_tokenizer.book.mean(0)
    assert np.allclose(first[-1, -1], ((grey + 1) * 127.5).detach().numpy(), atol=1)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"frames": 3}, "height and width and frames must be a size this model was trained for"),
        ({"frames": 0}, "frames must be a whole number of at least 1, got 0"),
        ({"length": 5}, "length must be left out for a code without order, got 5"),
    ],
)
def test_sizes_that_a_clip_cannot_have_are_refused(clips, asked, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        clips.check_inputs(class_labels="cat", **asked)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"frames": 2}, "frames must be left out for a model of pictures, got 2"),
        ({"length": 5}, "length must be left out for a code without order, got 5"),
    ],
)
def test_sizes_that_a_picture_cannot_have_are_refused(tiny_pipeline, asked, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        tiny_pipeline.check_inputs(class_labels="cat", **asked)


def run(*words):
    return CliRunner().invoke(app, list(map(str, words)))


def test_a_clip_is_an_animated_png_whose_command_draws_it_again(clips, folder, monkeypatch):
    monkeypatch.setattr(generate, "load", lambda *given: clips)
    first = run("generate", "-c", "dog", "--seed", 5, "--frames", FRAMES, "-o", "first.png")
    assert first.exit_code == 0, first.output
    [expected] = clips(class_labels="dog", seeds=5).frames
    assert same(frames_of("first.png"), expected)
    recipe = read_recipe("first.png")
    assert recipe["frames"] == FRAMES and recipe["class"] == "dog" and "length" not in recipe
    printed = run("info", "first.png").stdout.strip()
    assert f"--frames {FRAMES}" in printed and "--length" not in printed
    again = run(*shlex.split(printed)[1:], "--output", "again.png")
    assert again.exit_code == 0, again.output
    assert same(frames_of("again.png"), expected) and read_recipe("again.png") == recipe
    sheet = run("generate", "-c", "cat", "-c", "dog", "--seed", 4, "--sheet", "-o", "sheet.png")
    assert sheet.exit_code == 0, sheet.output
    shown = frames_of("sheet.png")
    assert len(shown) == FRAMES and shown[0].shape == (PIXELS + 4, 2 * PIXELS + 6, 3)


def test_pictures_are_no_clips_on_the_command_line(classes, folder):
    for option, message in (
        ("--frames", "frames must be left out for a model of pictures, got 2"),
        ("--length", "length must be left out for a code without order, got 2"),
    ):
        refused = run("generate", "-m", classes, "-c", "cat", option, 2)
        assert (refused.exit_code, refused.stderr) == (1, f"Error: {message}\n")
    assert not list(folder.iterdir())


def test_the_page_shows_a_clip_as_a_file_with_its_recipe(clips, monkeypatch):
    monkeypatch.setattr(live_drawing, "PREVIEW_SECONDS", 0)
    wanted = settings("dog", 1, "5", 2.0, "constant", 1.0, 0, 1.0)
    for shown in live_drawing.drawing(clips, "tiny", clips.scheduler, wanted):
        seen = [frames_of(path) for path in shown.images]
        recipes = [read_recipe(path) for path in shown.images if "dog-5" in path]
    [expected] = clips(class_labels="dog", seeds=5).frames
    assert same(seen[0], expected)
    assert recipes[0]["frames"] == FRAMES and recipes[0]["seed"] == 5


def test_frames_of_an_acceptance_map_lie_side_by_side():
    accepted = torch.tensor([[[0, 1], [2, 3]], [[0, 0], [1, 1]]])
    whole = np.asarray(acceptance_map(accepted, passes=4))
    side = whole.shape[0] // 2
    assert whole.shape == (2 * side, 5 * side, 3)
    cells = whole[::side, ::side]
    for index, frame in enumerate(accepted):
        alone = np.asarray(acceptance_map(frame, passes=4))
        step = alone.shape[0] // 2
        assert (cells[:, 3 * index : 3 * index + 2] == alone[::step, ::step]).all()


def drawn_by(url, **body):
    """The answer to a request for a dog from seed 3."""
    return httpx.post(url + PATH, json={"prompt": "dog", "seed": 3, **body}, timeout=300)


def test_the_service_sends_clips(clips, serve):
    url, _ = serve(clips)
    answer = drawn_by(url, n=2, size=f"{PIXELS}x{PIXELS}", frames=FRAMES)
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert (document["size"], document["frames"]) == (f"{PIXELS}x{PIXELS}", FRAMES)
    expected = clips(class_labels=["dog", "dog"], seeds=3).frames
    for entry, frames in zip(document["data"], expected, strict=True):
        assert same(frames_of(io.BytesIO(base64.b64decode(entry["b64_json"]))), frames)


def test_the_service_names_the_field_of_a_size_that_cannot_be(clips, tiny_pipeline, serve):
    for pipe, body, param in (
        (clips, {"frames": 3}, "size"),
        (clips, {"length": 3}, "length"),
        (clips, {"frames": 257}, "frames"),
        (tiny_pipeline, {"frames": 2}, "frames"),
        (tiny_pipeline, {"length": 2}, "length"),
        (tiny_pipeline, {"size": "9x8"}, "size"),
        (tiny_pipeline, {"size": "16x16"}, "size"),
    ):
        url, _ = serve(pipe)
        answer = drawn_by(url, **body)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == param
