"""The bundled models: they load, draw what is asked, and fast methods draw from the same law."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from visual_ar import assets
from visual_ar.accel.draft_head import DraftHeadDecoding
from visual_ar.accel.exact_match import ExactMatchJacobiDecoding
from visual_ar.accel.hybrid import HybridDecoding
from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.accel.sequential import SequentialDecoding
from visual_ar.assets import bundled
from visual_ar.evaluation.frechet import permutation_test
from visual_ar.loading import fingerprint
from visual_ar.pipeline import VisualARPipeline

PICTURES = 100
BINARY = ("emoji-binary", "emoji-binary-subcodes", "emoji-wide", "emoji-wide-subcodes")


@pytest.fixture(scope="module")
def emoji():
    pipe = VisualARPipeline.from_pretrained("emoji")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def cifar10():
    pipe = VisualARPipeline.from_pretrained("cifar10")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def sequential_features(cifar10):
    return features(cifar10, SequentialDecoding(), seed=0)


def features(pipe, method, seed, **options):
    """What two-sample tests compare: mean code of each quarter of a picture, fp32 [M, 4 C]."""
    pipe.scheduler = method
    classes = [k % 10 for k in range(PICTURES)]
    latents = pipe(class_labels=classes, seeds=seed, output_type="latent", **options).images
    quarters = torch.nn.functional.adaptive_avg_pool2d(latents, 2)
    return quarters.flatten(1)


def test_the_models_have_cards():
    models = bundled()
    assert set(models) >= {"emoji", "emoji-nar", "emoji-sjd2", "cifar10", *BINARY}
    for folder in models.values():
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert all(word in card for word in ("licence", "seed", "Measured quality", "minutes"))


def test_assets_are_small():
    sizes = [path.stat().st_size for path in Path(*assets.__path__).rglob("*") if path.is_file()]
    assert max(sizes) <= 16e6 and sum(sizes) <= 32e6


def test_weights_are_in_8_bits_and_none_are_stored_twice():
    found = {}
    for folder in bundled().values():
        for path in folder.rglob("*.safetensors"):
            stored = load_file(path).values()
            assert any(value.dtype == torch.int8 for value in stored)
            assert found.setdefault(fingerprint(path.parent), path) == path


def test_emoji_draws_from_words_it_knows_and_does_not_know(emoji):
    emoji.scheduler = SpeculativeJacobiDecoding(window=16)
    output = emoji(["strawberry", "strawbery cake"], seeds=1, output_type="np")
    assert output.images.shape == (2, 64, 64, 3)
    assert output.images.std(axis=(1, 2, 3)).min() > 0.05
    assert sum(output.stats.passes) < 2 * 256


def test_exact_match_draws_the_sequential_emoji(emoji):
    emoji.scheduler = SequentialDecoding()
    expected = emoji("red heart", seeds=5, output_type="tokens")
    emoji.scheduler = ExactMatchJacobiDecoding(window=16)
    output = emoji("red heart", seeds=5, output_type="tokens")
    assert torch.equal(output.tokens, expected.tokens)
    assert sum(output.stats.passes) < 0.8 * sum(expected.stats.passes)


def test_the_draft_head_of_emoji_drafts_for_it(emoji):
    emoji.scheduler = DraftHeadDecoding(window=5)
    stats = emoji(["red heart", "grinning face"], seeds=0, output_type="tokens").stats
    assert stats.lossless and stats.mean_accepted_length > 1.15


def test_the_denoiser_of_emoji_draws_in_fewer_passes_from_the_law_of_emoji(emoji):
    denoiser = VisualARPipeline.from_pretrained("emoji-sjd2")
    denoiser.set_progress_bar_config(disable=True)
    method, denoiser.scheduler = denoiser.scheduler, SequentialDecoding()
    emoji.scheduler = SequentialDecoding()
    asked = {"prompt": "red heart", "seeds": 0, "output_type": "tokens"}
    assert torch.equal(denoiser(**asked).tokens, emoji(**asked).tokens)
    denoiser.scheduler = method
    stats = denoiser(**asked).stats
    assert stats.lossless and sum(stats.passes) < 0.7 * 256


def test_the_parallel_emoji_model_draws_in_31_passes_and_drafts_for_the_other(emoji):
    parallel = VisualARPipeline.from_pretrained("emoji-nar")
    parallel.set_progress_bar_config(disable=True)
    asked = {"prompt": ["red heart", "grinning face"], "seeds": 0, "output_type": "pt"}
    output = parallel(**asked)
    assert output.stats.passes == [31, 31]
    red, yellow = output.images.mean(dim=(2, 3))
    assert red[0] > red[1:].max() + 0.2  # on a white ground
    assert yellow[:2].min() > yellow[2] + 0.1
    hybrid = copy.copy(emoji)
    hybrid.draft_with(parallel)
    hybrid.scheduler = HybridDecoding(window=16)
    stats = hybrid(**asked).stats
    assert stats.lossless and max(stats.passes) < 0.9 * 256
    hybrid.draft_with(None)


@pytest.mark.parametrize(
    "name",
    [
        "emoji-binary",
        pytest.param("emoji-binary-subcodes", marks=pytest.mark.long),
        "emoji-wide",
        "emoji-wide-subcodes",
    ],
)
def test_the_models_of_bits_draw_in_half_the_passes(name):
    pipe = VisualARPipeline.from_pretrained(name)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.image_tokenizer.bits == (48 if "wide" in name else 16)
    length = 64 if "wide" in name else 256
    asked = {"prompt": ["red heart", "grinning face"], "seeds": 0, "output_type": "pt"}
    pipe.scheduler = SpeculativeJacobiDecoding(window=16)
    output = pipe(**asked)
    red, yellow = output.images.mean(dim=(2, 3))
    assert red[0] > red[1:].max() + 0.2  # on a white ground
    assert yellow[:2].min() > yellow[2] + 0.1
    stats = pipe(**asked, temperature=1.0, guidance_scale=1.0).stats
    assert stats.lossless and sum(stats.passes) < 2 * length / 2


@pytest.mark.parametrize("name", ["emoji-binary", "emoji-wide"])
def test_a_head_of_sub_codes_is_all_that_its_model_adds(name):
    base, model = (
        VisualARPipeline.from_pretrained(of).model.state_dict() for of in (name, f"{name}-subcodes")
    )
    assert all(
        torch.equal(value, model[key]) for key, value in base.items() if key != "output.weight"
    )


@pytest.mark.parametrize("name", ["emoji-wide-subcodes", "emoji-sjd2"])
def test_a_model_of_parts_keeps_its_name_and_is_quiet(name, capfd):
    pipe = VisualARPipeline.from_pretrained(name, dtype=torch.float16)
    parts = (pipe, pipe.model, pipe.scheduler)
    assert {part.config["_name_or_path"] for part in parts} == {name}
    assert pipe.model.dtype == torch.float16
    printed = capfd.readouterr().err
    assert "accelerate" not in printed and "float32" not in printed


@pytest.mark.long
@pytest.mark.parametrize("rule", ["exact", "bitwise"])
def test_exact_rules_of_bits_cannot_be_told_from_sequential(rule):
    pipe = VisualARPipeline.from_pretrained("emoji-wide")
    pipe.set_progress_bar_config(disable=True)
    asked = {"prompt": ["red heart"] * 60, "output_type": "latent", "temperature": 1.0}
    found = []
    for method in (SequentialDecoding(), SpeculativeJacobiDecoding(window=16, rule=rule)):
        pipe.scheduler = method
        latents = pipe(**asked, seeds=60 * len(found)).images
        found.append(torch.nn.functional.adaptive_avg_pool2d(latents, 2).flatten(1))
    assert permutation_test(*found, "energy", 400, seed=0) > 0.01


@pytest.mark.parametrize(
    "coupling",
    [
        "maximal",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("independent", "gumbel")),
    ],
)
def test_jacobi_cannot_be_told_from_sequential(cifar10, sequential_features, coupling):
    method = SpeculativeJacobiDecoding(window=16, coupling=coupling)
    drawn = features(cifar10, method, seed=PICTURES)
    assert permutation_test(sequential_features, drawn, "energy", 400, seed=0) > 0.01


@pytest.mark.long
def test_the_two_sample_test_notices_another_law(cifar10, sequential_features):
    """Its power at this number of pictures: a much cooler law of the same model is told apart."""
    method = SpeculativeJacobiDecoding(window=16)
    drawn = features(cifar10, method, seed=PICTURES, temperature=0.4)
    assert permutation_test(sequential_features, drawn, "energy", 400, seed=0) < 0.01
