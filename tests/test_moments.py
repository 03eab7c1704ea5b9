"""Statistics of features in files: read where they fit, and never unpickled."""

import pickle

import numpy as np
import pytest
import torch
from tiny_features import TINY, Set, against, measure, network, pictures
from torch_fidelity import calculate_metrics

from visual_ar.evaluation import networks
from visual_ar.evaluation.moments import read_moments
from visual_ar.evaluation.pictures import of_array, open_pictures


def test_statistics_stand_in_for_the_reference(tmp_path):
    samples, reference = pictures(60), pictures(70, seed=1)
    expected = measure(samples, reference)
    measure(reference, samples, statistics=tmp_path / "ours.npz")
    moments = read_moments(tmp_path / "ours.npz", network())
    result = against(samples, moments, network())
    assert result["results"] == pytest.approx(expected["results"], rel=1e-9)
    digest = result["inputs"]["moments"]["sha256"]
    assert result["protocol"]["reference_sha256"] == {"moments": digest}
    with pytest.raises(ValueError, match="kid and pr need pictures as reference, got none"):
        against(samples, moments, network(), ["kid"])
    with pytest.raises(ValueError, match="reference must be given as pictures or as moments"):
        against(samples, None, network())


def test_pictures_beside_statistics_serve_precision_and_recall(tmp_path):
    """ADM's file for ImageNet has moments of all pictures, and ten thousand of the pictures."""
    samples, reference = pictures(60), pictures(70, seed=1)
    measure(reference, samples, statistics=tmp_path / "ours.npz")
    moments = read_moments(tmp_path / "ours.npz", network())
    part = of_array(reference[:30], "part")
    both = against(samples, moments, network(), ["fid", "pr"], part)["results"]
    assert both["FID-60"] == measure(samples, reference)["results"]["FID-60"]
    expected = measure(samples, reference[:30], figures=["pr"])["results"]
    assert both["precision-60"] == expected["precision-60"]
    assert both["recall-60"] == expected["recall-60"]


def test_statistics_of_another_network_are_refused(tmp_path):
    measure(pictures(20), pictures(20), statistics=tmp_path / "tiny.npz")
    other = network(name="another")
    with pytest.raises(ValueError, match=r"must be of network 'another' .* got 'tiny-features'"):
        read_moments(tmp_path / "tiny.npz", other)
    np.savez(tmp_path / "adm.npz", mu=np.zeros(6), sigma=np.eye(6), arr_0=np.zeros(3))
    with pytest.raises(ValueError, match=r"must be of network 'tiny-features' .*'inception-v3"):
        read_moments(tmp_path / "adm.npz", network())
    np.savez(tmp_path / "adm.npz", mu=np.zeros(2048), sigma=np.eye(2048, dtype=np.float32))
    with pytest.raises(ValueError, match=r"mu \[6\] and sigma \[6, 6\], got \[\[2048\]"):
        read_moments(tmp_path / "adm.npz", network(name=networks.INCEPTION))


def test_adm_s_and_torch_fidelity_s_statistics_are_read(tiny_extractor, tmp_path):
    samples, reference = pictures(40), pictures(50, seed=1)
    options = {"feature_extractor": TINY, "fid": True, "cuda": False, "verbose": False}
    options |= {"cache_root": str(tmp_path), "input1_cache_name": "mine-1"}
    options |= {"save_cpu_ram": True, "cache": True}
    expected = calculate_metrics(input1=Set(reference), input2=Set(samples), **options)
    moments = read_moments(tmp_path / f"mine-1-{TINY}-stat-fid-features.pt", network())
    result = against(samples, moments, network())
    value = expected["frechet_inception_distance"]
    assert result["results"]["FID-40"] == pytest.approx(value, rel=1e-4)
    adm = network(name=networks.INCEPTION)
    np.savez(tmp_path / "adm.npz", mu=moments.mu, sigma=moments.sigma, arr_0=reference)
    read = read_moments(tmp_path / "adm.npz", adm)
    result = against(samples, read, adm)
    assert result["results"]["FID-40"] == pytest.approx(value, rel=1e-4)
    with pytest.raises(ValueError, match=r"must be called NAME-another-stat-fid-features\.pt"):
        read_moments(tmp_path / f"mine-1-{TINY}-stat-fid-features.pt", network(name="another"))


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickled_objects_are_refused_and_never_unpickled(tmp_path):
    bomb = np.array([Bomb(tmp_path / "exploded")], dtype=object)
    for names in (["mu", "sigma"], ["arr_0"]):
        path = tmp_path / "bomb.npz"
        np.savez(path, **dict.fromkeys(names, bomb))
        with pytest.raises(ValueError, match="got pickled objects, which are never unpickled"):
            if names == ["arr_0"]:
                open_pictures(path)
            else:
                read_moments(path, network())
    path = tmp_path / f"bomb-{TINY}-stat-fid-features.pt"
    torch.save({"mu": Bomb(tmp_path / "exploded"), "sigma": 1}, path)
    with pytest.raises(ValueError, match="must be arrays of numbers"):
        read_moments(path, network())
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "exploded"), protocol=2))
    with pytest.raises(ValueError, match="must be arrays of numbers"):
        read_moments(path, network())
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"mu": np.zeros(6)}, "must hold mu and sigma"),
        ({"mu": np.full(6, np.nan), "sigma": np.eye(6)}, "must be finite"),
        ({"mu": np.zeros(6), "sigma": np.triu(np.ones((6, 6)))}, "must be a covariance"),
        ({"mu": np.zeros(6), "sigma": -np.eye(6)}, "must be a covariance"),
    ],
)
def test_damaged_statistics_are_refused(tmp_path, content, message):
    np.savez(tmp_path / "some.npz", **content)
    with pytest.raises(ValueError, match=message):
        read_moments(tmp_path / "some.npz", network(name=networks.INCEPTION))


def test_files_that_are_no_statistics_are_refused(tmp_path):
    (tmp_path / "text.npz").write_text("not a zip")
    with pytest.raises(ValueError, match="must be an npz file"):
        read_moments(tmp_path / "text.npz", network())
    (tmp_path / "text.json").write_text("{}")
    with pytest.raises(ValueError, match="must be an npz or pt file"):
        read_moments(tmp_path / "text.json", network())
    with pytest.raises(FileNotFoundError, match="must be an existing file"):
        read_moments(tmp_path / "none.npz", network())
