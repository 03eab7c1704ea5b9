"""One reader of text files: what editors of any system write gives the same lines."""

import codecs
import os

import pytest

from visual_ar.app.shelf import card, known_subjects
from visual_ar.cli.evaluate_model import read_prompts
from visual_ar.text_file import MOST_BYTES, read_text
from visual_ar.training.recipe_file import bundled, load_recipe

LINES = ["horse", "a red apple", "Süßes 🍓"]
TEXT = "horse\n\n  a red apple \nSüßes 🍓\n"
WRITTEN = {
    "plain": TEXT.encode(),
    "without a last newline": TEXT.rstrip().encode(),
    "UTF-8 with a mark": codecs.BOM_UTF8 + TEXT.encode(),
    "UTF-16 LE": codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
    "UTF-16 BE": codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
    "UTF-32": TEXT.encode("utf-32"),
    "Windows": TEXT.replace("\n", "\r\n").encode(),
    "Windows, UTF-16": TEXT.replace("\n", "\r\n").encode("utf-16"),
    "old Mac": TEXT.replace("\n", "\r").encode(),
    "trailing NUL": TEXT.encode() + b"\0\0",
    "trailing control Z": TEXT.replace("\n", "\r\n").encode() + b"\x1a",
    "joined": codecs.BOM_UTF8 + b"horse\n" + codecs.BOM_UTF8 + TEXT.encode()[6:],
}


@pytest.mark.parametrize("name", WRITTEN)
def test_prompts_are_the_same_from_every_editor(name, tmp_path):
    (tmp_path / "prompts.txt").write_bytes(WRITTEN[name])
    assert read_prompts(tmp_path / "prompts.txt") == LINES


def test_only_line_ends_end_a_prompt(tmp_path):
    (tmp_path / "prompts.txt").write_text("a\u2028b\nc\u0085d\n", encoding="utf-8")
    assert read_prompts(tmp_path / "prompts.txt") == ["a\u2028b", "c\u0085d"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("horse\ncaf\xe9\n".encode("latin-1"), "text in UTF-8, got the byte 0xe9 in line 2"),
        (b"a\r\nb\r\n\x00c", r"text in UTF-8, got the character U\+0000 in line 3"),
        ("a\nb".encode("utf-16-le"), r"text in UTF-8, got the character U\+0000 in line 1"),
        (b"\x89PNG\r\n\x1a\n", "text in UTF-8, got the byte 0x89 in line 1"),
        (codecs.BOM_UTF16_LE + b"a\0\n", "text in UTF-16-LE, got the byte 0x0a in line 1"),
        (b"a\n\x1b[31mred", r"got the character U\+001B in line 2"),
        (b"\n \r\n", "prompts must hold a prompt a line, got none"),
    ],
)
def test_what_is_no_text_is_refused(content, message, tmp_path):
    (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_prompts(tmp_path / "prompts.txt")
    assert "prompts.txt" in str(error.value)


def test_what_is_no_file_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="must be a file, got a folder"):
        read_text(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"gone\.txt"):
        read_text(tmp_path / "gone.txt")
    monkeypatch.setattr("visual_ar.text_file.MOST_BYTES", 3)
    (tmp_path / "long.txt").write_bytes(b"long")
    with pytest.raises(ValueError, match=r"long\.txt must be text of at most 3 bytes"):
        read_text(tmp_path / "long.txt")
    assert MOST_BYTES > 10**7


def test_a_shell_may_hand_over_the_output_of_a_command():
    read, write = os.pipe()
    os.write(write, b"horse\n")
    os.close(write)
    assert read_prompts(type(bundled()["emoji"])(f"/dev/fd/{read}")) == ["horse"]
    os.close(read)


@pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16"])
def test_recipes_cards_and_prompts_of_models_too(coding, tmp_path, tiny_text_pipeline):
    recipe = bundled()["emoji_tokenizer"]
    windows = recipe.read_text(encoding="utf-8").replace("\n", "\r\n")
    (tmp_path / "mine.toml").write_bytes(windows.encode(coding))
    assert load_recipe(tmp_path / "mine.toml") == load_recipe(recipe)
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "README.md").write_bytes("---\r\nlicense: mit\r\n---\r\n# mine".encode(coding))
    assert card(str(tmp_path)) == "# mine"
    (tmp_path / "prompts.txt").write_bytes(WRITTEN["Windows"])
    assert known_subjects(tiny_text_pipeline, str(tmp_path)) == LINES
