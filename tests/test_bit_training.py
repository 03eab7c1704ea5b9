"""Training on tokens of bits: tiny runs from recipe to pipeline, resumed, and what they refuse."""

import csv
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_training import TIMES

from visual_ar import loading
from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.data.dataset import Dataset, digest, save
from visual_ar.models.bitwise import BitLlamaGen
from visual_ar.pipeline import VisualARPipeline
from visual_ar.tokenizers.binary import BinaryTokenizer
from visual_ar.training import load_recipe, run
from visual_ar.training.binary_tokenizer import start_decoder
from visual_ar.training.drawn_bits import DrawnBits, cached_bits, flip
from visual_ar.training.drawn_codes import mislead
from visual_ar.training.pixels import to_float
from visual_ar.training.progress import Log
from visual_ar.training.recipe import GeneratorRecipe, Logging, Recipe, TokenizerRecipe
from visual_ar.training.recipe_file import bundled

WEIGHTS = "diffusion_pytorch_model.safetensors"
TOKENIZER = """
name = "bits"
kind = "tokenizer"
dataset = "emoji"
steps = 4
batch = 4
shift = 1
[model]
channels = 4
channel_multipliers = [1, 2, 2]
residual_blocks = 1
bits = 6
bit_groups = 2
norm_groups = 2
[binary]
quantizer = "bsq"
inverse_temperature = 10.0
ramp = 0.5
[optimiser]
learning_rate = 2e-3
warmup = 2
[logging]
row = 1
measure = 2
checkpoint = 2
"""
GENERATOR = """
name = "generator"
kind = "generator"
dataset = "emoji"
tokenizer = "bits"
head = "bits"
steps = 4
batch = 4
held_out = "tone-test"
crops = 2
shift = 1
wrong = 0.4
flip = 0.2
[model]
dim = 16
n_layer = 1
n_head = 2
dropout = 0.1
[text]
dim = 16
depth = 1
heads = 2
feature_dim = 16
length = 5
[captions]
steps = 2
batch = 4
[optimiser]
learning_rate = 2e-3
muon = true
[logging]
row = 1
measure = 2
checkpoint = 2
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder of 24 coloured squares, named like emoji."""
    draw = np.random.default_rng(0)
    pictures = np.full((24, 16, 16, 3), 255, np.uint8)
    for picture in pictures:
        left, top = draw.integers(0, 8, 2)
        picture[top : top + 8, left : left + 8] = draw.integers(0, 256, 3)
    splits = ["train"] * 16 + ["tokenizer-test"] * 4 + ["tone-test"] * 4
    items: list[dict[str, Any]] = [
        {"name": f"thing {number}", "tone": None, "prompt": f"thing {number}"}
        | {"aliases": [], "group": f"thing {number}", "split": split}
        for number, split in enumerate(splits)
    ]
    manifest = {
        "name": "emoji",
        "shape": list(pictures.shape),
        "pictures_sha256": digest(pictures),
        "counts": {split: splits.count(split) for split in dict.fromkeys(splits)},
    }
    folder = tmp_path_factory.mktemp("data") / "emoji"
    save(Dataset("emoji", pictures, splits, items, manifest=manifest), folder)
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run of the tokenizer."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "bits.toml").write_text(TOKENIZER)
    run(folder / "bits.toml", data, folder / "bits")
    return folder


def _rows(output: Path) -> list[dict[str, str]]:
    with (output / "log.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def _interrupted(recipe: Path, data: Path, output: Path, step: int) -> None:
    """Runs a recipe until it logs this step, as if stopped by hand, and then to its end."""
    write = Log.write

    def stop(self: Log, row: dict[str, Any]) -> None:
        if row["step"] == step:
            raise KeyboardInterrupt
        write(self, row)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Log, "write", stop)
        run(recipe, data, output)
    run(recipe, data, output)


def _same(ours: Path, theirs: Path) -> bool:
    pairs = [load_file(path / "diffusion_pytorch_model.safetensors") for path in (ours, theirs)]
    return all(torch.equal(pairs[0][key], value) for key, value in pairs[1].items())


def test_a_resumed_tokenizer_equals_an_uninterrupted_one(data: Path, trained: Path) -> None:
    _interrupted(trained / "bits.toml", data, trained / "parts", 3)
    assert _rows(trained / "parts") == _rows(trained / "bits")
    assert _same(trained / "parts" / "model", trained / "bits" / "model")
    rows = _rows(trained / "bits")
    for name in ("entropy", "sample_entropy", "batch_entropy", "bit_entropy_min"):
        assert all(np.isfinite(float(row[name])) for row in rows), name
    assert 0 <= float(rows[-1]["held_out_bit_entropy_min"]) <= 1
    tokenizer = BinaryTokenizer.from_pretrained(trained / "bits" / "model")
    assert tokenizer.bits == 6 and tokenizer.downsample == 4
    metrics = run(trained / "bits.toml", data, trained / "bits")["quality"]
    assert len(metrics["train_bit_entropies"]) == 6


def test_every_quantizer_trains_and_the_entropy_weight_falls(data: Path, tmp_path: Path) -> None:
    losses = {}
    for name in ("lfq", "grouped-lfq", "bsq"):
        recipe = tmp_path / f"{name}.toml"
        recipe.write_text(TOKENIZER.replace('"bsq"', f'"{name}"').replace("steps = 4", "steps = 2"))
        run(recipe, data, tmp_path / name)
        losses[name] = [float(row["entropy"]) for row in _rows(tmp_path / name)]
    assert len({row[0] for row in losses.values()}) == 3
    assert all(np.isfinite(row).all() for row in losses.values())


@pytest.mark.parametrize("head", ["bits", "subcodes"])
def test_a_resumed_generator_equals_an_uninterrupted_one(
    data: Path, trained: Path, head: str
) -> None:
    text = GENERATOR.replace('head = "bits"', f'head = "{head}"')
    recipe = trained / f"{head}.toml"
    recipe.write_text(text if head == "bits" else text.replace("n_head", "subcodes = 2\nn_head"))
    whole, parts = trained / f"{head}-whole", trained / f"{head}-parts"
    run(recipe, data, whole)
    _interrupted(recipe, data, parts, 3)
    assert _rows(parts) == _rows(whole)
    assert _same(parts / "pipeline" / "model", whole / "pipeline" / "model")
    assert (whole / "samples.png").stat().st_size > 0

    pipe = VisualARPipeline.from_pretrained(whole / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.model, BitLlamaGen) and pipe.model.bits == 6
    assert isinstance(pipe.scheduler, SpeculativeJacobiDecoding)
    pipe.scheduler = SpeculativeJacobiDecoding(window=4)
    output = pipe("thing 1", seeds=1)
    assert output.tokens.shape == (1, 16, 6) and output.tokens.dtype == torch.bool
    assert output.images[0].size == (16, 16)


def _shortened(name: str) -> Recipe:
    """A bundled recipe for two steps of a tiny model; all else is as bundled."""
    recipe = load_recipe(name)
    short = {"steps": 2, "minutes": None, "batch": 4, "logging": Logging(1, 2, 2)}
    if isinstance(recipe, TokenizerRecipe):
        sizes = recipe.model | {"channels": 4, "norm_groups": 2}
        if "codebook_size" in sizes:
            sizes["codebook_size"] = 16
        return replace(recipe, **short, model=sizes)
    assert isinstance(recipe, GeneratorRecipe)
    return replace(
        recipe,
        **short,
        model=recipe.model | {"dim": 16, "n_layer": 1, "n_head": 2},
        text={"dim": 16, "depth": 1, "heads": 2, "feature_dim": 16, "length": 5},
        captions=replace(recipe.captions, steps=2, batch=4),
    )


def test_every_bundled_recipe_of_bits_trains_and_draws(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [name for name in bundled() if "binary" in name or "wide" in name]
    assert len(names) == 7
    names = ["emoji_tokenizer", "emoji", *names]
    module = import_module("visual_ar.training.run")
    monkeypatch.setattr(module, "load_recipe", lambda name, _: _shortened(name))
    for name in names:
        quality = run(name, data, tmp_path / name)["quality"]
        assert all(np.isfinite(value).all() for value in quality.values()), name
        if name.endswith("decoder"):
            ours, theirs = (
                load_file(tmp_path / run / "model" / WEIGHTS)
                for run in (name, name.replace("decoder", "tokenizer"))
            )
            alike = {k: k in theirs and torch.equal(v, theirs[k]) for k, v in ours.items()}
            assert all(alike[key] == key.startswith("encoder.") for key in alike), name
        if name.endswith(("tokenizer", "decoder")) or name == "emoji":
            continue
        text = "text_encoder/diffusion_pytorch_model.safetensors"
        ours, trunks = (load_file(tmp_path / run / "pipeline" / text) for run in (name, "emoji"))
        assert all(torch.equal(value, trunks[key]) for key, value in ours.items())
        if name.endswith("subcodes"):
            ours, trunks = (
                load_file(tmp_path / run / "pipeline" / "model" / WEIGHTS)
                for run in (name, name.removesuffix("_subcodes"))
            )
            kept = [key for key in trunks if key != "output.weight"]
            assert all(torch.equal(ours[key], trunks[key]) for key in kept)
            base = name.removesuffix("_subcodes")
            held = {base.replace("_", "-"): tmp_path / base / "pipeline"}
            with monkeypatch.context() as patch:
                patch.setattr(loading, "bundled", lambda held=held: held)
                delta = VisualARPipeline.from_pretrained(tmp_path / name / "delta")
            theirs = delta.model.state_dict()
            assert all(torch.equal(value.float(), theirs[key]) for key, value in ours.items())
            added = load_file(tmp_path / name / "delta" / "model" / WEIGHTS)
            assert all(key.startswith("output.") for key in added)
        pipe = VisualARPipeline.from_pretrained(tmp_path / name / "pipeline")
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = SpeculativeJacobiDecoding(window=2)
        shape = (1, 4, 48) if "wide" in name else (1, 16, 16)
        assert pipe("thing 1", seeds=1).tokens.shape == shape


def test_what_does_not_fit_is_refused(data: Path, trained: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    for text, message in (
        (TOKENIZER.replace('"bsq"', '"sign"'), "quantizer must be one of lfq, .* got 'sign'"),
        (GENERATOR.replace('head = "bits"', 'head = "bit"'), "head must be one of categorical"),
        (GENERATOR.replace("flip = 0.2", "soft = 0.1"), "soft must be 0 with head 'bits'"),
        (
            TOKENIZER.split("[binary]")[0].replace("shift = 1", 'encoder = "bits"')
            + "[optimiser]\nlearning_rate = 1e-3",
            "encoder needs a tokenizer of bits",
        ),
        (GENERATOR.replace("flip = 0.2", "head_alone = true"), "head_alone needs a trunk"),
        (
            GENERATOR.replace('head = "bits"', 'head = "subcodes"\ntrunk = "generator"').replace(
                "flip = 0.2", "head_alone = true"
            ),
            "tokenizer must be left out with head_alone, .* got 'bits'",
        ),
        (GENERATOR.replace('head = "bits"', ""), "flip must be 0 with head 'categorical'"),
        (
            GENERATOR.replace('head = "bits"', 'head = "bits"\nfamily = "nar"'),
            "head must be 'categorical' with family 'nar', got 'bits'",
        ),
        (
            GENERATOR.replace('head = "bits"', 'head = "bits"\nfamily = "gpt"'),
            "family must be one of llamagen, nar, got 'gpt'",
        ),
    ):
        recipe.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_recipe(recipe)
    plain = GENERATOR.replace('head = "bits"', "").replace("flip = 0.2", "")
    (trained / "plain.toml").write_text(plain)
    with pytest.raises(ValueError, match="tokenizer must be a VQTokenizer for head 'categorical'"):
        run(trained / "plain.toml", data, trained / "plain")
    kept = TOKENIZER.replace("shift = 1", 'shift = 1\nencoder = "bits"')
    recipe.write_text(kept)
    with pytest.raises(FileNotFoundError, match="encoder must be trained first: recipe bits"):
        run(recipe, data, tmp_path / "out")
    recipe.write_text(kept.replace("channels = 4", "channels = 8"))
    with pytest.raises(ValueError, match=r"model must be that of bits, unlike in encoder\.conv_in"):
        run(recipe, data, trained / "wider")
    recipe.write_text(TOKENIZER.replace("bit_groups = 2", "codebook_size = 2"))
    with pytest.raises(ValueError, match="unknown key 'codebook_size'"):
        run(recipe, data, tmp_path / "out")


def test_a_decoder_does_not_go_on_beside_another_encoder(data: Path, trained: Path) -> None:
    recipe, output = trained / "kept.toml", trained / "kept"
    recipe.write_text(TOKENIZER.replace("shift = 1", 'shift = 1\nencoder = "bits"'))
    run(recipe, data, output)
    run(recipe, data, output)
    weights = trained / "bits" / "model" / WEIGHTS
    kept = load_file(weights)
    other = kept | {"encoder.conv_in.weight": kept["encoder.conv_in.weight"] + 1}
    save_file(other, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="trained with other weights of the encoder"):
        run(recipe, data, output)
    save_file(kept, weights, metadata={"format": "pt"})


def test_a_deeper_decoder_starts_where_the_trained_one_ended(trained: Path) -> None:
    shallow = BinaryTokenizer.from_pretrained(trained / "bits" / "model")
    sizes = {"channels": 4, "channel_multipliers": (1, 2, 2), "bits": 6, "norm_groups": 2}
    deep = BinaryTokenizer(**sizes, residual_blocks=1, decoder_blocks=3)
    start_decoder(deep, shallow.state_dict())
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    tokens = shallow.encode(pixels)
    assert torch.equal(deep.encode(pixels), tokens)
    assert torch.equal(deep.decode(tokens, (4, 4)), shallow.decode(tokens, (4, 4)))
    assert len(deep.state_dict()) > len(shallow.state_dict())
    deep.reconstruct(deep.lookup(tokens, (4, 4))).square().sum().backward()
    fresh = deep.decoder.mid_block[2].conv2.weight.grad
    assert fresh is not None and fresh.abs().max() > 0
    for other in (
        BinaryTokenizer(**sizes, residual_blocks=2),
        BinaryTokenizer(**sizes | {"bits": 5}, residual_blocks=1),
    ):
        with pytest.raises(ValueError, match=r"unlike in encoder\."):
            start_decoder(other, shallow.state_dict())
    with pytest.raises(ValueError, match=r"unlike in decoder\."):
        start_decoder(BinaryTokenizer(**sizes, residual_blocks=1), deep.state_dict())
    with pytest.raises(ValueError, match="decoder_blocks must be at least 1, got 0"):
        BinaryTokenizer(**sizes, residual_blocks=1, decoder_blocks=0)


def test_bits_are_computed_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    tokenizer = BinaryTokenizer(
        channels=4, channel_multipliers=(1, 2), residual_blocks=1, bits=5, norm_groups=2
    ).eval()
    pictures = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8)
    cpu = torch.device("cpu")
    first = cached_bits(tokenizer, pictures, 2, 1, 0, tmp_path, cpu)
    assert first.tokens.shape == (2, 3, 16, 5)
    assert torch.equal(first.tokens[0], tokenizer.encode(to_float(pictures)))
    assert set(first.latents(torch.arange(3)).unique().tolist()) == {-1.0, 1.0}
    monkeypatch.setattr(BinaryTokenizer, "encode", None)
    again = cached_bits(tokenizer, pictures, 2, 1, 0, tmp_path, cpu)
    assert torch.equal(first.tokens, again.tokens)


def test_bits_are_flipped_in_the_inputs_alone() -> None:
    labels = torch.rand(400, 16, 8, generator=torch.Generator().manual_seed(1)) < 0.5
    drawn = flip(DrawnBits(labels, labels), 0.2, torch.Generator().manual_seed(0))
    assert drawn.labels is labels
    share = (drawn.inputs != labels).float().mean((1, 2))
    assert abs(float(share.mean()) - 0.1) < 0.02 and 0.15 < float(share.max()) < 0.3
    misled = mislead(DrawnBits(labels, labels), 0.4, torch.Generator().manual_seed(0))
    wrong = (misled.inputs != labels).any(-1)
    assert torch.equal(misled.inputs[wrong], labels.roll(-1, 0)[wrong])
    assert 0.05 < float(wrong.float().mean()) < 0.15
