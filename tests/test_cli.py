"""The command line from outside: what it writes, prints and refuses, on tiny real pipelines."""

import json
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from visual_ar.cli.main import app
from visual_ar.cli.sheet import GAP, paste
from visual_ar.data.dataset import Dataset, digest, save
from visual_ar.png import read_recipe
from visual_ar.provenance import command
from visual_ar.tokenizers.vq import VQTokenizer

pytestmark = pytest.mark.usefixtures("folder")


def run(*words):
    """Returns the result of `visual-ar WORDS`, with stdout and stderr apart."""
    return CliRunner().invoke(app, [str(word) for word in words])


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.fixture
def parallel(tiny_text_pipeline, make_parallel_pipeline, tmp_path):
    """Folder of a saved pipeline that may draft for the one in `texts`."""
    make_parallel_pipeline(tiny_text_pipeline).save_pretrained(tmp_path / "parallel")
    return tmp_path / "parallel"


def test_generate_draws_what_the_pipeline_draws(classes, tiny_pipeline):
    result = run("generate", "-m", classes, "--class", "dog", "--seed", 5, "--guidance", 3)
    assert result.exit_code == 0, result.output
    assert "16 tokens in 16 passes" in result.stdout
    expected = tiny_pipeline(class_labels="dog", seeds=5, guidance_scale=3.0).images[0]
    assert (pixels("picture.png") == np.asarray(expected)).all()


@pytest.mark.parametrize(
    "words",
    [
        ["--method", "jacobi", "--window", 4, "--coupling", "gumbel", "--top-k", 7],
        ["--method", "jacobi-published", "--temperature", 0.9, "--top-p", 0.8],
        ["--method", "exact-match", "--window", 3, "--guidance-schedule", "linear"],
        ["--method", "jacobi", "--window", 4, "--rule", "lantern++/neighbours=3/factor=3"],
        ["--method", "tree", "--window", 4, "--tree", 2, "--drafter", "left-law+above-law"],
    ],
)
def test_info_prints_a_command_that_draws_the_picture_again(texts, words):
    draw_twice(texts, words)


def test_a_draft_model_is_part_of_the_command(texts, parallel):
    words = ["--method", "hybrid", "--draft-model", parallel, "--drafts", "ahead", "--window", 4]
    assert draw_twice(texts, words)["draft_model"] == str(parallel)


def draw_twice(texts, words):
    """Draws first.png, and again by the command that it carries; returns its recipe."""
    first = run("generate", "red apple", "-m", texts, "-o", "first.png", *words)
    assert first.exit_code == 0, first.output
    printed = run("info", "first.png").stdout.strip()
    assert printed.startswith("visual-ar generate 'red apple' ")
    again = run(*shlex.split(printed)[1:], "--output", "again.png")
    assert again.exit_code == 0, again.output
    assert (pixels("first.png") == pixels("again.png")).all()
    recipes = [read_recipe(f"{name}.png") for name in ("first", "again")]
    for recipe in recipes:
        assert recipe["passes"] <= recipe["tokens"] == 16
        assert {"torch", "visual-ar", "diffusers"} <= set(recipe["versions"])
    assert recipes[0] == recipes[1]
    return recipes[0]


def test_a_lossy_rule_says_what_it_spends(texts):
    words = ("generate", "red apple", "-m", texts, "--method", "jacobi", "--window", 4)
    honest = run(*words)
    assert honest.exit_code == 0 and "total variation" not in honest.stdout
    lossy = run(*words, "--rule", "omega/omega=1.5", "--json")
    assert lossy.exit_code == 0, lossy.output
    (batch,) = json.loads(lossy.stdout)["batches"]
    assert not batch["lossless"] and 0 < batch["total_variation"] < 0.5
    assert not read_recipe("picture.png")["lossless"]
    assert "total variation 0." in run(*words, "--rule", "omega/omega=1.5").stdout
    refused = run(*words, "--rule", "omega/omega=0.5")
    assert refused.exit_code != 0 and "at least 1, got 0.5" in refused.output


def test_measured_window_is_recorded(classes):
    assert run("generate", "-m", classes, "-c", 0, "--method", "jacobi").exit_code == 0
    recipe = read_recipe("picture.png")
    assert isinstance(recipe["window"], int)
    assert f"--window {recipe['window']}" in run("info", "picture.png").stdout


def test_several_pictures_are_numbered_and_independent_of_the_batch(texts, folder):
    words = ("generate", "red tree", "green apple", "-m", texts, "-n", 2, "--seed", 9)
    assert run(*words, "--batch", 3, "-o", "a.png").exit_code == 0
    assert run(*words, "--batch", 1, "-o", "b.png").exit_code == 0
    for number, prompt in enumerate(["red tree", "red tree", "green apple", "green apple"]):
        recipe = read_recipe(f"a-{number + 1}.png")
        assert (recipe["prompt"], recipe["seed"]) == (prompt, 9 + number)
        assert (pixels(f"a-{number + 1}.png") == pixels(f"b-{number + 1}.png")).all()
    assert len(list(folder.iterdir())) == 8


def test_sheet_holds_the_pictures_in_reading_order(classes, folder):
    words = ("generate", "-m", classes, "-c", "cat", "-c", "frog", "-n", 3, "--seed", 1)
    assert run(*words, "-o", "one.png").exit_code == 0
    assert run(*words, "--sheet", "--columns", 3, "-o", "sheet.png").exit_code == 0
    expected = paste([Image.open(f"one-{n}.png") for n in range(1, 7)], 3)
    assert expected.size == (3 * (8 + GAP) + GAP, 2 * (8 + GAP) + GAP)
    assert (pixels("sheet.png") == np.asarray(expected)).all()
    printed = run("info", "sheet.png").stdout
    assert "--class cat --class frog --count 3 --seed 1" in printed
    assert "--sheet --columns 3" in printed


def test_completion_keeps_the_cells_and_draws_the_rest(classes, tiny_pipeline):
    given = tiny_pipeline(class_labels=1, seeds=2).images[0]
    given.save("given.png")
    keep = np.zeros((4, 4), dtype=bool)
    keep[:2] = True
    Image.fromarray(keep).resize((64, 64), Image.Resampling.NEAREST).save("mask.png")
    words = ("generate", "-m", classes, "-c", 1, "--seed", 4, "--complete", "given.png")
    assert run(*words, "--keep-rows", "0:2", "-o", "rows.png").exit_code == 0
    assert run(*words, "--mask", "mask.png", "-o", "mask-drawn.png").exit_code == 0
    expected = tiny_pipeline(class_labels=1, seeds=4, image=given, mask=keep).images[0]
    for name in ("rows.png", "mask-drawn.png"):
        assert (pixels(name) == np.asarray(expected)).all()
    assert "--complete given.png --keep-rows 0:2" in run("info", "rows.png").stdout


def test_json_is_one_document(classes):
    result = run("generate", "-m", classes, "-c", 0, "-c", 1, "--json")
    document = json.loads(result.stdout)
    assert document["files"] == ["picture-1.png", "picture-2.png"]
    assert [recipe["class"] for recipe in document["pictures"]] == ["0", "1"]
    assert document["batches"][0]["passes"] == [16, 16]


def test_info_describes_a_model_without_loading_it(classes, tiny_pipeline):
    document = json.loads(run("info", classes, "--json").stdout)
    expected = sum(weight.numel() for weight in tiny_pipeline.model.parameters())
    assert document["components"]["model"] == {"class": "LlamaGen", "parameters": expected}
    assert document["settings"]["class_names"] == ["cat", "dog", "frog"]
    (classes / "model" / "diffusion_pytorch_model.safetensors").write_bytes(b"short")
    result = run("info", classes)
    assert result.exit_code == 1 and "whole safetensors file" in result.stderr


def test_info_lists_methods_recipes_and_versions():
    document = json.loads(run("info", "--json").stdout)
    assert "exact-match" in document["methods"]
    assert "emoji" in document["recipes"]
    assert document["versions"]["torch"]
    assert document["devices"][0].startswith("cpu")


def test_info_says_who_verifies_and_why(monkeypatch):
    monkeypatch.delenv("VISUAL_AR_KERNELS", raising=False)
    document = json.loads(run("info", "--kernels", "--json").stdout)
    assert document["kernels"]["cpu"]["backend"] == "torch"
    assert "this is cpu" in document["kernels"]["cpu"]["reason"]
    monkeypatch.setenv("VISUAL_AR_KERNELS", "cuda")
    forced = json.loads(run("info", "--kernels", "--json").stdout)["kernels"]["cpu"]
    assert forced["backend"] == "none" and "needs a CUDA GPU" in forced["reason"]
    refused = run("info", "emoji", "--kernels")
    assert refused.exit_code == 1 and "takes no subject" in refused.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--top-p", 0], "top_p must be in (0, 1], got 0.0"),
        (["--temperature", -1], "temperature must be above 0, from 1e-06 to 1e+06, got -1.0"),
        (["--method", "guess"], "method must be one of sequential"),
        (["--method", "jacobi", "--window", 0], "from 1 to 65536, got 0"),
        (["--method", "jacobi", "--window", "wide"], "got 'wide'"),
        (["--method", "jacobi", "--init", "luck"], "got 'luck'"),
        (["--method", "jacobi-published", "--window", 4], "window must be left out"),
        (["--window", 4], "window must be left out with method SequentialDecoding, got 4"),
        (["--steps", 4], "steps must be left out with method SequentialDecoding, got 4"),
        (["--method", "denoising"], "needs a model with the capability 'denoising'"),
        (["--height", 9], "height must be a positive multiple of 2, got 9"),
        (["--device", "gpu"], "device must be auto, cpu, cuda, cuda:N or mps, got 'gpu'"),
        (["--device", "cuda:99"], "device must be present on this machine, got 'cuda:99'"),
        (["--output", "picture.jpg"], "output must end in .png, got 'picture.jpg'"),
        (["--output", "no/picture.png"], "existing folder, got 'no/picture.png'"),
        (["--columns", 3], "columns must be left out without --sheet, got 3"),
        (["--class", "bird"], "class_labels must be in 0..2 or cat, dog, frog, got 'bird'"),
        (["--keep-rows", "0:2"], "complete must be given"),
        (["--complete", "none.png", "--keep-rows", "0:2"], "none.png: No such file"),
        (["cat"], "one of PROMPT and --class must be given, got both"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(classes, folder, words, message):
    result = run("generate", "-m", classes, "-c", "cat", *words)
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([""], "prompt must be text that is not empty, got ''"),
        (["red", "-m", "nonesuch"], "model must be bundled"),
        (["red", "-m", "."], "model_index.json"),
        (["-c", "cat"], "class_labels must be left out for this text-conditional model"),
    ],
)
def test_wrong_prompts_and_models_are_named(texts, words, message):
    result = run("generate", "-m", texts, *words)
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr


def test_usage_errors_name_the_option(folder):
    for words, option in (
        (["generate", "red", "--count", "0"], "--count"),
        (["generate", "red", "--dtype", "int4"], "--dtype"),
        (["data", "mnist", "--output", "x"], "mnist"),
        (["train", "emoji", "--output", "x"], "--data"),
    ):
        result = run(*words)
        assert result.exit_code == 2 and option in result.stderr


def test_damaged_weights_are_refused(classes):
    weights = classes / "model" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    result = run("generate", "-m", classes, "-c", 0)
    assert result.exit_code == 1 and "safetensors" in result.stderr


def test_unwritable_places_are_refused_before_work(folder):
    (folder / "file").touch()
    (folder / "folder.png").mkdir()
    for words in (
        ["generate", "red", "--output", "folder.png"],
        ["data", "emoji", "--output", "file/inside"],
        ["data", "emoji", "--output", "file"],
        ["train", "emoji", "--data", ".", "--output", "file"],
    ):
        result = run(*words)
        assert result.exit_code == 1 and "Error: output must be a f" in result.stderr


def test_train_refuses_what_is_not_there(folder):
    absent = run("train", "emoji", "--data", "absent", "--output", "out")
    assert (
        absent.exit_code == 1 and "data must be a prepared dataset, got 'absent'" in absent.stderr
    )
    unknown = run("train", "nonesuch", "--data", ".", "--output", "out")
    assert unknown.exit_code == 1 and "got 'nonesuch'" in unknown.stderr
    assert not list(folder.iterdir())


def test_traceback_only_with_debug(folder):
    assert "Traceback" not in run("info", "absent.png").stderr
    for words in (["--debug", "info", "absent.png"], ["info", "absent.png", "--debug"]):
        result = run(*words)
        assert result.exit_code == 1 and "Traceback" in result.stderr


def test_interruption_leaves_only_whole_pictures(classes, folder):
    """An interrupt is sent again only where drawing went on after it: while dying none comes."""
    words = ("generate", "-m", classes, "-c", 0, "--count", 50_000, "--batch", 1)
    said, heard = folder.parent / "stderr", folder.parent / "heard"
    # A shell that runs the tests in the background has them ignore interrupts, and their children.
    program = f"""
import pathlib, signal
def interrupted(*_):
    pathlib.Path({str(heard)!r}).touch()
    raise KeyboardInterrupt
signal.signal(signal.SIGINT, interrupted)
from visual_ar.cli.main import main
main()
"""
    with said.open("w") as stderr:
        call = [sys.executable, "-c", program, *map(str, words)]
        process = subprocess.Popen(call, cwd=folder, stderr=stderr)
    drawn = 0
    while process.poll() is None:
        time.sleep(0.05)
        if len(list(folder.glob("*.png"))) > drawn:  # Python drops one that falls in a destructor
            process.send_signal(signal.SIGINT)
            while process.poll() is None and not heard.exists():
                time.sleep(0.05)
            drawn = len(list(folder.glob("*.png")))
            heard.unlink(missing_ok=True)
    assert (process.returncode, said.read_text().splitlines()[-1]) == (130, "Interrupted.")
    files = list(folder.iterdir())
    assert 0 < len(files) < 50_000
    for file in files:
        assert read_recipe(file)["class"] == "0"


def test_prompts_that_look_like_options_survive_the_command():
    recipe = {"prompt": ["-5 degrees", "it's"], "seed": 3, "sheet": True, "other": 1}
    printed = command(recipe)
    assert printed == "visual-ar generate --seed 3 --sheet -- '-5 degrees' 'it'\"'\"'s'"


def test_convert_writes_a_folder_that_loads(folder):
    torch.manual_seed(0)
    options = {"channels": 32, "channel_multipliers": (1, 2), "residual_blocks": 1}
    tokenizer = VQTokenizer(**options, latent_channels=32, codebook_size=16, codebook_dim=4)
    torch.save({"model": tokenizer.state_dict()}, "vq.pt")
    result = run("convert", "vq.pt", "--output", "vq")
    assert result.exit_code == 0, result.output
    loaded = VQTokenizer.from_pretrained("vq")
    for name, weight in tokenizer.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)
    again = run("convert", "vq.pt", "--output", "vq")
    assert again.exit_code == 1 and "new or empty folder" in again.stderr
    (folder / "vq.pt").write_bytes((folder / "vq.pt").read_bytes()[:1000])
    broken = run("convert", "vq.pt", "--output", "other")
    assert broken.exit_code == 1 and "vq.pt" in broken.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["vq", "vq.pt"]


RECIPE = """
name = "tiny"
kind = "tokenizer"
dataset = "cifar10"
steps = 3
batch = 4

[model]
channels = 4
channel_multipliers = [1, 2]
residual_blocks = 1
latent_channels = 8
codebook_size = 8
codebook_dim = 4
norm_groups = 2

[optimiser]
learning_rate = 1e-3

[codebook]
start = 0.0
"""


def test_train_follows_a_recipe_file(folder):
    pictures = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
    splits = ["train"] * 16 + ["test"] * 8
    labels = np.zeros(24, dtype=np.int64)
    manifest = {
        "name": "cifar10",
        "shape": list(pictures.shape),
        "pictures_sha256": digest(pictures),
        "counts": {"train": 16, "test": 8},
    }
    save(Dataset("cifar10", pictures, splits, [], labels, ["noise"], manifest), folder / "data")
    (folder / "tiny.toml").write_text(RECIPE)
    result = run(
        "train", "tiny.toml", "--data", "data", "--output", "run", "--device", "cpu", "--json"
    )
    assert result.exit_code == 0, result.output
    assert "follow it in run/log.csv" in result.stderr
    assert json.loads(result.stdout)["metrics"]["steps"] == 3
    assert VQTokenizer.from_pretrained("run/model").codebook_size == 8
