"""Text of files and users is shown and never obeyed; every terminal can show every text."""

import io
import json
import re
import subprocess
import sys
import unicodedata

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from visual_ar.cli import main
from visual_ar.cli.help_text import literal
from visual_ar.plain_text import plain, plain_json, shell_word
from visual_ar.png import write_png
from visual_ar.user_errors import sentence

pytestmark = pytest.mark.usefixtures("folder")

OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
JOINERS = "\u200c\u200d"
EVERY = "".join(
    one
    for one in map(chr, range(sys.maxunicode + 1))
    if unicodedata.category(one) in OBEYED and one not in JOINERS
)
EVIL = "a\x1b]0;title\x07b\x9b31mc\rd\u202ee\u2028f\x7fg\u2066h\ufeffi\x00j"


def run(*words):
    return CliRunner().invoke(main.app, [str(word) for word in words])


def obeyed(text):
    """What a terminal would obey in a text of lines."""
    return [one for one in text if one != "\n" and one in EVERY]


def test_every_character_a_terminal_obeys_is_written_out():
    assert obeyed(plain(EVERY)) == [] and obeyed(plain_json({EVERY: [EVERY]})) == []
    apart = " ".join(EVERY)  # two halves side by side would be a pair
    assert json.loads(plain_json({apart: [apart]})) == {apart: [apart]}
    assert plain("\x1b[31m\u202e\ud800") == r"\x1b[31m\u202e\ud800"
    for shown in ("café 火 👩‍🚀 مرحبا \\x1b", "नमस्ते", "a b"):
        assert plain(shown) == shown
        assert json.loads(plain_json([shown])) == [shown]
    assert plain("a\nb") == r"a\nb" and plain("a\nb\t", keep="\n") == "a\nb\\t"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8", "utf-16"])
def test_json_is_written_in_any_encoding(encoding):
    document = {"é 火\U0001f353": "\x1b\ud800"}
    written = plain_json(document, encoding).encode(encoding).decode(encoding)
    assert json.loads(written) == document


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize(
    "word", [EVIL.replace("\0", ""), "it's \\ é火", "", "-n", "$HOME`id`", "a\nb", "\udcff1", "é1"]
)
def test_a_word_for_the_shell_arrives_as_it_was(word, encoding):
    written = shell_word(word, encoding)
    assert obeyed(written) == [] and "\n" not in written
    written.encode(encoding)
    script = f"printf '<%s>' {written}".encode(encoding if encoding == "ascii" else "utf-8")
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    assert done.stdout == f"<{word}>".encode("utf-8", "surrogateescape")


@pytest.mark.parametrize(("word", "message"), [("a\0", "NUL"), ("\ud800", "Unicode")])
def test_a_word_that_no_program_can_receive_is_refused(word, message):
    with pytest.raises(ValueError, match=message):
        shell_word(word)


@pytest.mark.parametrize("key", ["prompt", "model", "method", "complete", "mask", "guidance"])
def test_the_recipe_of_a_foreign_picture_is_shown(key):
    write_png(Image.new("RGB", (8, 8)), "evil.png", {"prompt": "x", key: EVIL.replace("\0", "")})
    shown = run("info", "evil.png")
    assert shown.exit_code == 0 and r"\033]0;title\007" in shown.stdout
    assert obeyed(shown.output) == [] and shown.stdout.count("\n") == 1
    document = run("info", "evil.png", "--json")
    assert obeyed(document.output) == []
    assert json.loads(document.stdout)["recipe"][key] == EVIL.replace("\0", "")


def test_what_a_foreign_model_folder_says_is_shown(classes):
    index = json.loads((classes / "model_index.json").read_text())
    index["class_names"] = [EVIL, "dog", "[red]frog"]
    (classes / "model_index.json").write_text(json.dumps(index))
    for words in ((), ("--json",)):
        shown = run("info", classes, *words)
        assert shown.exit_code == 0 and obeyed(shown.output) == []
        assert "[red]frog" in shown.stdout
    index[EVIL] = ["torch", EVIL]
    (classes / "model_index.json").write_text(json.dumps(index))
    refused = run("info", classes)
    assert obeyed(refused.output) == []


@pytest.mark.parametrize(
    "words",
    [
        ("info", EVIL),
        ("generate", "x", "-m", EVIL),
        ("generate", "x", "--coupling", EVIL),
        ("generate", "x", "--device", EVIL),
        ("generate", "x", "--count", EVIL),
        ("generate", f"--{EVIL}"),
        ("generate", "x", "--complete", EVIL.replace("\0", "")),
        ("evaluate", "report", EVIL, EVIL),
        ("train", EVIL, "--data", "x", "--output", "y"),
        ("convert", EVIL, "out"),
        ("--debug", "info", EVIL),
        (EVIL,),
    ],
)
def test_what_was_typed_is_shown_where_it_is_wrong(words):
    told = run(*words)
    assert told.exit_code in (1, 2) and obeyed(told.output) == []


def test_an_error_is_one_line_with_the_file_it_is_about():
    assert sentence(ValueError(EVIL)) and obeyed(sentence(ValueError(EVIL))) == []
    assert "\n" not in sentence(ValueError("a\nb"))
    assert sentence(OSError(28, "No space left", "a\x1b")) == r"a\x1b: No space left"
    assert sentence(OSError(28, "No space left", b"\xff")) == r"\udcff: No space left"
    assert sentence(OSError(28, "No space left", 5)) == "No space left"
    assert sentence(OSError(28, "No space left")) == "No space left"
    assert sentence(ValueError()) == "ValueError"


def helps(command, path=()):
    """Every command with its words, those of a method's options among its parameters."""
    with command.make_context("visual-ar", [], resilient_parsing=True) as context:
        yield path, command, command.get_params(context)
    for name, under in getattr(command, "commands", {}).items():
        yield from helps(under, (*path, name))


def test_no_help_shows_an_emoji():
    from rich.text import Text

    told = 0
    for path, command, parameters in helps(typer.main.get_command(main.app)):
        for text in (command.help, *(getattr(one, "help", None) for one in parameters)):
            shown = Text.from_markup(text or "").plain
            assert shown == Text.from_markup(text or "", emoji=False).plain, path
            told += 1
    assert told > 150


@pytest.mark.parametrize("text", [":A:", ":x: a:heart:b", "interval:A:B", "http://[::1]:7860 :x"])
def test_colons_of_a_help_stay(text):
    def told(name: str = typer.Option("", help=text)) -> None: ...

    told.__doc__ = f"{text}\n\n{text}"
    app = typer.Typer(cls=main.Commands, add_completion=False, rich_markup_mode="rich")
    app.command("told", help=text, epilog=text)(told)
    app.callback()(lambda: None)
    for words in (["--help"], ["told", "--help"]):
        assert text in CliRunner().invoke(app, words).output
    assert literal("no colons: here") == "no colons: here"


class Terminal(io.TextIOWrapper):
    """A stream of one encoding that says it is a terminal, or a pipe."""

    def __init__(self, encoding, is_terminal):
        super().__init__(io.BytesIO(), encoding=encoding, write_through=True)
        self._is_terminal = is_terminal

    def isatty(self):
        return self._is_terminal

    def shown(self):
        return self.buffer.getvalue().decode(self.encoding)


@pytest.fixture
def on_terminal(monkeypatch):
    """Runs `visual-ar WORDS` on a terminal: on_terminal(words, encoding, terminal) -> its text."""

    def see(words, encoding="utf-8", is_terminal=True):
        out, err = Terminal(encoding, is_terminal), Terminal(encoding, is_terminal)
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            patch.setattr(sys, "argv", ["visual-ar", *map(str, words)])
            main.main()
        assert ended.value.code in (0, None), err.shown()
        return out.shown()

    return see


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_every_terminal_shows_helps_and_models(on_terminal, classes, encoding):
    index = json.loads((classes / "model_index.json").read_text())
    index["class_names"] = ["Zürich", "火", "dog"]
    (classes / "model_index.json").write_text(json.dumps(index))
    assert "chet distance" in on_terminal(["evaluate", "--help"], encoding)
    shown = on_terminal(["info", classes], encoding)
    assert "dog" in shown and "rich" in shown
    document = json.loads(on_terminal(["info", classes, "--json"], encoding))
    assert document["settings"]["class_names"][:2] == ["Zürich", "火"]


def test_paths_are_never_cropped(on_terminal, tiny_pipeline, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    place = tmp_path / ("a" * 100) / ("b" * 100)
    tiny_pipeline.save_pretrained(place)
    lines = on_terminal(["info", place], is_terminal=False).splitlines()
    assert f"path        {place}" in lines and not any(line.endswith(" ") for line in lines)
    shown = re.sub(r"\x1b\[\d*m", "", on_terminal(["info", place]))
    assert str(place) in shown.replace(" ", "").replace("\n", "").replace("\r", "")
    assert max(map(len, shown.splitlines())) <= 80


def test_options_before_a_command_of_bench_are_refused():
    for words in (("--model", "emoji"), ("--json",), ("--pictures", 4)):
        for command in ("kernels", "loop"):
            refused = run("bench", *words, command)
            assert refused.exit_code == 1
            assert f"{words[0]} must be left out with bench {command}" in refused.stderr
