"""Every snippet of the README runs: Python as it stands, commands through the command line."""

import json
import re
import shlex
import shutil
import subprocess
from importlib import import_module
from pathlib import Path

import pytest
from local_downloads import short_recipe, write_checkpoints
from test_cifar10_data import cifar10  # noqa: F401 - a fixture
from test_emoji_data import emoji  # noqa: F401 - a fixture
from typer.testing import CliRunner

from visual_ar.accel.sequential import SequentialDecoding
from visual_ar.pipeline import VisualARPipeline

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
PYTHON = [body for language, body in BLOCKS if language == "python"]
COMMANDS = [
    line for language, body in BLOCKS if language == "bash" for line in body.strip().splitlines()
]
ENDLESS = ("serve ", "demo")
"""Commands that do not end by themselves; their own tests run them."""
SERVICE = "http://127.0.0.1:8000"


def test_the_readme_has_snippets():
    assert len(PYTHON) >= 3 and len(COMMANDS) >= 8


@pytest.mark.long
@pytest.mark.parametrize("snippet", PYTHON, ids=range(len(PYTHON)))
def test_python_snippets_run(snippet, tmp_path, monkeypatch, serve):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VISUAL_AR_CACHE", str(tmp_path))
    if SERVICE in snippet:
        pytest.importorskip("openai")
        snippet = snippet.replace(SERVICE, started(serve))
    exec(compile(snippet, "README.md", "exec"), {"__name__": "snippet"})


def started(serve):
    """Address of a service for the model that the README serves; sequential, so nothing tunes."""
    pipe = VisualARPipeline.from_pretrained("emoji")
    pipe.scheduler = SequentialDecoding()
    return serve(pipe, slots=1)[0]


@pytest.mark.long
def test_the_request_by_hand_is_answered(serve):
    [line] = [command for command in COMMANDS if command.startswith("curl ")]
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    words = shlex.split(line.replace(SERVICE, started(serve)))
    answer = subprocess.run(words, check=True, capture_output=True, timeout=300).stdout
    assert json.loads(answer)["data"][0]["seed"] == 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Commands run in order in one folder, as a reader would type them."""
    return tmp_path_factory.mktemp("readme")


@pytest.fixture
def downloads(request, folder, monkeypatch):
    """What the README's commands download, from this machine and small; training is short."""
    request.getfixturevalue("emoji")
    request.getfixturevalue("cifar10")
    write_checkpoints(folder, monkeypatch)
    monkeypatch.setattr(import_module("visual_ar.training.run"), "load_recipe", short_recipe)


@pytest.mark.long
@pytest.mark.parametrize("line", [c for c in COMMANDS if c.startswith("visual-ar ")])
def test_commands_run(line, folder, downloads, monkeypatch):
    from visual_ar.cli.main import app

    monkeypatch.chdir(folder)
    monkeypatch.setenv("VISUAL_AR_CACHE", str(folder))
    words = shlex.split(line, comments=True)[1:]
    if line.removeprefix("visual-ar ").startswith(ENDLESS):
        words = [words[0], "--help"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    if "--output" in words:
        output = folder / words[words.index("--output") + 1]
        files = [output] if output.is_file() else list(output.rglob("*"))
        assert sum(file.stat().st_size for file in files) > 500


def test_the_first_command_is_what_the_tests_run():
    """The line a newcomer copies generates with the same command that is run below it."""
    install = next(c for c in COMMANDS if c.startswith("python3 -m venv"))
    generate = install.split("&&")[-1].strip().removeprefix(".venv/bin/")
    assert generate == 'visual-ar generate "strawberry" --output strawberry.png'


def test_the_generate_command_of_the_first_line_runs(folder, monkeypatch):
    from visual_ar.cli.main import app

    monkeypatch.chdir(folder)
    monkeypatch.setenv("VISUAL_AR_CACHE", str(folder))
    result = CliRunner().invoke(app, ["generate", "strawberry", "--output", "strawberry.png"])
    assert result.exit_code == 0, result.output
    assert (folder / "strawberry.png").read_bytes().startswith(b"\x89PNG")


def test_links_and_pictures_exist():
    text = README.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (README.parent / target).exists(), target
