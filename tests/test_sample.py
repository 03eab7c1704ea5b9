"""Sampling for evaluations: killed and restarted, it ends as if it had never been interrupted."""

import hashlib
import json
import multiprocessing
import random
import shutil
import time

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.cli.main import app
from visual_ar.evaluation.sample import ARCHIVE, PLAN, read_plan, sample
from visual_ar.evaluation.workload import Options
from visual_ar.png import read_recipe

CELLS = 16
WAIT = 300
RUN = """
import torch
from pathlib import Path
torch.set_num_threads(1)
from visual_ar.evaluation.sample import sample
from visual_ar.pipeline import VisualARPipeline
pipe = VisualARPipeline.from_pretrained({model!r})
sample(pipe, "tiny", Path({folder!r}), {count}, slots=3)
"""


def contents(folder):
    """Name and bytes of every picture, and of the archive."""
    files = sorted([*folder.glob("*.png"), *folder.glob("*.npz")])
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture
def start():
    """Runs code in fresh processes that are forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["visual_ar.evaluation.sample"])

    def start(code):
        process = context.Process(target=exec, args=(code, {}))
        process.start()
        return process

    return start


@pytest.mark.parametrize("often", [2, pytest.param(20, marks=pytest.mark.long)])
def test_kills_leave_no_gap_and_no_duplicate(tiny_pipeline, start, tmp_path, often):
    tiny_pipeline.scheduler = SpeculativeJacobiDecoding(window=4)
    tiny_pipeline.save_pretrained(tmp_path / "tiny")
    count, chance = 2 * often + 3, random.Random(0)
    codes = {
        name: RUN.format(model=str(tmp_path / "tiny"), folder=str(tmp_path / name), count=count)
        for name in ("whole", "killed")
    }
    process = start(codes["whole"])
    process.join(WAIT)
    assert process.exitcode == 0
    folder, kills = tmp_path / "killed", 0
    while kills < often:
        if (folder / ARCHIVE).exists():  # a run was through before its turn to die
            shutil.rmtree(folder)
        before = len(list(folder.glob("*.png")))
        process = start(codes["killed"])
        more = chance.randrange(0, 3)
        while process.is_alive() and len(list(folder.glob("*.png"))) < before + more:
            time.sleep(0.001)
        time.sleep(chance.random() * 0.05)
        kills += process.is_alive()
        process.kill()
        process.join(WAIT)
        for file in folder.glob("*.png"):
            Image.open(file).load()  # whole, whenever the process was killed
    process = start(codes["killed"])
    process.join(WAIT)
    assert process.exitcode == 0
    found = contents(folder)
    assert found == contents(tmp_path / "whole")
    assert len(found) == count + 1
    with np.load(folder / ARCHIVE) as archive:
        assert len({picture.tobytes() for picture in archive["arr_0"]}) == count
    assert not list(folder.glob("*.part")) and not list(folder.glob(".*.part"))


def test_the_archive_is_adm_s_and_holds_the_pictures_in_order(tiny_pipeline, tmp_path):
    result = sample(tiny_pipeline, "tiny", tmp_path / "out", 7, slots=2, seed=5)
    with np.load(tmp_path / "out" / ARCHIVE, allow_pickle=False) as archive:
        pictures, labels = archive["arr_0"], archive["arr_1"]
    assert pictures.shape == (7, 8, 8, 3) and pictures.dtype == np.uint8
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    for index, picture in enumerate(pictures):
        file = tmp_path / "out" / f"{index:06d}.png"
        assert (np.asarray(Image.open(file)) == picture).all()
    assert result["inputs"]["pictures"]["sha256"] == hashlib.sha256(pictures.tobytes()).hexdigest()
    assert result["protocol"]["of_each_subject"] == {"fewest": 2, "most": 3}
    assert result["seeds"] == {"first": 5, "last": 11}
    assert json.loads(json.dumps(result)) == result


def test_pictures_are_those_of_the_pipeline(tiny_pipeline, tmp_path):
    sample(tiny_pipeline, "tiny", tmp_path, 3, ["dog", "cat"], 4, Options(top_k=6), slots=2)
    expected = tiny_pipeline(class_labels=["dog", "cat", "dog"], seeds=[4, 5, 6], top_k=6).images
    for index, image in enumerate(expected):
        drawn = np.asarray(Image.open(tmp_path / f"{index:06d}.png"))
        assert np.allclose(drawn, np.asarray(image), rtol=0, atol=1)


def test_the_slots_stay_full(tiny_pipeline, tmp_path):
    result = sample(tiny_pipeline, "tiny", tmp_path, 12, slots=4)
    assert result["results"] == {"drawn_now": 12, "passes_now": pytest.approx(3 * CELLS, abs=4)}
    again = sample(tiny_pipeline, "tiny", tmp_path, 12, slots=4)
    assert again["results"] == {"drawn_now": 0, "passes_now": 0}


def test_a_missing_picture_is_drawn_again_alone(tiny_pipeline, tmp_path):
    sample(tiny_pipeline, "tiny", tmp_path, 5, slots=2)
    before = contents(tmp_path)
    (tmp_path / "000003.png").unlink()
    (tmp_path / ".0123456789abcdef.part").write_bytes(b"half")
    with pytest.raises(ValueError, match="got 4 of 5 pictures"):
        read_plan(tmp_path)
    result = sample(tiny_pipeline, "tiny", tmp_path, 5, slots=2)
    assert result["results"]["drawn_now"] == 1
    assert contents(tmp_path) == before
    assert read_plan(tmp_path)["count"] == 5
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize("damage", ["cut", "empty", "zeros"])
def test_a_damaged_picture_is_drawn_again(tiny_pipeline, tmp_path, damage):
    """As a machine leaves files that lost its power, or a disk that was full."""
    sample(tiny_pipeline, "tiny", tmp_path, 5, slots=2)
    before = contents(tmp_path)
    whole = (tmp_path / "000003.png").read_bytes()
    left = {"cut": whole[:-20], "empty": b"", "zeros": whole[:60] + bytes(len(whole) - 60)}
    (tmp_path / "000003.png").write_bytes(left[damage])
    (tmp_path / "._000003.png").write_bytes(b"")
    (tmp_path / ".DS_Store").write_bytes(b"")
    result = sample(tiny_pipeline, "tiny", tmp_path, 5, slots=2)
    assert result["results"]["drawn_now"] == 1
    assert {name: contents(tmp_path)[name] for name in before} == before


def test_what_systems_leave_in_a_new_folder_is_no_other_run(tiny_pipeline, tmp_path):
    (tmp_path / ".DS_Store").write_bytes(b"")
    assert sample(tiny_pipeline, "tiny", tmp_path, 2)["results"]["drawn_now"] == 2


def test_prompts_are_taken_in_turn_and_pictures_say_so(tiny_text_pipeline, tmp_path):
    sample(tiny_text_pipeline, "tiny", tmp_path, 5, ["red apple", "green tree"], 3, slots=2)
    recipes = [read_recipe(tmp_path / f"{index:06d}.png") for index in range(5)]
    assert [recipe["prompt"] for recipe in recipes] == ["red apple", "green tree"] * 2 + [
        "red apple"
    ]
    assert [recipe["seed"] for recipe in recipes] == [3, 4, 5, 6, 7]
    assert recipes[0]["method"] == "sequential" and recipes[0]["guidance"] == 2
    with np.load(tmp_path / ARCHIVE) as archive:
        assert archive.files == ["arr_0"]


def test_an_automatic_window_is_chosen_once(tiny_pipeline, tmp_path, monkeypatch):
    chosen = []

    def choose(self, *arguments):
        if self.config.window != "auto":
            return self.config.window
        chosen.append(3 + len(chosen))
        return chosen[-1]

    monkeypatch.setattr(SpeculativeJacobiDecoding, "choose_window", choose)
    tiny_pipeline.scheduler = SpeculativeJacobiDecoding(window="auto")
    sample(tiny_pipeline, "tiny", tmp_path, 4, slots=2)
    (tmp_path / "000002.png").unlink()
    sample(tiny_pipeline, "tiny", tmp_path, 4, slots=2)
    assert chosen == [3] and read_plan(tmp_path)["window"] == 3
    assert read_recipe(tmp_path / "000002.png")["window"] == 3
    assert tiny_pipeline.scheduler.config.window == "auto"


def test_an_error_of_a_picture_ends_the_run_and_keeps_the_others(
    tiny_pipeline, tmp_path, monkeypatch
):
    encode = tiny_pipeline.encode_condition

    def failing(request, guided=None):
        if request.seeds == [3]:
            raise RuntimeError("no such condition")
        return encode(request, guided)

    monkeypatch.setattr(tiny_pipeline, "encode_condition", failing)
    with pytest.raises(RuntimeError, match="no such condition"):
        sample(tiny_pipeline, "tiny", tmp_path, 8, slots=2)
    monkeypatch.undo()
    kept = len(list(tmp_path.glob("*.png")))
    result = sample(tiny_pipeline, "tiny", tmp_path, 8, slots=2)
    assert result["results"]["drawn_now"] == 8 - kept


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 4}, "count must be that of the run that began .*, 3, got 4"),
        ({"seed": 1}, "seed must be that of the run"),
        ({"slots": 3}, "slots must be that of the run"),
        ({"subjects": ["cat"]}, "subjects must be that of the run"),
        ({"options": Options(top_k=2)}, "sampling must be that of the run"),
    ],
)
def test_another_run_does_not_go_on_in_the_folder(tiny_pipeline, tmp_path, change, message):
    call = {"count": 3, "seed": 0, "slots": 2, "subjects": None, "options": Options()}
    sample(tiny_pipeline, "tiny", tmp_path, **call)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=message):
        sample(tiny_pipeline, "tiny", tmp_path, **{**call, **change})
    assert contents(tmp_path) == before


def test_other_weights_do_not_go_on_in_the_folder(tiny_pipeline, tmp_path):
    sample(tiny_pipeline, "tiny", tmp_path, 2, slots=2)
    with torch.no_grad():
        tiny_pipeline.model.output.weight[0, 0] += 1
    with pytest.raises(ValueError, match="weights must be that of the run"):
        sample(tiny_pipeline, "tiny", tmp_path, 2, slots=2)


def test_wrong_requests_are_refused_before_anything_is_written(
    tiny_pipeline, tiny_text_pipeline, tmp_path
):
    new, used = tmp_path / "new", tmp_path / "used"
    used.mkdir()
    (used / "holiday.txt").write_text("not ours")
    (used / "film.part").write_text("not ours either")
    for options, message in (
        ({"count": 0}, "count must be a whole number of at least 1, got 0"),
        ({"count": 1_000_001}, "count must be at most 1000000"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"slots": 0}, "slots must be a whole number of at least 1, got 0"),
        ({"subjects": []}, "subjects must name at least one picture"),
        ({"subjects": ["cow"]}, "got 'cow'"),
        ({"folder": used}, f"output must be empty or hold {PLAN}"),
    ):
        call = {"folder": new, "count": 2, "subjects": None, "seed": 0, "slots": 2, **options}
        with pytest.raises(ValueError, match=message):
            sample(tiny_pipeline, "tiny", **call)
    with pytest.raises(ValueError, match="subjects must be given for this text-conditional"):
        sample(tiny_text_pipeline, "tiny", new, 2)
    assert not new.exists() and len(list(used.iterdir())) == 2
    with pytest.raises(FileNotFoundError, match=f"samples must hold {PLAN}"):
        read_plan(used)


def test_a_strange_picture_or_a_damaged_plan_is_refused(tiny_pipeline, tmp_path):
    sample(tiny_pipeline, "tiny", tmp_path, 2, slots=2)
    (tmp_path / "000002.png").write_bytes(b"")
    with pytest.raises(ValueError, match="output must hold no other pictures"):
        sample(tiny_pipeline, "tiny", tmp_path, 2, slots=2)
    (tmp_path / PLAN).write_text("{")
    with pytest.raises(ValueError, match="must be JSON"):
        sample(tiny_pipeline, "tiny", tmp_path, 2, slots=2)
    (tmp_path / PLAN).write_text("[]")
    with pytest.raises(ValueError, match="must be written by evaluate sample"):
        read_plan(tmp_path)


def test_the_command_draws_prompts_of_a_file(tiny_text_pipeline, tmp_path):
    tiny_text_pipeline.save_pretrained(tmp_path / "tiny")
    (tmp_path / "prompts.txt").write_text("red apple\n\ngreen tree\n", encoding="utf-8")
    words = ["--model", str(tmp_path / "tiny"), "--prompts", str(tmp_path / "prompts.txt")]
    words += ["--output", str(tmp_path / "out"), "--slots", "2", "--device", "cpu", "--json"]
    result = CliRunner().invoke(app, ["evaluate", "sample", *words, "--method", "exact-match"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["protocol"]["pictures"] == 2  # one a prompt
    assert report["inputs"]["plan"]["method"] == "exact-match"
    assert report["command"].startswith("visual-ar evaluate sample --model")
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == report
