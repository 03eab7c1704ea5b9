"""What the hub tells of a repository is looked at before anything is downloaded."""

from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from visual_ar import hub
from visual_ar.cli.main import app
from visual_ar.hub import Hub, download


def repository(monkeypatch, sizes):
    """Makes the hub tell of a repository with these files; returns what is downloaded."""
    asked, taken = [], []

    def told(name, **options):
        asked.append(options)
        files = [SimpleNamespace(rfilename=file, size=size) for file, size in sizes.items()]
        return SimpleNamespace(siblings=files)

    monkeypatch.setattr(hub, "model_info", told)
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **_: taken.append(name) or "here")
    return asked, taken


def test_a_model_of_a_usual_size_is_downloaded(monkeypatch):
    sizes = {"model_index.json": 500, "model/weights.safetensors": 10**9, "old.ckpt": 10**12}
    asked, taken = repository(monkeypatch, sizes)  # the pickle is never downloaded
    assert str(download("a/b", "spring", Hub(token="t"))) == "here"
    assert taken == ["a/b"]
    assert asked[0]["revision"] == "spring" and asked[0]["token"] == "t"
    assert asked[0]["files_metadata"] is True


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"model_index.json": 1, "w.safetensors": 65 * 10**9}, "2 files and 65.0 GB"),
        ({f"{n}.json": 1 for n in range(1500)} | {"config.json": 1}, "1501 files and 0.0 GB"),
        ({"README.md": 1, "w.safetensors": 5}, "with model_index.json, got 'a/b' without it"),
        ({}, "with model_index.json, got 'a/b' without it"),
    ],
)
def test_what_is_no_model_or_far_too_large_is_left_where_it_is(monkeypatch, sizes, message):
    _, taken = repository(monkeypatch, sizes)
    with pytest.raises(ValueError, match=message):
        download("a/b", None, Hub())
    assert taken == []


class NoNetwork(Exception):
    """As HTTP libraries raise it: no `OSError`."""


def unreachable(name, **options):
    raise NoNetwork("[Errno -2] Name or service not known")


def test_a_hub_that_cannot_be_reached_is_a_sentence(monkeypatch, folder):
    repository(monkeypatch, {})
    monkeypatch.setattr(hub, "model_info", unreachable)
    assert str(download("a/b", None, Hub())) == "here"  # the cache has it
    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    for name in ("a/b", "a/b.c-d_e"):
        with pytest.raises(OSError, match=f"got '{name}': .* Name or service not known"):
            download(name, None, Hub())
    told = CliRunner().invoke(app, ["generate", "x", "-m", "a/b"])
    assert told.exit_code == 1 and told.stderr.startswith("Error: model must be ")


def test_nobody_is_asked_offline(monkeypatch):
    asked, taken = repository(monkeypatch, {})
    download("a/b", None, Hub(offline=True))
    assert (asked, taken) == ([], ["a/b"])
