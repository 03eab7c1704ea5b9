"""The command line on names and files that are unusual: damaged pictures, bytes, brackets, dots."""

import inspect
import os
import re
import struct
import zlib

import pytest
from PIL import Image
from typer.testing import CliRunner

from visual_ar.accel import METHODS
from visual_ar.cli import evaluate_sets, info, serve
from visual_ar.cli.main import app

pytestmark = pytest.mark.usefixtures("folder")


def run(*words):
    """Returns the result of `visual-ar WORDS`, with stdout and stderr apart."""
    return CliRunner().invoke(app, [str(word) for word in words])


def said(result):
    """Returns the one sentence on stderr of a command that ended in it."""
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    return result.stderr


def help_of(command, parameter):
    """Returns the help of an option of a command's function."""
    [option] = inspect.signature(command).parameters[parameter].annotation.__metadata__
    return option.help


def chunk(kind, data):
    """Returns a chunk of a PNG."""
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + check


def png(side, pixels, end):
    """Returns a PNG that claims side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", pixels) + end


HALF = zlib.compress(bytes(range(25)) + bytes(7 * 25))[:20]  # of the pixels of 8 x 8
DAMAGED = {
    "cut": png(8, HALF, b""),
    "broken": png(8, HALF, chunk(b"\x01\x02\x03\x04", b"")),
    "huge": png(60_000, HALF, chunk(b"IEND", b"")),
    "short": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", b"") + chunk(b"IEND", b""),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_and_huge_pictures_are_named(classes, folder, kind):
    (folder / "half.png").write_bytes(DAMAGED[kind])
    Image.new("L", (4, 4)).save(folder / "mask.png")
    words = ("generate", "-m", classes, "-c", "cat", "--device", "cpu")
    for given in (
        ("info", "half.png"),
        (*words, "--complete", "half.png", "--keep-rows", "0:2"),
        (*words, "--complete", "mask.png", "--mask", "half.png"),
    ):
        assert "half.png" in said(run(*given))
    assert not (folder / "picture.png").exists()


def test_prompts_that_are_no_text_are_refused_before_drawing(texts, folder):
    prompt = os.fsdecode(b"red \xff")  # as Python reads an argument that is not UTF-8
    result = run("generate", "-m", texts, prompt, "--device", "cpu")
    assert "prompt must be text in Unicode, got 'red \\udcff'" in said(result)
    assert not list(folder.iterdir())


def test_names_may_be_as_long_as_the_file_system_allows(classes, folder):
    longest = os.pathconf(folder, "PC_NAME_MAX")
    words = ("generate", "-m", classes, "-c", "cat", "--device", "cpu", "--output")
    name = "ü" + (longest - 6) * "x" + ".png"  # ü has two bytes
    assert run(*words, name).exit_code == 0
    assert [file.name for file in folder.iterdir()] == [name]
    for more in ((), ("--count", 2)):  # numbers make a name longer
        long = f"x{name}" if not more else name
        message = f"output must have a name of at most {longest} bytes, got "
        assert message in said(run(*words, long, *more))


def test_prompts_of_an_evaluation_are_asked_for_by_their_option(texts, folder):
    result = run("evaluate", "sample", "-m", texts, "-o", "smp", "--device", "cpu")
    assert "prompts must be given by --prompts for the text-conditional model" in said(result)
    assert not list(folder.iterdir())


def test_the_help_of_clip_says_which_names_openai_s_weights_need():
    assert "ViT-B-32-quickgelu" in help_of(evaluate_sets.alignment, "clip")


def test_brackets_in_names_are_no_markup(classes, folder):
    name = "m[red]:apple:[x"  # a name cannot hold the / of a closing tag, a path can
    (folder / name).mkdir()
    classes.rename(folder / name / "x]")
    for words in (
        ("info", f"{name}/x]"),
        ("bench", "-m", f"{name}/x]", "--rounds", 1, "--pictures", 1, "--methods", "sequential"),
    ):
        result = run(*words)
        assert result.exit_code == 0, result.output
        assert f"{name}/x]" in "".join(result.stdout.split("\n"))


def test_results_and_places_are_printed_as_they_are(capsys):
    info.show({"[/results]": {"[/red]": 0.5, ":apple:": "[bold]"}})
    printed = capsys.readouterr().out
    assert "[/results]" in printed and "[/red]" in printed and ":apple:  [bold]" in printed


def test_a_service_is_named_after_the_folder_it_stands_in(classes, monkeypatch):
    monkeypatch.setattr(serve, "run", lambda *given: None)
    monkeypatch.chdir(classes)
    (classes.parent / "link").symlink_to(classes)
    for model, name in ((".", "classes"), ("../classes/", "classes"), ("../link", "link")):
        result = run("serve", "--model", model, "--port", 0, "--slots", 1, "--device", "cpu")
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith(f"Serving {name} on http://127.0.0.1:")


def test_the_help_of_serve_names_every_method_that_slots_can_serve():
    described = re.findall(r"[\w-]+", run("serve", "--help").stdout)
    assert set(METHODS) - {"hybrid"} <= set(described)  # that one needs a second model
