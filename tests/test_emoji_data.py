"""Emoji are prepared offline from small tarballs: pictures, prompts, splits, what is kept."""

import json
import shutil

import numpy as np
import pytest
from local_npm import png, tarball
from typer.testing import CliRunner

from visual_ar.cli.main import app
from visual_ar.data import emoji as emoji_module
from visual_ar.data import load, prepare
from visual_ar.data.dataset import digest

TONES = ["1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"]


def entry(number, name, short, category="Objects", subcategory="tool", tones=(), order=None):
    return {
        "name": name,
        "unified": f"1F{number:03X}",
        "image": f"1f{number:03x}.png",
        "short_names": short,
        "category": category,
        "subcategory": subcategory,
        "sort_order": number if order is None else order,
        "skin_variations": {
            tone: {
                "unified": f"1F{number:03X}-{tone}",
                "image": f"1f{number:03x}-{tone.lower()}.png",
            }
            for tone in tones
        },
    }


@pytest.fixture
def emoji(registry, monkeypatch):
    """Publishes a small emoji package of 10 persons in 5 tones, a couple, and 40 objects."""
    couple = [f"{a}-{b}" for a in TONES for b in TONES]
    people = {"category": "People & Body", "subcategory": "person-role"}
    entries = [
        entry(n, f"PERSON {n}", [f"person_no_{n}"], tones=TONES, **people) for n in range(10)
    ]
    entries.append(entry(10, "COUPLE", ["couple"], tones=couple, **people))
    entries += [entry(n, f"OLD THING {n}", [f"thing-{n}", "stuff"]) for n in range(11, 51)]
    entries[-1]["sort_order"] = -1  # the last of the file is the first of the charts
    names = {chr(0x1F000 + n): {"name": f"Person {n}"} for n in range(10)}
    names[chr(0x1F00A) + "\ufe0f"] = {"name": "Couple: “two”"}
    names.update({chr(0x1F000 + n): {"name": f"Thing {n}"} for n in range(11, 51)})
    rng = np.random.default_rng(0)
    images = {}
    for one in entries:
        for image in [one["image"], *(v["image"] for v in one["skin_variations"].values())]:
            images[image] = np.kron(
                rng.integers(0, 256, (4, 4, 4), dtype=np.uint8), np.ones((16, 16, 1), np.uint8)
            )
    members = {f"img/google/64/{name}": png(pixels) for name, pixels in images.items()}
    members["emoji.json"] = json.dumps(entries).encode()
    members["img/google/sheets/64.png"] = b"not read"
    monkeypatch.setattr(emoji_module, "PICTURES", registry("pictures", tarball(members)))
    table = tarball({"data-by-emoji.json": json.dumps(names).encode()})
    monkeypatch.setattr(emoji_module, "NAMES", registry("names", table))
    monkeypatch.setattr(emoji_module, "COUNT", len(images))
    monkeypatch.setattr(emoji_module, "TOKENIZER_TEST", 20)
    monkeypatch.setattr(emoji_module, "TONE_TEST", 8)
    ordered = [images[image] for image in images]
    ordered = [ordered[-1], *ordered[:-1]]
    alpha = [rgba[..., 3:] / 255 for rgba in ordered]
    white = [
        np.round(rgba[..., :3] * a + 255 * (1 - a)) for rgba, a in zip(ordered, alpha, strict=True)
    ]
    pixels = np.stack(white).astype(np.uint8)
    monkeypatch.setattr(emoji_module, "SHA256", digest(pixels))
    return pixels


def test_emoji_pictures_lie_on_white_in_chart_order(emoji, tmp_path):
    output = tmp_path / "out"
    assert prepare("emoji", output) == output
    data = load(output)
    assert np.array_equal(data.pictures, emoji)
    assert data.prompts[0] == "thing 50"
    assert {path.name for path in output.iterdir()} == {
        "pictures.npy",
        "items.json",
        "manifest.json",
    }


def test_emoji_prompts_and_groups(emoji, tmp_path):
    data = load(prepare("emoji", tmp_path / "out"))
    assert len(set(data.prompts)) == len(data) == 10 * 6 + 26 + 40
    assert len(set(data.groups)) == 51
    item = data.items[data.prompts.index("person 3, medium-dark skin tone")]
    assert item["name"] == item["group"] == "person 3"
    assert item["tone"] == "medium-dark skin tone"
    assert item["aliases"] == ["person no 3, medium-dark skin tone"]
    thing = data.items[data.prompts.index("thing 20")]
    assert thing["tone"] is None
    assert thing["aliases"] == ["old thing 20"]  # "thing 20" is the name, "stuff" is ambiguous
    couples = [item for item in data.items if item["group"] == 'couple: "two"']
    tones = {item["tone"] for item in couples}
    assert "dark skin tone" in tones
    assert "dark skin tone, light skin tone" in tones
    assert len(tones) == 26


def test_emoji_splits_are_disjoint_reproducible_and_hold_out_persons_once(
    emoji, tmp_path, monkeypatch
):
    first = load(prepare("emoji", tmp_path / "first"))
    second = load(prepare("emoji", tmp_path / "second"))
    assert first.splits == second.splits
    assert len(first.indices("tokenizer-test")) == 20
    held_out = first.indices("tone-test")
    assert len({first.groups[index] for index in held_out}) == len(held_out) == 8
    assert all(first.items[index]["tone"] is not None for index in held_out)
    assert len(first.indices("train", "tokenizer-test")) == len(first) - 8
    assert first.manifest["counts"] == {"train": 98, "tokenizer-test": 20, "tone-test": 8}
    monkeypatch.setattr(emoji_module, "SPLIT_SEED", "another")
    assert load(prepare("emoji", tmp_path / "third")).splits != first.splits
    with pytest.raises(ValueError, match=r"split must be one of .*got 'test'"):
        first.indices("test")


def test_objects_are_never_held_out_as_persons(emoji, tmp_path, monkeypatch):
    monkeypatch.setattr(emoji_module, "TONE_TEST", 100)
    data = load(prepare("emoji", tmp_path / "out"))
    assert len(data.indices("tone-test")) == 11  # every person once, the couple too


def test_emoji_pack_is_lossless(emoji, tmp_path):
    pack = prepare("emoji", tmp_path / "out", pack=True)
    folder, packed = load(tmp_path / "out"), load(pack)
    assert pack.name == "emoji-pack.zip"
    assert np.array_equal(packed.pictures, folder.pictures)
    assert packed.items == folder.items
    assert packed.manifest["pack"] == {"format": "WebP, lossless"}


def test_an_intact_dataset_is_kept_and_a_damaged_one_prepared_again(emoji, registry, tmp_path):
    output = tmp_path / "out"
    prepare("emoji", output)
    written = (output / "pictures.npy").stat().st_mtime_ns
    shutil.rmtree(tmp_path / "downloads")
    prepare("emoji", output)
    assert (output / "pictures.npy").stat().st_mtime_ns == written
    assert len(registry.requests()) == 2
    content = bytearray((output / "pictures.npy").read_bytes())
    content[-1] ^= 255
    (output / "pictures.npy").write_bytes(content)
    prepare("emoji", output)
    assert np.array_equal(load(output).pictures, emoji)


def test_pixels_that_differ_from_the_pinned_hash_are_refused(emoji, tmp_path, monkeypatch):
    monkeypatch.setattr(emoji_module, "SHA256", "0" * 64)
    with pytest.raises(ValueError, match="pixels must have sha256 000"):
        prepare("emoji", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_wrong_count_is_refused(emoji, tmp_path, monkeypatch):
    monkeypatch.setattr(emoji_module, "COUNT", 127)
    with pytest.raises(ValueError, match="must hold 127 named pictures, got 126 names"):
        prepare("emoji", tmp_path / "out")


def test_a_download_is_resumed_from_what_is_there(emoji, registry, tmp_path):
    names = registry.folder / "names@1.0.0.tgz"
    content = names.read_bytes()
    names.unlink()
    with pytest.raises(OSError, match=r"to download names@1\.0\.0, got ENOTFOUND"):
        prepare("emoji", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    names.write_bytes(content)
    prepare("emoji", tmp_path / "out")
    assert registry.requests() == ["pictures@1.0.0", "names@1.0.0", "names@1.0.0"]


def test_output_that_holds_something_else(emoji, tmp_path):
    prepare("emoji", tmp_path / "out")
    with pytest.raises(ValueError, match="must be empty or hold cifar10, found emoji"):
        prepare("cifar10", tmp_path / "out")
    assert np.array_equal(load(tmp_path / "out").pictures, emoji)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="output must be a folder, got the file"):
        prepare("emoji", tmp_path / "file")


def test_the_command_prepares_a_set_and_says_what_it_wrote(emoji, tmp_path):
    folder = tmp_path / "prepared"
    result = CliRunner().invoke(app, ["data", "emoji", "--output", str(folder), "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["name"] == "emoji" and said["path"] == str(folder) and said["bytes"] > 10_000
    assert (load(folder).pictures == emoji).all()
    again = CliRunner().invoke(app, ["data", "emoji", "--output", str(folder), "--pack"])
    assert again.exit_code == 0 and again.stdout.startswith("emoji: ")
