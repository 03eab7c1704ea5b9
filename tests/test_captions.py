"""The start of a text encoder: what it learns, and that it goes on from what is on disk."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from visual_ar.data.dataset import Dataset
from visual_ar.text_encoder import TextEncoder
from visual_ar.tokenizers.vq import VQTokenizer
from visual_ar.training.captions import CaptionModel, start_captions
from visual_ar.training.recipe import Captions
from visual_ar.training.subjects import TextConditions

COLOURS, THINGS = ["red", "green", "blue", "white"], ["heart", "square", "flag", "star"]
OPTIONS = Captions(steps=120, batch=16, learning_rate=3e-3)


@pytest.fixture
def conditions() -> TextConditions:
    return _conditions()


def _conditions(alias: float = 0.0, aliases: tuple[str, ...] = ()) -> TextConditions:
    prompts = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]
    items = [{"prompt": prompt, "aliases": [*aliases], "group": prompt} for prompt in prompts]
    pictures = np.zeros((16, 8, 8, 3), np.uint8)
    return TextConditions(Dataset("emoji", pictures, ["train"] * 16, items), alias)


def _model(conditions: TextConditions, seed: int = 0) -> CaptionModel:
    torch.manual_seed(0)
    tokenizer = VQTokenizer(
        channels=4,
        channel_multipliers=(1, 2),
        residual_blocks=1,
        latent_channels=8,
        codebook_size=16,
        codebook_dim=4,
        norm_groups=2,
    )
    # The upper half of a picture is its colour, the lower half the thing.
    halves = torch.tensor([[colour, 4 + thing] for colour in range(4) for thing in range(4)])
    codes = halves.repeat_interleave(8, dim=1).to(torch.uint16)
    words = conditions.words(torch.arange(16))
    torch.manual_seed(seed)
    encoder = TextEncoder(words=words, dim=32, depth=1, heads=2, feature_dim=16, length=4)
    vectors = tokenizer.quantize.codebook().detach()
    return CaptionModel(
        encoder, lambda indices: vectors[codes[indices].long()].flatten(1), torch.arange(16)
    ).train()


def _start(
    model: CaptionModel,
    conditions: TextConditions,
    output: Path,
    options: Captions = OPTIONS,
    seed: int = 0,
) -> Path:
    """Returns the file with the result."""
    everything = torch.arange(16)
    weights = torch.ones(16, dtype=torch.float64)
    before = set(output.glob("*.safetensors"))
    start_captions(model, conditions, everything, weights, options, seed, output)
    after = set(output.glob("*.safetensors"))
    return max(after - before or after, key=lambda path: path.stat().st_mtime_ns)


@torch.no_grad()
def _error(model: CaptionModel, conditions: TextConditions, shift: int = 0) -> float:
    """Unexplained share of the latents when every caption is given for the picture `shift` on."""
    everything = torch.arange(16)
    given = conditions.describe(everything, model.encoder.eval()).given
    return float(model.loss(given, everything.roll(shift)))


def test_an_encoder_that_knows_nothing_explains_nothing(conditions: TextConditions) -> None:
    model = _model(conditions)
    torch.nn.init.zeros_(model.head.weight)
    assert _error(model, conditions) == pytest.approx(1.0, abs=1e-5)


def test_captions_learn_to_foretell_their_own_pictures(
    conditions: TextConditions, tmp_path: Path
) -> None:
    model = _model(conditions)
    before = _error(model, conditions)
    _start(model, conditions, tmp_path)
    assert _error(model, conditions) < 0.1 < 0.8 < before
    assert _error(model, conditions, shift=5) > 1.0


def test_a_second_start_reads_the_first_one(conditions: TextConditions, tmp_path: Path) -> None:
    model, again = _model(conditions), _model(conditions, seed=1)
    written = _start(model, conditions, tmp_path).stat().st_mtime_ns
    assert _start(again, conditions, tmp_path).stat().st_mtime_ns == written
    ours, theirs = again.state_dict(), model.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert not list(tmp_path.glob("*.part"))


def test_what_was_started_otherwise_is_not_read(conditions: TextConditions, tmp_path: Path) -> None:
    short = replace(OPTIONS, steps=2)
    files = [
        _start(_model(conditions), conditions, tmp_path, short),
        _start(_model(conditions), conditions, tmp_path, replace(short, learning_rate=1e-3)),
        _start(_model(conditions), conditions, tmp_path, short, seed=1),
        _start(_model(conditions), _conditions(alias=0.5), tmp_path, short),
        _start(_model(conditions), _conditions(aliases=("heart",)), tmp_path, short),
    ]
    other = _model(conditions)
    latents = other.latents
    other.latents = lambda indices: latents(indices) + 1
    files.append(_start(other, conditions, tmp_path, short))
    assert len(set(files)) == len(files)
    # What only the generator's training reads may differ.
    again = _start(_model(conditions), conditions, tmp_path, replace(short, weight=9.0, rate=9.0))
    assert again in files
