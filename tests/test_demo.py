"""The page as programs see it: every handler by its name, on tiny pipelines."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import gradio as gr
import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from typer.testing import CliRunner

from visual_ar.accel.sequential import SequentialDecoding
from visual_ar.app.web_demo import application, build
from visual_ar.cli.main import app
from visual_ar.png import read_recipe

SAMPLING = (3.0, "constant", 0.9, 0, 1.0)
OPTIONS = ("4", "maximal", "uniform", "exact", False)  # of the methods, as controls hold them


def handler(page, name):
    """The function behind an event of the page."""
    [function] = [entry for entry in page.fns.values() if entry.api_name == name]
    return function.fn


def options(page):
    """One value for each option control of the page, by name."""
    given = dict(zip(("window", "coupling", "init", "rule", "measure_tv"), OPTIONS, strict=True))
    from visual_ar.method_options import every_option

    return [
        given.get(name, option.shown(option.default)) for name, option in every_option().items()
    ]


@pytest.fixture
def page(tiny_pipeline, monkeypatch):
    monkeypatch.setattr("visual_ar.app.live_drawing.PREVIEW_SECONDS", 0)
    monkeypatch.setattr("visual_ar.app.compare_tab.PREVIEW_SECONDS", 0)
    monkeypatch.setattr("visual_ar.app.shelf.bundled", dict)
    return build(tiny_pipeline, "tiny")


def test_importing_the_page_loads_nothing_heavy():
    code = (
        "import sys, visual_ar.app.web_demo; "
        "print([name for name in ('torch', 'gradio', 'diffusers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_handler_has_a_name_and_says_what_it_does(page):
    handlers = [entry for entry in page.fns.values() if entry.fn is not None]
    handlers = [entry for entry in handlers if not entry.is_cancel_function]
    names = [entry.api_name for entry in handlers]
    assert len(set(names)) == len(names) and all(names)
    wanted = {"generate", "stop", "restore", "compare", "look", "swap", "bench", "load_model"}
    assert wanted <= set(names)
    for entry in handlers:
        assert (entry.fn.__doc__ or "").rstrip().endswith("."), entry.api_name


def test_heavy_handlers_wait_for_each_other(page):
    heavy = ("generate", "compare", "look", "swap", "bench", "load_model", "restore")
    found = {entry.api_name: entry for entry in page.fns.values()}
    assert {found[name].concurrency_id for name in heavy} == {"device"}
    assert {found[name].concurrency_limit for name in heavy} <= {1, "default"}


def test_generate_streams_up_to_the_pipelines_picture(page, tiny_pipeline):
    generate = handler(page, "generate")
    shown = []
    for images, status, seed in generate(
        "tiny", "dog", 2, "5", True, "sequential", *SAMPLING, *options(page)
    ):
        shown.append((images, status, seed))
        if "instead of" in status:
            final = [(np.asarray(Image.open(path)), read_recipe(path)) for path in images]
    assert len(shown) == 1 + 16 + 1
    assert "**2 of 32 tokens**" in shown[1][1] and shown[1][2] == "5"
    expected = tiny_pipeline(
        class_labels=["dog", "dog"], guidance_scale=3.0, temperature=0.9, seeds=5
    )
    for (image, recipe), wanted, seed in zip(final, expected.images, (5, 6), strict=True):
        assert (image == np.asarray(wanted)).all()
        assert recipe["seed"] == seed and recipe["class"] == "dog" and recipe["model"] == "tiny"


def test_a_seed_that_is_not_locked_is_drawn_anew(page):
    generate = handler(page, "generate")
    settings = ("tiny", "dog", 1, "5", False, "sequential", *SAMPLING, *options(page))
    seeds = {next(generate(*settings))[2] for _ in range(3)}
    assert len(seeds) == 3 and "5" not in seeds


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: "other"}, "model must be one of tiny"),
        ({1: "zebra"}, r"class_labels must be in 0\.\.2 or cat, dog, frog, got 'zebra'"),
        ({3: "x"}, "seed must be a whole number"),
        ({5: "guess"}, "method must be one of"),
        ({8: 0.0}, "temperature must be"),
    ],
)
def test_what_is_wrong_is_a_sentence(page, change, message):
    values = ["tiny", "dog", 1, "5", True, "jacobi", *SAMPLING, *options(page)]
    for index, value in change.items():
        values[index] = value
    with pytest.raises(gr.Error, match=message):
        list(handler(page, "generate")(*values))


def test_what_nobody_foresaw_is_a_sentence_without_secrets(page, monkeypatch, caplog):
    def fail(*values):
        raise RuntimeError("a secret")

    monkeypatch.setattr("visual_ar.app.generate_tab.settings", fail)
    values = ("tiny", "dog", 1, "5", True, "jacobi", *SAMPLING, *options(page))
    with pytest.raises(gr.Error, match="failed because of RuntimeError"):
        list(handler(page, "generate")(*values))
    assert "a secret" in caplog.text


def test_options_are_shown_only_where_they_apply(page):
    from visual_ar.method_options import every_option

    choose = handler(page, "choose_method")
    for method, wanted in (
        ("sequential", set()),
        ("exact-match", {"window", "init"}),
        ("jacobi", {"window", "coupling", "init", "rule", "measure_tv"}),
    ):
        about, *updates = choose("tiny", method)
        shown = {name for name, one in zip(every_option(), updates, strict=True) if one["visible"]}
        assert shown == wanted and "lossless=True" in about
    values = dict(zip(every_option(), options(page), strict=True))
    told = handler(page, "describe_method")(
        "tiny", "jacobi", *{**values, "rule": "typical"}.values()
    )
    assert "lossless=False" in told


def test_a_class_model_and_a_text_model_are_asked_differently(make_tiny_pipeline, tmp_path, page):
    make_tiny_pipeline(text=True).save_pretrained(tmp_path / "texts")
    name = str(tmp_path / "texts")
    loaded, picked, *rest = handler(page, "load_model")(name)
    assert "is loaded" in loaded and picked["value"] == name
    assert any(isinstance(one, dict) and one.get("label") == "Prompt" for one in rest)
    back = handler(page, "choose_model")("tiny")
    assert back[0]["label"] == "Class" and '<option value="frog">' in back[1]
    with pytest.raises(gr.Error, match="model must be a folder or OWNER/NAME, got nothing"):
        handler(page, "load_model")(" ")


@pytest.fixture
def client(page, serving):
    """A client of the page, served from a thread."""
    with serving(application(page)) as address:
        yield Client(address, verbose=False)


def test_all_passes_are_made_in_one_thread(client, tiny_pipeline, monkeypatch):
    step, seen = SequentialDecoding.step, set()

    def watched(self, state):
        seen.add(threading.current_thread().name)
        return step(self, state)

    monkeypatch.setattr(SequentialDecoding, "step", watched)
    client.predict("tiny", "dog", "5", "sequential", "jacobi", *SAMPLING, api_name="/compare")
    client.predict("tiny", ["jacobi:window=4"], 1, 1, api_name="/bench")
    assert seen == {"visual_ar device"}


def test_programs_can_do_what_visitors_can(client, tmp_path, tiny_pipeline):
    drawn = client.predict(
        "tiny", "dog", 1, "5", True, "sequential", *SAMPLING, api_name="/generate"
    )
    path = drawn[0][0]["image"]
    assert read_recipe(path)["seed"] == 5 and "lossless=True" in drawn[1]
    restored = client.predict(handle_file(path), api_name="/restore")
    assert "tiny" in str(restored[0]) and "dog" in str(restored[1])

    compared = client.predict(
        "tiny", "dog", "5", "sequential", "exact-match:window=4", *SAMPLING, api_name="/compare"
    )
    rows = {row[0]: row[1:] for row in compared[5]["data"]}
    assert rows["passes"][0] == "16" and compared[6].startswith("**Identical: ")
    for part in compared[7]:
        with Image.open(part) as slide:
            assert slide.size == (384, 384)

    seen = client.predict(handle_file(path), api_name="/look")
    assert seen[0]["data"][0][:3] == ["tiny", "4 x 4 = 16", "64"]
    swapped = client.predict("tiny", 1, 2, 1, api_name="/swap")
    assert "Row 1, column 2: code" in swapped[1]

    benched = client.predict("tiny", ["jacobi:window=4"], 1, 1, api_name="/bench")
    assert [row[0] for row in benched[1]["data"]] == ["sequential", "jacobi:window=4"]
    card = client.predict("tiny", api_name="/model_card")
    assert card[1] == "No model card lies beside tiny."

    with pytest.raises(AppError, match="methods must be two different ones"):
        client.predict("tiny", "dog", "5", "jacobi", "jacobi", *SAMPLING, api_name="/compare")
    (tmp_path / "text.png").write_text("no picture")
    for name in ("/look", "/restore"):
        with pytest.raises(AppError, match="upload must be a picture"):
            client.predict(handle_file(str(Path(tmp_path / "text.png"))), api_name=name)


def test_the_command_opens_the_page_and_names_an_occupied_port(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path / "tiny")
    words = ["demo", "-m", str(tmp_path / "tiny"), "--port"]
    command = [sys.executable, "-m", "visual_ar", *words, "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "VISUAL_AR_CACHE": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("Opening "), line
            url = line.split()[3]
            port = url.rpartition(":")[2]
            second = CliRunner().invoke(app, [*words, port])
            assert second.exit_code == 1
            assert f"must be free to listen on, got 127.0.0.1 and {port}" in second.stderr
            page = httpx.get(url, timeout=300)
            assert page.status_code == 200 and "visual_ar" in page.text
            process.send_signal(signal.SIGTERM)
            assert process.wait(300) == 0
        finally:
            process.kill()
