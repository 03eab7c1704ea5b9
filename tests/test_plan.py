"""Minutes shared among models: who gets how much, that it ends in time, and what it keeps."""

from pathlib import Path

import pytest
from tiny_training import GENERATOR, save_squares
from typer.testing import CliRunner

from visual_ar.cli.main import app
from visual_ar.pipeline import VisualARPipeline
from visual_ar.training import plan, recipe_file, run_for
from visual_ar.training.progress import Clock
from visual_ar.training.recipe_file import bundled, load_recipe

ALL = list(plan.SHARES)


def test_shares_are_of_recipes_and_fit_the_time():
    assert set(plan.SHARES) <= set(bundled())
    now = [100.0]
    ends = []
    for slot in plan.slots(10, ALL, clock=lambda: now[0]):
        assert now[0] < slot.ends <= 100 + 600
        ends.append((slot.recipe, slot.ends - now[0]))
        now[0] = slot.ends
    assert [name for name, _ in ends] == ALL
    assert dict(ends)["emoji"] > 300  # most of it
    assert now[0] <= 700


def test_what_one_leaves_goes_to_those_behind_it():
    now = [0.0]
    found = {}
    for slot in plan.slots(10, ALL, clock=lambda: now[0]):
        found[slot.recipe] = slot.ends - now[0]
        now[0] += 1  # each is done at once
    usual = 600 * plan.SHARES["emoji_denoising"] / sum(plan.SHARES.values())
    assert found["emoji_denoising"] > 5 * usual


def test_what_overruns_leaves_less_and_never_a_time_in_the_past():
    now = [0.0]
    for slot in plan.slots(1, ALL, clock=lambda: now[0]):
        assert slot.ends >= now[0]
        now[0] += 59


def test_models_that_start_from_another_one_have_its_size():
    emoji, nar = (load_recipe(name, "cuda") for name in ("emoji", "emoji_nar"))
    assert nar.trunk == "emoji"
    assert nar.model["n_layer"] + 1 == emoji.model["n_layer"] == 7  # and one for the second head
    assert nar.model["dim"] == emoji.model["dim"] == 384


@pytest.mark.parametrize(
    "minutes, only, message",
    [
        (0.1, [], r"minutes must be at least 1 for emoji, emoji_nar, .*, got 0\.1"),
        (0.05, ["emoji"], r"minutes must be at least 0\.1 for emoji, got 0\.05"),
        (float("nan"), ["emoji"], "minutes must be at least"),
        (5, ["emoji", "cifar10"], "only must be some of emoji, .*, got 'cifar10'"),
    ],
)
def test_what_cannot_be_kept_is_refused(minutes, only, message):
    with pytest.raises(ValueError, match=message):
        plan.check_minutes(minutes, plan.chosen(only))


@pytest.mark.parametrize(
    "words, message",
    [
        (["emoji", "--minutes", "5"], "minutes must be left out for a recipe, which has its own"),
        (["all", "--only", "emoji"], "only must be left out without --minutes"),
        (["all", "--pack", "x"], "pack must be left out without --minutes"),
        (["all", "--minutes", "0.01"], "minutes must be at least 1"),
        (["all", "--minutes", "9", "--only", "x"], "only must be some of"),
        (["all", "--minutes", "9", "--device", "cuda:77"], "device must be present"),
    ],
)
def test_the_command_refuses_before_any_work(words, message, tmp_path):
    options = ["--data", str(tmp_path), "--output", str(tmp_path / "out")]
    ran = CliRunner().invoke(app, ["train", *words, *options])
    assert ran.exit_code == 1 and message in ran.stderr
    assert not (tmp_path / "out").exists()


NAR = GENERATOR.replace("n_layer = 2", "n_layer = 1").replace(
    'name = "emoji"', 'name = "emoji_nar"\nfamily = "nar"\ntrunk = "emoji"'
)
DRAFT = """
name = "emoji_draft"
kind = "draft"
dataset = "emoji"
base = "emoji"
steps = 4
batch = 2
splits = ["train"]
held_out = "tone-test"
[optimiser]
learning_rate = 1e-3
[logging]
row = 1
checkpoint = 2
"""
DENOISING = """
name = "emoji_denoising"
kind = "denoising"
dataset = "emoji"
base = "emoji"
steps = 4
batch = 2
longest = 4
[model]
adapter_dim = 4
[optimiser]
learning_rate = 1e-3
[logging]
row = 1
checkpoint = 2
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Tiny recipes under the real names, and a folder of data."""
    recipes = {"emoji": GENERATOR, "emoji_nar": NAR, "emoji_draft": DRAFT}
    paths = {}
    for name, text in {**recipes, "emoji_denoising": DENOISING}.items():
        paths[name] = tmp_path / f"{name}.toml"
        paths[name].write_text(text)
    monkeypatch.setattr(recipe_file, "bundled", lambda: paths)
    save_squares(tmp_path / "data" / "emoji")
    return tmp_path


def test_a_rehearsal_trains_all_and_packs_what_loads(tiny):
    trained = run_for(60, tiny / "data", tiny / "runs", "cpu")
    assert trained == ALL
    packed = tiny / "runs" / "packed"
    assert sorted(path.name for path in packed.iterdir()) == sorted(
        name.replace("_", "-") for name in ALL
    )
    for name in ("emoji", "emoji-nar", "emoji-draft"):
        pipe = VisualARPipeline.from_pretrained(packed / name)
        assert (pipe.draft_head is not None) == (name == "emoji-draft")
        pipe.set_progress_bar_config(disable=True)
        assert len(pipe("thing 3", seeds=0).images) == 1
    delta = packed / "emoji-denoising"
    assert (delta / "model" / "diffusion_pytorch_model.safetensors").stat().st_size > 0


def test_a_run_that_is_cut_off_keeps_what_was_packed(tiny, monkeypatch):
    ends = Clock.progress.fget

    def cut(self):
        if self.step == 5:
            raise KeyboardInterrupt
        return ends(self)

    monkeypatch.setattr(Clock, "progress", property(cut))
    with pytest.raises(KeyboardInterrupt):
        run_for(60, tiny / "data", tiny / "runs", "cpu", ["emoji"], tiny / "kept")
    assert not (tiny / "runs" / "emoji" / "metrics.json").exists()
    pipe = VisualARPipeline.from_pretrained(tiny / "kept" / "emoji")
    assert pipe.config.guidance_scale == 3.0


def test_time_that_is_over_trains_and_packs_nothing(tiny, monkeypatch):
    monkeypatch.setattr(plan, "slots", lambda minutes, recipes: [plan.Slot("emoji", -1e9)])
    assert run_for(60, tiny / "data", tiny / "runs", "cpu", ["emoji"]) == []
    assert not (tiny / "runs" / "packed" / "emoji").exists()


def test_a_clock_ends_when_it_is_told_to(tiny):
    clock = Clock(load_recipe(Path(tiny / "emoji.toml")))
    clock.end_in(0)
    assert clock.progress == 1
