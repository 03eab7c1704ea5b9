"""What goes into a step of training: pictures, prompts, losses and the optimiser's direction."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import save_squares

from visual_ar.data.dataset import load
from visual_ar.text_encoder import TextEncoder
from visual_ar.training.generator import balance
from visual_ar.training.losses import TokenizerLoss
from visual_ar.training.muon import orthogonal
from visual_ar.training.pixels import shifted, to_float, to_uint8
from visual_ar.training.recipe import Optimiser, ReconstructionLoss
from visual_ar.training.subjects import TextConditions


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder of 60 coloured squares, named like emoji."""
    return save_squares(tmp_path_factory.mktemp("data") / "emoji")


def test_late_losses_come_late_and_train_their_discriminator() -> None:
    torch.manual_seed(0)
    options = ReconstructionLoss(
        likelihood=0.1,
        likelihood_start=0.2,
        perceptual=0.1,
        perceptual_start=0.5,
        adversarial=0.1,
        adversarial_start=0.8,
        discriminator_channels=4,
    )
    loss = TokenizerLoss(options, Optimiser(learning_rate=1e-2), torch.device("cpu"))
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    weight = torch.ones(3, 1, 1, requires_grad=True)
    seen = []
    for progress in (0.0, 0.3, 0.6, 0.9):
        terms = loss.tokenizer(pixels, pixels * 0.5 * weight, progress, weight)
        assert all(bool(value.isfinite()) for value in terms.values())
        seen.append(set(terms) - {"l1", "l2"})
    assert seen == [
        set(),
        {"likelihood"},
        {"likelihood", "perceptual"},
        {"likelihood", "perceptual", "adversarial"},
    ]
    assert loss.discriminator_step(pixels, pixels * 0.5, 0.7, 1e-2) == {}
    losses = [
        float(loss.discriminator_step(pixels, pixels * 0.5, 0.9, 1e-2)["discriminator"])
        for _ in range(20)
    ]
    assert losses[-1] < losses[0]


def test_prompts_are_sometimes_replaced_by_an_alias(data: Path) -> None:
    conditions = TextConditions(load(data), alias=0.5)
    indices = torch.full((200,), 1)
    encoder = TextEncoder(words=conditions.words(indices), dim=8, length=6, depth=1, heads=2).eval()
    draw = torch.Generator().manual_seed(0)
    features = conditions.vary(indices, encoder, draw).given
    prompt, _ = encoder.encode(["thing 0, dark skin tone"])
    alias, _ = encoder.encode(["alias 0, dark skin tone"])
    plain = (features - prompt).abs().amax(dim=(1, 2)) < 1e-5
    other = (features - alias).abs().amax(dim=(1, 2)) < 1e-5
    assert bool((plain ^ other).all())
    assert 70 < int(other.sum()) < 130


def test_groups_are_balanced() -> None:
    weights = balance(["a", "b", "b", "b", "b"], 0.5)
    assert torch.allclose(weights, torch.tensor([1, 0.5, 0.5, 0.5, 0.5], dtype=torch.float64))


def test_pictures_shift_with_their_border_and_survive_the_round_trip() -> None:
    pictures = torch.randint(256, (50, 6, 7, 3), dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(pictures)), pictures.permute(0, 3, 1, 2))
    moved = shifted(pictures, 2, torch.Generator().manual_seed(0))
    for before, after in zip(pictures, moved, strict=True):
        padded = np.pad(before.numpy(), ((2, 2), (2, 2), (0, 0)), mode="edge")
        crops = [padded[y : y + 6, x : x + 7] for y in range(5) for x in range(5)]
        assert any(np.array_equal(after.numpy(), crop) for crop in crops)
    assert not torch.equal(moved, pictures)


def test_muon_steps_are_orthogonal() -> None:
    draw = torch.Generator().manual_seed(0)
    for shape in ((24, 8), (8, 24), (16, 16)):
        singular = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=draw)))
        assert float(singular.min()) > 0.3
        assert float(singular.max()) < 1.5
