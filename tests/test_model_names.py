"""A name, a path, or both: which model is meant, wherever a person names one."""

import json
import shutil
from pathlib import Path

import pytest

from visual_ar import assets, folder_schema, loading
from visual_ar.cli import info
from visual_ar.pipeline import VisualARPipeline


@pytest.fixture
def known(tiny_pipeline, tmp_path, monkeypatch):
    """Where the bundled model "tiny" lies; the working directory is an empty one beside it."""
    folder = tmp_path / "bundled" / "tiny"
    tiny_pipeline.save_pretrained(folder)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(loading, "bundled", lambda: {"tiny": folder})
    monkeypatch.setattr(assets, "bundled", lambda: {"tiny": folder})
    return folder


PATHS = [Path("tiny"), Path("./tiny"), "./tiny", "tiny/", "../here/tiny"]


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_a_path_is_always_a_folder(known, path):
    with pytest.raises(FileNotFoundError, match="model must be bundled"):
        loading.find(path)
    Path("tiny").mkdir()
    assert loading.find(path).resolve() == Path("tiny").resolve()
    assert loading.find("tiny") == known  # a folder that is no model is in nobody's way


def test_a_name_of_both_is_refused(known):
    shutil.copytree(known, "tiny")
    message = r"model must say which is meant, got 'tiny'.* write '\./tiny' for the folder"
    for ask in (loading.find, info.model):
        with pytest.raises(ValueError, match=message):
            ask("tiny")
    for path in PATHS:
        assert loading.find(path).resolve() == Path("tiny").resolve()
    assert loading.find(str(known)) == known
    assert info.model("./tiny")
    assert type(VisualARPipeline.from_pretrained(Path("tiny"))) is VisualARPipeline


def test_the_folder_of_the_bundled_models_itself_is_no_second_one(known, monkeypatch):
    monkeypatch.chdir(known.parent)
    assert loading.find("tiny") == known


def test_home_is_understood(known, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "bundled"))
    assert loading.find("~/tiny") == known


@pytest.mark.parametrize("name", ["", "  ", None, 3, b"tiny"])
def test_what_is_no_name_is_refused(known, name):
    with pytest.raises(ValueError, match="model must be a name or a path, got "):
        loading.find(name)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        (Path("tiny"), "a path is always a folder, give the name of a bundled model as text"),
        ("tinny", "did you mean 'tiny'"),
        ("https://huggingface.co/owner/a.b-c/tree/main", "did you mean 'owner/a.b-c'"),
        ("hf.co", "on the Hugging Face hub, got 'hf.co'$"),
    ],
)
def test_what_is_not_found_is_near_to_something(known, name, hint):
    with pytest.raises(FileNotFoundError, match=hint):
        loading.find(name)


def test_what_a_folder_names_is_never_a_path(known, tiny_pipeline):
    for name in ("here", "./here", str(Path.cwd()), "../here", "~/here"):
        with pytest.raises(FileNotFoundError, match="model must be bundled"):
            loading.find_named(name)
    shutil.copytree(known, "tiny")  # in the way of a person, but not of a folder from elsewhere
    assert loading.find_named("tiny") == known
    tiny_pipeline.save_pretrained("sharing")
    index = json.loads(Path("sharing/model_index.json").read_text())
    weights = loading.fingerprint(known / "image_tokenizer")
    index[folder_schema.SHARED] = {"image_tokenizer": ["tiny", weights]}
    Path("sharing/model_index.json").write_text(json.dumps(index))
    shutil.rmtree("sharing/image_tokenizer")
    VisualARPipeline.from_pretrained("./sharing")
