"""Ten things a newcomer looks for: README names the file, and the file is about it."""

import re

import pytest
from source_tree import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = README[README.index("## Architecture") : README.index("## Sources")]
ROWS = dict(re.findall(r"^\| ([^|`]+) \| (`[^|]+) \|$", ARCHITECTURE, re.MULTILINE))

GUESSES = {  # what is looked for -> where it is, and words that only the right file has
    "LANTERN's rule": ("accel/rules/lantern.py", "LANTERN (Jang et al. 2025"),
    "GSD's rule": ("accel/rules/gsd.py", "Grouped Speculative Decoding (So et al. 2025"),
    "the mask of a tree of drafts": ("accel/drafts/tree.py", "def visible("),
    "captured graphs": ("accel/loop/graphs.py", "Passes as captured CUDA graphs"),
    "top-p": ("visual_ar/sampling.py", "top-p"),
    "the mask of NAR": ("visual_ar/models/nar.py", "masked_fill_(~visible"),
    "where to add a family that draws clips": (
        "visual_ar/models/token_model.py",
        "class TokenModel(",
    ),
    "where to add a diffusion head": ("visual_ar/tokens/kind.py", "class TokenKind("),
    "where to add a one-pass model": ("accel/loop/contract.py", "class Decoding("),
    "where to add a one-dimensional tokenizer": (
        "tokenizers/visual_tokenizer.py",
        "one-dimensional code",
    ),
}


@pytest.mark.parametrize("guess", GUESSES)
def test_the_readme_names_the_file(guess):
    file, words = GUESSES[guess]
    assert f"`{file}`" in ROWS[guess]
    assert words in (ROOT / file).read_text(encoding="utf-8")
    for folder in re.findall(r"`([^`]+/)`", ROWS[guess]):
        assert file.startswith(folder) or (ROOT / folder).is_dir()


def test_every_guess_is_answered():
    looked_for = ARCHITECTURE[ARCHITECTURE.index("### Where to look") :]
    rows = re.findall(r"^\| ([^|`]+) \| `", looked_for[: looked_for.index("\n## ")], re.MULTILINE)
    assert set(rows) == set(GUESSES)


def test_every_path_exists():
    paths = re.findall(r"`((?:visual_ar|accel|tokenizers|app|tests|\.ci)/[^`<> ]*)", ARCHITECTURE)
    assert len(paths) > 30
    missing = {path for path in paths if not (ROOT / path).exists()}
    assert missing <= {".ci/long"}
