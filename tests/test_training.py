"""Training: recipes, resumption, the code book's upkeep, and tiny runs from recipe to model."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from visual_ar.accel.hybrid import HybridDecoding
from visual_ar.accel.sequential import SequentialDecoding
from visual_ar.data.dataset import Dataset, digest, load, save
from visual_ar.models.bitwise import BitLlamaGen, SubcodeLlamaGen
from visual_ar.models.llamagen import LlamaGen
from visual_ar.models.nar import NAR
from visual_ar.pipeline import VisualARPipeline
from visual_ar.text_encoder import TextEncoder
from visual_ar.tokenizers.quantizers import VectorQuantizer
from visual_ar.tokenizers.vq import VQTokenizer
from visual_ar.training import bundled, load_recipe, run
from visual_ar.training.codebook import CodebookUpkeep
from visual_ar.training.drawn_codes import Drawn, cached_codes, mislead
from visual_ar.training.generator import balance
from visual_ar.training.head_kinds import place_codes
from visual_ar.training.losses import TokenizerLoss
from visual_ar.training.muon import orthogonal
from visual_ar.training.pixels import shifted, to_float, to_uint8
from visual_ar.training.progress import Log, load_checkpoint, save_checkpoint
from visual_ar.training.recipe import Codebook, Optimiser, ReconstructionLoss
from visual_ar.training.subjects import TextConditions
from visual_ar.training.trunk import find_trunk, start_from

TOKENIZER = """
name = "emoji_tokenizer"
kind = "tokenizer"
dataset = "emoji"
steps = 8
batch = 4
shift = 1

[model]
channels = 4
channel_multipliers = [1, 2, 2]
residual_blocks = 1
latent_channels = 8
codebook_size = 16
codebook_dim = 4
norm_groups = 2

[optimiser]
learning_rate = 2e-3
warmup = 2

[codebook]
start = 0.3

[logging]
row = 1
measure = 4
checkpoint = 4
"""
GENERATOR = """
name = "emoji"
kind = "generator"
dataset = "emoji"
tokenizer = "emoji_tokenizer"
steps = 6
batch = 4
splits = ["train", "tokenizer-test"]
held_out = "tone-test"
alias = 0.5
balance = 0.5
crops = 2
shift = 1
soft = 0.05
wrong = 0.4

[model]
dim = 16
n_layer = 2
n_head = 2
dropout = 0.1

[text]
dim = 16
depth = 1
heads = 2
feature_dim = 16
length = 5

[captions]
steps = 20
batch = 8

[sampling]
guidance_scale = 3.0

[optimiser]
learning_rate = 2e-3
muon = true

[logging]
row = 1
measure = 3
checkpoint = 3
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder of 60 coloured squares, named like emoji."""
    draw = np.random.default_rng(0)
    pictures = np.full((60, 16, 16, 3), 255, np.uint8)
    items: list[dict[str, Any]] = []
    for number, picture in enumerate(pictures):
        left, top = draw.integers(0, 8, 2)
        picture[top : top + 8, left : left + 8] = draw.integers(0, 256, 3)
        name, tone = f"thing {number // 2}", "dark skin tone" if number % 2 else None
        prompt = name if tone is None else f"{name}, {tone}"
        alias = prompt.replace("thing", "alias")
        items.append(
            {"name": name, "tone": tone, "prompt": prompt, "aliases": [alias]}
            | {"group": name, "split": "train"}
        )
    splits = ["train"] * 44 + ["tokenizer-test"] * 8 + ["tone-test"] * 8
    for item, split in zip(items, splits, strict=True):
        item["split"] = split
    folder = tmp_path_factory.mktemp("data") / "emoji"
    save(_dataset(pictures, splits, items), folder)
    return folder


def _dataset(pictures: np.ndarray, splits: list[str], items: list[dict[str, Any]]) -> Dataset:
    manifest = {
        "name": "emoji",
        "shape": list(pictures.shape),
        "pictures_sha256": digest(pictures),
        "counts": {split: splits.count(split) for split in dict.fromkeys(splits)},
    }
    return Dataset("emoji", pictures, splits, items, manifest=manifest)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.toml"
    path.write_text(TOKENIZER)
    return path


def _rows(output: Path) -> list[dict[str, str]]:
    with (output / "log.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def _stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Interrupts a run, as Ctrl-C would, when it logs this step."""
    write = Log.write

    def interrupted(self: Log, row: dict[str, Any]) -> None:
        if row["step"] == step:
            raise KeyboardInterrupt
        write(self, row)

    monkeypatch.setattr(Log, "write", interrupted)


def test_every_bundled_recipe_is_valid() -> None:
    for name, path in bundled().items():
        for device in ("cpu", "cuda"):
            assert load_recipe(path, device).name == name
    sizes = [load_recipe("emoji", device).model for device in ("cpu", "cuda")]
    assert sizes[0]["dim"] < sizes[1]["dim"], "a GPU trains a larger variant"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("steps = 8", "stepz = 8", "unknown key 'stepz'"),
        ("steps = 8", "", "key 'steps' is missing"),
        ("steps = 8", "steps = 8.5", "steps must be int, got 8.5"),
        ("steps = 8", "steps = true", "steps must be int, got True"),
        ("warmup = 2", 'warmup = "two"', "optimiser: warmup must be int, got 'two'"),
        ("start = 0.3", "start = 0.3\nlevel = 1", "codebook: unknown key 'level'"),
        ('kind = "tokenizer"', 'kind = "tokeniser"', "kind must be one of"),
        ("steps = 8", "steps = = 8", "is not a TOML file"),
    ],
)
def test_bad_recipes_are_refused(recipe: Path, before: str, after: str, message: str) -> None:
    recipe.write_text(TOKENIZER.replace(before, after))
    with pytest.raises(ValueError, match=message):
        load_recipe(recipe)


def test_unknown_recipes_and_model_options_are_refused(
    recipe: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"one of emoji_tokenizer, .*, got 'emojis'"):
        load_recipe("emojis")
    recipe.write_text(TOKENIZER.replace("channels = 4", "width = 4", 1))
    with pytest.raises(ValueError, match=r"model: unknown key 'width'"):
        run(recipe, data, tmp_path / "out")
    recipe.write_text(TOKENIZER.replace('dataset = "emoji"', 'dataset = "cifar10"'))
    with pytest.raises(ValueError, match="data must be the dataset cifar10, got emoji"):
        run(recipe, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_gpu_table_replaces_what_stands_above_it(recipe: Path) -> None:
    recipe.write_text(TOKENIZER + "[gpu]\nbatch = 64\n[gpu.model]\nchannels = 32\n")
    on_cpu, on_gpu = load_recipe(recipe, "cpu"), load_recipe(recipe, "cuda:1")
    assert (on_cpu.batch, on_gpu.batch) == (4, 64)
    assert on_gpu.model == on_cpu.model | {"channels": 32}


def test_a_resumed_tokenizer_equals_an_uninterrupted_one(
    recipe: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    metrics = run(recipe, data, whole)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        _stop_at(patch, 6)
        run(recipe, data, parts)
    assert not (parts / "metrics.json").exists()
    run(recipe, data, parts)
    assert _rows(parts) == _rows(whole)
    ours, theirs = (
        load_file(folder / "model" / "diffusion_pytorch_model.safetensors")
        for folder in (parts, whole)
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)

    assert metrics["quality"] == json.loads((whole / "metrics.json").read_text())["quality"]
    assert metrics["steps"] == 8
    assert metrics["recipe"]["batch"] == 4
    assert 0 < metrics["quality"]["train_usage"] <= 1
    assert math.isfinite(metrics["quality"]["held_out_psnr"])
    assert (whole / "samples.png").stat().st_size > 0
    assert isinstance(VQTokenizer.from_pretrained(whole / "model"), VQTokenizer)
    assert not list(whole.glob("*.part"))
    recipe.write_text(TOKENIZER.replace("shift = 1", "shift = 2"))
    with pytest.raises(ValueError, match="checkpoint was trained with shift 1, got 2"):
        run(recipe, data, parts)


def test_a_resumed_generator_equals_an_uninterrupted_one(
    recipe: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(recipe, data, tmp_path / "emoji_tokenizer")
    generator = tmp_path / "emoji.toml"
    generator.write_text(GENERATOR)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    metrics = run(generator, data, whole)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        _stop_at(patch, 5)
        run(generator, data, parts)
    run(generator, data, parts)
    assert _rows(parts) == _rows(whole)
    for folder in ("model", "text_encoder"):
        name = f"pipeline/{folder}/diffusion_pytorch_model.safetensors"
        ours, theirs = (load_file(output / name) for output in (parts, whole))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)

    assert metrics["quality"]["held_out_loss"] < 2 * math.log(16)
    assert (whole / "samples.png").stat().st_size > 0
    pipe = VisualARPipeline.from_pretrained(whole / "pipeline")
    assert pipe.model.vocab_size == 16
    assert pipe.text_encoder.config.length == pipe.model.prefix_length == 5
    assert "alias" in pipe.text_encoder.config.words
    assert pipe.config.guidance_scale == 3.0
    pipe.scheduler = SequentialDecoding()
    assert pipe("alias", seeds=1).images[0].size == (pipe.config.width, pipe.config.height)
    assert (whole / "pipeline" / "model" / "config.json").read_text().count(str(tmp_path)) == 0

    weights = tmp_path / "emoji_tokenizer" / "model" / "diffusion_pytorch_model.safetensors"
    other = load_file(weights)
    other["decoder.conv_out.bias"] += 1
    save_file(other, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="trained with other weights of the tokenizer"):
        run(generator, data, parts)


def test_a_parallel_generator_starts_from_a_next_token_trunk(
    recipe: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(recipe, data, tmp_path / "emoji_tokenizer")
    plain, parallel = tmp_path / "emoji.toml", tmp_path / "emoji_nar.toml"
    plain.write_text(GENERATOR)
    family = 'name = "emoji_nar"\nfamily = "nar"\ntrunk = "emoji"'
    text = GENERATOR.replace('name = "emoji"', family).replace("steps = 6", "steps = 3")
    parallel.write_text(text.replace("n_layer = 2", "n_layer = 1\nffn_dim = 24"))
    monkeypatch.setattr("visual_ar.training.trunk.bundled", dict)
    with pytest.raises(FileNotFoundError, match="trunk must be trained first: recipe emoji"):
        run(parallel, data, tmp_path / "emoji_nar")
    run(plain, data, tmp_path / "emoji")
    metrics = run(parallel, data, tmp_path / "emoji_nar")
    assert metrics["quality"]["held_out_loss"] < 2 * math.log(16)
    assert not list((tmp_path / "emoji_nar").glob("captions*"))
    pipe = VisualARPipeline.from_pretrained(tmp_path / "emoji_nar" / "pipeline")
    assert pipe.model.grid == (4, 4)
    output = pipe("alias", seeds=1)
    assert output.stats.passes == [7]
    trunk = VisualARPipeline.from_pretrained(tmp_path / "emoji" / "pipeline")
    trunk.draft_with(pipe)
    trunk.scheduler = HybridDecoding(window=4)
    assert trunk("alias", seeds=1).images[0].size == output.images[0].size


def test_a_trunk_gives_every_head_its_head_and_leading_parts() -> None:
    torch.manual_seed(0)
    options = {"dim": 16, "n_head": 2, "vocab_size": 8, "grid_size": 2, "num_classes": 3}
    trunk, model = LlamaGen(n_layer=2, **options), NAR(n_layer=1, ffn_dim=24, **options)
    nn.init.normal_(trunk.output.weight)
    nn.init.normal_(trunk.norm.weight)
    start_from(model, trunk, same_tokens=True)
    for head, norm in zip(model.outputs, model.norms, strict=True):
        assert torch.equal(head.weight, trunk.output.weight)
        assert torch.equal(norm.weight, trunk.norm.weight)
    for ours, theirs in zip(model.layers, trunk.layers, strict=True):
        assert torch.equal(ours.attention.wqkv.weight, theirs.attention.wqkv.weight)
        assert torch.equal(ours.feed_forward.w1.weight, theirs.feed_forward.w1.weight[:24])
        assert torch.equal(ours.feed_forward.w2.weight, theirs.feed_forward.w2.weight[:, :24])
    del trunk.norm
    with pytest.raises(ValueError, match=r"trunk must have the parameter norm\.weight"):
        start_from(model, trunk, same_tokens=True)


def test_a_trunk_of_the_same_family_gives_everything() -> None:
    torch.manual_seed(0)
    options = {"dim": 16, "n_head": 2, "vocab_size": 8, "grid_size": 2, "num_classes": 3}
    trunk, model = (NAR(n_layer=1, ffn_dim=24, **options) for _ in range(2))
    for number, head in enumerate(trunk.outputs):
        nn.init.constant_(head.weight, number)
    start_from(model, trunk, same_tokens=True)
    theirs = trunk.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in model.state_dict().items())


def test_a_trunk_is_looked_for_in_its_run_and_then_among_the_bundled(tmp_path: Path) -> None:
    assert find_trunk("emoji_nar", tmp_path).name == "emoji-nar"
    (tmp_path / "emoji_nar" / "pipeline").mkdir(parents=True)
    assert find_trunk("emoji_nar", tmp_path) == tmp_path / "emoji_nar" / "pipeline"
    with pytest.raises(FileNotFoundError, match="must be trained first: recipe cifar11"):
        find_trunk("cifar11", tmp_path)


@pytest.mark.parametrize("family", [BitLlamaGen, SubcodeLlamaGen])
def test_a_trunk_of_other_tokens_gives_all_but_what_knows_them(family) -> None:
    torch.manual_seed(0)
    options = {"dim": 16, "n_head": 2, "n_layer": 2, "grid_size": 2, "num_classes": 3}
    trunk, model = LlamaGen(vocab_size=8, **options), family(bits=8, **options)
    nn.init.normal_(trunk.output.weight)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    start_from(model, trunk, same_tokens=False)
    for key, value in model.state_dict().items():
        of_tokens = key.startswith(("tok_embeddings.", "output."))
        assert torch.equal(value, before[key] if of_tokens else trunk.state_dict()[key]), key


def test_a_generator_needs_its_tokenizer(data: Path, tmp_path: Path) -> None:
    generator = tmp_path / "emoji.toml"
    generator.write_text(GENERATOR)
    with pytest.raises(FileNotFoundError, match="tokenizer must be trained first"):
        run(generator, data, tmp_path / "out")


def test_k_means_finds_the_clusters_and_dead_codes_are_revived() -> None:
    draw = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(
        torch.eye(4).repeat(2, 1) * torch.tensor([[1.0], [-1]]).repeat_interleave(4, 0)
    )
    vectors = centres.repeat(40, 1) + 0.02 * torch.randn(320, 4, generator=draw)
    vectors = torch.nn.functional.normalize(vectors)
    quantizer = VectorQuantizer(8, 4)
    upkeep = CodebookUpkeep(quantizer, Codebook(start=0.0, decay=0.5, dead=0.03))
    upkeep.start(vectors, draw)
    distances = torch.cdist(vectors, quantizer.codebook()).min(dim=1).values
    assert distances.median() < 0.1

    only = vectors[:1].expand(16, 4)  # every vector chooses one code: the others die and come back
    for _ in range(10):
        upkeep.update(only, quantizer.nearest(only))
    assert upkeep.revive(vectors, draw) == 7
    assert upkeep.revive(vectors, draw) == 0
    fresh = quantizer.codebook()
    assert torch.cdist(fresh, vectors).min(dim=1).values.max() < 1e-3


def test_codes_move_to_the_mean_of_their_vectors() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(4, 3)
    upkeep = CodebookUpkeep(quantizer, Codebook(start=0.0, decay=0.9))
    vectors = torch.nn.functional.normalize(torch.randn(200, 3))
    before = (1 - (vectors @ quantizer.codebook().T).max(dim=1).values).mean()
    for _ in range(50):
        upkeep.update(vectors, quantizer.nearest(vectors))
    after = (1 - (vectors @ quantizer.codebook().T).max(dim=1).values).mean()
    assert after < 0.8 * before


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


def test_similar_codes_start_with_similar_embeddings_and_logits() -> None:
    torch.manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(64, 4), dim=-1)
    model = LlamaGen(dim=32, n_layer=1, n_head=2, vocab_size=64, grid_size=2, num_classes=2)
    place_codes(model, vectors)
    for weight in (model.tok_embeddings.weight, model.output.weight):
        ours = torch.nn.functional.normalize(weight.detach(), dim=-1)
        assert (
            torch.corrcoef(
                torch.stack([(ours @ ours.T).flatten(), (vectors @ vectors.T).flatten()])
            )[0, 1]
            > 0.8
        )


def _tokenizer() -> VQTokenizer:
    torch.manual_seed(0)
    return VQTokenizer(
        channels=4,
        channel_multipliers=(1, 2),
        residual_blocks=1,
        latent_channels=8,
        codebook_size=16,
        codebook_dim=4,
        norm_groups=2,
    ).eval()


def test_cells_are_drawn_by_the_chances_of_their_codes(tmp_path: Path) -> None:
    tokenizer, cpu = _tokenizer(), torch.device("cpu")
    pictures = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8)
    hard = cached_codes(tokenizer, pictures, 2, 1, 0.0, 0, tmp_path, cpu)
    soft = cached_codes(tokenizer, pictures, 2, 1, 0.5, 0, tmp_path, cpu)
    assert hard.tokens.shape == (2, 3, 16, 1)
    assert soft.tokens.shape == soft.chances.shape == (2, 3, 16, 8)
    assert torch.equal(soft.nearest, hard.nearest)
    assert torch.equal(hard.nearest.long(), tokenizer.encode(to_float(pictures)))

    where = torch.ones(4000, dtype=torch.int64)
    drawn = soft.draw(where, where, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.labels[0].to(torch.uint16), soft.tokens[1, 1])
    shares = (drawn.inputs[..., None] == drawn.labels).float().mean(0)
    assert torch.allclose(shares, drawn.chances[0], atol=0.04)
    one = hard.draw(where[:1], where[:1], torch.Generator())
    assert torch.equal(one.inputs[0].to(torch.uint16), hard.tokens[1, 1, :, 0])


def test_codes_are_computed_once_for_the_same_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, cpu = _tokenizer(), torch.device("cpu")
    pictures = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8)
    first = cached_codes(tokenizer, pictures, 1, 0, 0.5, 0, tmp_path, cpu)
    with monkeypatch.context() as patch:
        patch.setattr(VQTokenizer, "soft_encode", None)
        again = cached_codes(tokenizer, pictures, 1, 0, 0.5, 0, tmp_path, cpu)
        with pytest.raises(TypeError):
            cached_codes(tokenizer, pictures, 1, 0, 0.4, 0, tmp_path, cpu)
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.chances, again.chances)


def test_codes_of_other_options_are_computed_anew(tmp_path: Path) -> None:
    """The same weights with another number of groups in every norm give other tokens."""
    tokenizer, cpu = _tokenizer(), torch.device("cpu")
    other = VQTokenizer.from_config({**tokenizer.config, "norm_groups": 1}).eval()
    other.load_state_dict(tokenizer.state_dict())
    pictures = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8)
    for each in (tokenizer, other):
        kept = cached_codes(each, pictures, 1, 0, 0.0, 0, tmp_path, cpu)
        assert torch.equal(kept.nearest.long(), each.encode(to_float(pictures)))
    tokenizer.save_pretrained(tmp_path / "saved")
    cached_codes(
        VQTokenizer.from_pretrained(tmp_path / "saved"), pictures, 1, 0, 0.0, 0, tmp_path, cpu
    )
    assert len(list(tmp_path.glob("*.npz"))) == 2, "what is loaded has the options of what is saved"


def test_half_of_the_pictures_are_led_on_by_codes_of_the_next() -> None:
    inputs = torch.arange(2000)[:, None].expand(-1, 64)
    labels = inputs[..., None]
    drawn = Drawn(inputs, labels, torch.ones_like(labels, dtype=torch.float32))
    misled = mislead(drawn, 0.4, torch.Generator().manual_seed(0))
    assert misled.labels is labels
    wrong = misled.inputs != inputs
    assert torch.equal(misled.inputs[wrong], inputs.roll(-1, 0)[wrong])
    share = wrong.float().mean(1)
    assert 0.45 < (share > 0).float().mean() < 0.55
    assert share.max() < 0.7
    assert abs(float(share[share > 0].mean()) - 0.2) < 0.02
    untouched = mislead(drawn, 0.0, torch.Generator().manual_seed(0))
    assert torch.equal(untouched.inputs, inputs)


def test_checkpoints_keep_everything(tmp_path: Path) -> None:
    state: dict[str, Any] = {
        "step": 3,
        "rate": 0.1,
        "missing": None,
        "nested": {0: [torch.arange(3), {"a": torch.ones(2, 2).t()}], "name": "x"},
        "empty": [],
    }
    assert load_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, state)
    again = load_checkpoint(tmp_path)
    assert again is not None
    assert [again[k] for k in ("step", "rate", "missing", "empty")] == [3, 0.1, None, []]
    assert torch.equal(again["nested"][0][0], torch.arange(3))
    assert again["nested"]["name"] == "x"


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
