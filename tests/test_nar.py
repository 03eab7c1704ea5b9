"""The NAR transformer against the official implementation, its cache, checkpoints and pipeline."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from visual_ar.accel.groups import GroupDecoding
from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.cast import Cast
from visual_ar.conversion import convert
from visual_ar.models import nar
from visual_ar.models.llamagen import LlamaGen
from visual_ar.models.nar import NAR, convert_official
from visual_ar.sampling import Sampling
from visual_ar.training import bundled, load_recipe

FIXTURE = Path(__file__).parent / "fixtures" / "nar.safetensors"


@pytest.fixture(scope="module")
def official():
    return load_file(FIXTURE)


@pytest.fixture(autouse=True)
def small_size(monkeypatch):
    monkeypatch.setitem(nar.SIZES, "tiny", (2, 4, 32))


def state_of(official, name):
    start = f"{name}.state."
    return {key.removeprefix(start): t for key, t in official.items() if key.startswith(start)}


def load(official, name):
    config, state = convert_official(state_of(official, name), grid=4)
    model = NAR(**config).eval()
    model.load_state_dict(state)
    return model


def condition_of(official, name, model, guided=False):
    if name == "t2i":
        return model.condition(official["features"], official["valid"], guided=guided)
    return model.condition(official["labels"], guided=guided)


def tokens_of(official, name, model):
    """The fixture's tokens in decode order."""
    return official["clip" if name == "video" else "tokens"][:, model.layout(model.grid).cell]


@torch.no_grad()
@pytest.mark.parametrize("name", ["c2i", "t2i", "video"])
def test_logits_are_the_official_ones(official, name):
    model = load(official, name)
    logits = model.logits(tokens_of(official, name, model), condition_of(official, name, model))
    by_cell = model.layout(model.grid).cells(logits)
    assert torch.allclose(by_cell, official[f"{name}.logits"], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["c2i", "t2i", "video"])
def test_cached_passes_give_the_logits_of_a_full_pass(official, name):
    """Guided and ragged: the second picture is admitted two passes after the first."""
    model, method = load(official, name), GroupDecoding()
    layout = model.layout(model.grid)
    condition = condition_of(official, name, model, guided=True)
    sampling = Sampling.create([3, 4], guidance=1.7)
    state = method.init(Cast(model, layout), slots=2)
    found = torch.zeros(2, layout.length + state.window, model.vocab_size)
    for passes in range(layout.shape3d[0] + 7 + 2):
        for slot in range(2):
            if passes == 2 * slot:
                part = Sampling(*(field[slot : slot + 1] for field in sampling))
                rows = condition.rows(torch.tensor([slot, slot + 2]))
                method.admit(state, torch.tensor([slot]), rows, part)
        before = state.length.clone()
        step = method.advance(state)
        for slot in range(2):  # the laws of this pass, from the hidden states that it kept
            ranks = torch.arange(int(before[slot]), int(state.length[slot]))
            both = ranks.expand(4, -1)
            laws = state.warped(model.predict(state.method.of_sources(both), both), both[:2]).logits
            found[slot, ranks] = laws[slot]
    assert bool(step.done.all())
    logits = model.logits(step.tokens.repeat(2, 1), condition)
    guided = torch.lerp(logits[2:], logits[:2], 1.7)
    assert torch.allclose(found[:, : layout.length], guided, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_equal_columns_are_weighed_as_one(official):
    model = load(official, "t2i")
    features = official["features"][:, -1:].expand(-1, 6, -1)
    condition = model.condition(features, guided=False)
    tokens = tokens_of(official, "t2i", model)
    fast = model.logits(tokens, condition, same_columns=True)
    assert torch.allclose(fast, model.logits(tokens, condition), atol=1e-4)


@pytest.mark.parametrize("name", ["c2i", "video"])
def test_a_picture_takes_as_many_passes_as_there_are_distances(official, name):
    model = load(official, name)
    layout = model.layout(model.grid)
    steps = list(
        GroupDecoding().decode(
            Cast(model, layout), condition_of(official, name, model), Sampling.create([1, 2])
        )
    )
    assert len(steps) == sum(model.grid) - len(model.grid) + 1
    assert bool(steps[-1].known.all())


def test_published_files_are_converted(official, tmp_path):
    clip = {"name": "llama-abs-S", "args": {"n_layer": 2}, "sd": state_of(official, "video")}
    torch.save({"model": clip}, tmp_path / "video.pt")
    assert convert(tmp_path / "video.pt", tmp_path / "video", grid=4).startswith("NAR with ")
    torch.save({"model": state_of(official, "c2i")}, tmp_path / "c2i.pt")
    convert(tmp_path / "c2i.pt", tmp_path / "c2i", grid=4)
    save_file(state_of(official, "t2i"), tmp_path / "t2i.safetensors")
    convert(tmp_path / "t2i.safetensors", tmp_path / "t2i", grid=4)
    for name in ("c2i", "t2i", "video"):
        model = NAR.from_pretrained(tmp_path / name).eval()
        expected = load(official, name).state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    assert model.grid == (3, 4, 4)


def test_checkpoints_that_do_not_fit_are_refused(official, tmp_path):
    state = state_of(official, "video")
    with pytest.raises(ValueError, match="must divide the 48 cells of a clip into frames, got 5"):
        convert_official(state, grid=5)
    del state["abs_pe"]
    with pytest.raises(ValueError, match="lacks the parameter abs_pe"):
        convert_official(state, grid=4)
    state = state_of(official, "c2i")
    with pytest.raises(ValueError, match="give it with --grid"):
        convert_official(state)
    del state["medusa_norm.weight"]
    save_file(state, tmp_path / "c2i.safetensors")
    with pytest.raises(ValueError, match=r"lacks the parameter norms\.1\.weight"):
        convert(tmp_path / "c2i.safetensors", tmp_path / "out", grid=4)


def test_grids_and_methods_that_do_not_fit_are_refused(official):
    model = load(official, "c2i")
    with pytest.raises(ValueError, match=r"grid must be \(4, 4\) for this model, got \(4, 5\)"):
        model.layout((4, 5))
    with pytest.raises(ValueError, match="predicts several tokens at once"):
        SpeculativeJacobiDecoding(window=4).check(Cast(model, model.layout((4, 4))))
    with pytest.raises(ValueError, match="exactly one of num_classes and caption_dim"):
        NAR(dim=32, n_head=4)


@pytest.mark.parametrize("name", ["emoji", "cifar10"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_recipes_compare_models_of_equal_size_and_budget(name, device):
    plain, other = load_recipe(name, device), load_recipe(f"{name}_nar", device)
    codes = load_recipe(plain.tokenizer, device).model["codebook_size"]
    condition = {"num_classes": 10}
    if plain.text is not None:
        condition = {"caption_dim": plain.text["feature_dim"], "caption_length": 64}
    sizes = []
    with torch.device("meta"):
        for family, recipe in ((LlamaGen, plain), (NAR, other)):
            model = family(**recipe.model, **condition, vocab_size=codes, grid_size=8)
            sizes.append(sum(p.numel() for p in model.parameters()))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)
    for option in ("steps", "minutes", "batch", "seed", "dataset", "tokenizer", "text", "soft"):
        assert getattr(plain, option) == getattr(other, option)
    assert set(bundled()) >= {name, f"{name}_nar"}
