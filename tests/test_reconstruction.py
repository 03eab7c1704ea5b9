"""Reconstruction figures: scikit-image's PSNR and SSIM, torch-fidelity's LPIPS, codes by hand."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch_fidelity.sample_similarity_lpips import SampleSimilarityLPIPS
from torchvision.models import vgg16
from typer.testing import CliRunner

from visual_ar.cli.main import app
from visual_ar.evaluation import lpips as lpips_module
from visual_ar.evaluation.code_counts import CodeCounts, bits
from visual_ar.evaluation.distortion import psnr, ssim
from visual_ar.evaluation.fid import fid
from visual_ar.evaluation.lpips import CHANNELS, Lpips
from visual_ar.evaluation.networks import Network
from visual_ar.evaluation.pictures import Crop, of_array, open_pictures
from visual_ar.evaluation.reconstruction import reconstruction, rounded
from visual_ar.tokenizers.binary import BinaryTokenizer


def coarse(pictures):
    return torch.nn.functional.adaptive_avg_pool2d(pictures.float(), 2).flatten(1)[:, :5], None


NETWORK = Network("coarse", "pooled", 5, "0" * 64, "none", coarse, False)


def pictures(count, size=16, seed=0):
    generator = np.random.default_rng(seed)
    smooth = generator.uniform(0, 255, (count, 4, 4, 3)).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(p).resize((size, size))) for p in smooth])


def tensor(some):
    return torch.from_numpy(np.ascontiguousarray(some)).permute(0, 3, 1, 2)


def noisy(some, seed=1):
    noise = np.random.default_rng(seed).normal(0, 12, some.shape)
    return np.clip(some + noise, 0, 255).astype(np.uint8)


def test_psnr_and_ssim_are_those_of_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    first = pictures(4, size=19)[:, :, :15]
    second = noisy(first)
    ratio, similarity = psnr(tensor(second), tensor(first)), ssim(tensor(second), tensor(first))
    for index, (a, b) in enumerate(zip(first, second, strict=True)):
        expected = metrics.peak_signal_noise_ratio(a, b, data_range=255)
        assert float(ratio[index]) == pytest.approx(expected, rel=1e-12)
        unit = [part.astype(np.float64) / 255 for part in (a, b)]
        expected = metrics.structural_similarity(*unit, data_range=1, channel_axis=2)
        assert float(similarity[index]) == pytest.approx(expected, rel=1e-9)


def test_equal_pictures_are_perfect():
    same = tensor(pictures(2))
    assert psnr(same, same).isinf().all()
    assert ssim(same, same).tolist() == pytest.approx([1, 1])


def test_wrong_pictures_are_refused():
    same = tensor(pictures(2))
    with pytest.raises(ValueError, match=r"originals must be uint8 \[B, 3, H, W\], got torch.fl"):
        psnr(same, same.float())
    with pytest.raises(ValueError, match="must have one shape"):
        ssim(same, same[:1])
    with pytest.raises(ValueError, match="must be at least 7 pixels"):
        ssim(same[:, :, :6], same[:, :, :6])


def test_pixels_are_rounded_and_clamped():
    given = torch.tensor([-1.2, -1.0, 0.0, 0.0039, 1.0, 7.0]).reshape(1, 1, 1, 6)
    assert rounded(given).flatten().tolist() == [0, 0, 128, 128, 255, 255]


@pytest.fixture
def perceptual(tmp_path, monkeypatch):
    """Lpips with random weights, and torch-fidelity's with the same."""
    torch.manual_seed(0)
    with torch.device("meta"):
        layers = vgg16().features
    network = SimpleNamespace(features=layers.to_empty(device="cpu"))
    for parameter in layers.parameters():
        torch.nn.init.normal_(parameter, std=0.04)
    stored = {f"features.{key}": value for key, value in layers.state_dict().items()}
    torch.save(stored, tmp_path / "vgg16.pth")
    linear = {f"lin{n}.model.1.weight": torch.rand(1, c, 1, 1) for n, c in enumerate(CHANNELS)}
    torch.save(linear, tmp_path / "linear.pth")
    monkeypatch.setattr(lpips_module, "VGG_SHA256", "")
    module = "torch_fidelity.sample_similarity_lpips"
    monkeypatch.setattr(f"{module}.load_state_dict_from_url", lambda *a, **k: linear)
    monkeypatch.setattr(f"{module}.torchvision_load_pretrained_vgg16", lambda: network)
    ours = Lpips(tmp_path / "vgg16.pth", tmp_path / "linear.pth")
    return ours, SampleSimilarityLPIPS("theirs"), tmp_path


def test_lpips_is_torch_fidelity_s(perceptual, monkeypatch):
    ours, theirs, folder = perceptual
    first = pictures(2, size=32)
    pair = tensor(noisy(first)), tensor(first)
    with torch.no_grad():
        expected = theirs(*pair).flatten()
        assert torch.allclose(ours(*pair), expected, rtol=1e-4)
        assert ours(pair[0], pair[0]).tolist() == [0, 0]
    assert float(expected.min()) > 0
    monkeypatch.undo()
    with pytest.raises(ValueError, match="must have sha256 397923af"):
        Lpips(folder / "vgg16.pth", folder / "linear.pth")


def test_other_channel_weights_are_refused(perceptual):
    _, _, folder = perceptual
    torch.save({"lin0.model.1.weight": torch.rand(1, 3, 1, 1)}, folder / "other.pth")
    with pytest.raises(ValueError, match=r"must be \[1, 64, 1, 1\] for VGG-16, got \[1, 3, 1, 1\]"):
        Lpips(folder / "vgg16.pth", folder / "other.pth")


def test_codes_are_counted():
    counts = CodeCounts(10)
    counts.add(torch.tensor([[0, 300, 0], [5, 5, 0]]))
    counts.add(torch.tensor([[5, 0, 0]]))
    share = np.array([5, 3, 1]) / 9
    assert counts.used() == 3 and counts.usage() == pytest.approx(0.3)
    assert counts.perplexity() == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    assert bits(torch.zeros(2, 3, dtype=torch.int64), 1024) == 30


def test_bits_are_counted_as_codes():
    counts = CodeCounts(2**70)
    tokens = torch.zeros(1, 4, 70, dtype=torch.bool)
    tokens[0, 1, 69] = tokens[0, 2, 0] = True
    counts.add(tokens)
    assert counts.used() == 3
    assert counts.usage() == pytest.approx(3 / 2**70)
    assert counts.perplexity() == pytest.approx(2**1.5)
    assert bits(tokens, 2**70) == 280


def test_every_figure_is_that_of_the_decoded_pictures(tiny_pipeline):
    tokenizer, some = tiny_pipeline.image_tokenizer, pictures(10)
    result = reconstruction(
        tokenizer, "tiny", of_array(some, "some"), NETWORK, allow_small=True, batch=3
    )
    with torch.no_grad():
        tokens = tokenizer.encode(tensor(some).float() / 127.5 - 1)
        made = rounded(tokenizer.decode(tokens, (8, 8)))
    found = result["results"]
    assert found["PSNR"] == pytest.approx(float(psnr(made, tensor(some)).mean()), rel=1e-3)
    assert found["SSIM"] == pytest.approx(float(ssim(made, tensor(some)).mean()), rel=1e-3)
    assert found["codes used"] == len(tokens.unique())
    assert found["bits of a picture"] == 64 * 4 and found["tokens of a picture"] == 64
    distance = fid(
        of_array(made.permute(0, 2, 3, 1).numpy(), ""),
        of_array(some, ""),
        NETWORK,
        allow_small=True,
    )
    [value] = distance["results"].values()
    name = "Fréchet distance of reconstructions (coarse, 10 pictures)"
    assert found[name] == pytest.approx(value, rel=1e-3)
    assert json.loads(json.dumps(result)) == result
    again = reconstruction(tokenizer, "tiny", of_array(some, "some"), batch=10)
    assert again["results"]["PSNR"] == pytest.approx(found["PSNR"], rel=1e-3)
    assert name not in again["results"]


def test_a_perfect_tokenizer_has_no_loss(tiny_pipeline, monkeypatch):
    tokenizer, some = tiny_pipeline.image_tokenizer, pictures(2)
    pixels = tensor(some).float() / 127.5 - 1
    monkeypatch.setattr(tokenizer, "decode", lambda tokens, grid: pixels)
    found = reconstruction(tokenizer, "tiny", of_array(some, ""))["results"]
    assert found["PSNR"] is None and found["pictures without any loss"] == 2
    assert found["SSIM"] == pytest.approx(1)


def test_binary_tokenizers_are_measured_too():
    torch.manual_seed(0)
    tokenizer = BinaryTokenizer(
        channels=8, channel_multipliers=(1, 2), residual_blocks=1, bits=6, norm_groups=4
    ).eval()
    found = reconstruction(tokenizer, "bits", of_array(pictures(3), ""))["results"]
    assert found["bits of a picture"] == 64 * 6
    assert 1 <= found["codes used"] <= 64 and found["codebook perplexity"] <= found["codes used"]


def test_wrong_requests_are_refused(tiny_pipeline):
    tokenizer = tiny_pipeline.image_tokenizer
    with pytest.raises(ValueError, match="pictures must be at least 50000"):
        reconstruction(tokenizer, "tiny", of_array(pictures(3), ""), NETWORK)
    with pytest.raises(ValueError, match="pictures must be at least 2 for rFID, got 1"):
        reconstruction(tokenizer, "", of_array(pictures(1), ""), NETWORK, allow_small=True)
    with pytest.raises(ValueError, match="height must be a positive multiple of 2, got 15"):
        reconstruction(tokenizer, "tiny", of_array(pictures(3, size=15), ""))
    with pytest.raises(ValueError, match="must be at least 7 pixels, got 6x6"):
        reconstruction(tokenizer, "tiny", of_array(pictures(3, size=6), ""))


def test_the_command_measures_a_pipeline_and_a_bare_tokenizer(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path / "tiny")
    np.savez(tmp_path / "some.npz", arr_0=pictures(3, size=20))
    documents = []
    for folder in (tmp_path / "tiny", tmp_path / "tiny" / "image_tokenizer"):
        words = ["--model", str(folder), "--pictures", str(tmp_path / "some.npz"), "--crop", "16"]
        words += ["--device", "cpu", "--json"]
        result = CliRunner().invoke(app, ["evaluate", "reconstruction", *words])
        assert result.exit_code == 0, result.output
        documents.append(json.loads(result.stdout))
    assert documents[0]["results"] == documents[1]["results"]
    hashes = [document["inputs"]["tokenizer"]["weights"] for document in documents]
    assert hashes[0] == hashes[1] and len(hashes[0]) == 16
    crop = {"short_side": 16, "resample": "bicubic", "crop": "centre"}
    assert documents[0]["protocol"]["crop"] == crop
    cropped = open_pictures(tmp_path / "some.npz", crop=Crop(16))
    direct = reconstruction(tiny_pipeline.image_tokenizer, "tiny", cropped)
    assert direct["protocol"] == documents[0]["protocol"]
    lonely = [*words, "--lpips-vgg", str(tmp_path / "vgg.pth")]
    result = CliRunner().invoke(app, ["evaluate", "reconstruction", *lonely])
    assert result.exit_code == 1 and "lpips_vgg must be given together" in result.stderr
