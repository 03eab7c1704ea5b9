"""Pipelines that need others: what the hub is asked for them, and which weights they accept."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from visual_ar import eight_bit, hub, loading
from visual_ar.accel.denoising import SpeculativeDenoisingDecoding
from visual_ar.models.denoising import DenoisingLlamaGen
from visual_ar.models.draft_head import DraftHead
from visual_ar.pipeline import VisualARPipeline
from visual_ar.training.bundle import pack, save_delta, save_with_draft_head, share

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def known(monkeypatch):
    """Bundled models by name, to be filled."""
    models = {}
    monkeypatch.setattr(loading, "bundled", lambda: models)
    monkeypatch.setattr(eight_bit, "_FEWEST", 64)
    return models


def index_of(folder):
    return json.loads((folder / "model_index.json").read_text())


def edit_index(folder, **changes):
    (folder / "model_index.json").write_text(json.dumps({**index_of(folder), **changes}))


def denoiser_of(pipe, base, folder):
    """Saves a denoiser for the model that `folder` / `base` holds."""
    model = DenoisingLlamaGen.from_base(pipe.model, {"adapter_dim": 4})
    made_for = loading.fingerprint(folder / base / "model")
    save_delta(model, base, made_for, SpeculativeDenoisingDecoding(), folder / "delta")
    return folder / "delta"


@pytest.fixture
def trained(tiny_text_pipeline, tmp_path):
    """A folder as a run leaves it: a pipeline "base" with a draft head, in float16."""
    head = DraftHead.start_from(tiny_text_pipeline.model)
    save_with_draft_head(tiny_text_pipeline, head, tmp_path / "base")
    return tmp_path


@pytest.fixture
def asked(trained, tiny_text_pipeline, known, monkeypatch):
    """What the hub is asked. A delta there has a base that shares parts of others."""
    for name in ("third", "fourth"):
        tiny_text_pipeline.save_pretrained(trained / name)
    known.update({"o/third": trained / "third", "o/fourth": trained / "fourth"})
    share(trained / "base", "image_tokenizer", "o/third")
    share(trained / "third", "image_tokenizer", "o/fourth")
    share(trained / "base", "text_encoder", "o/fourth")
    edit_index(denoiser_of(tiny_text_pipeline, "base", trained), _base="o/base")
    known.clear()
    calls = []

    def unreachable(name, **options):
        raise OSError(name)

    def download(name, **options):
        calls.append((name, options))
        return str(trained / name.removeprefix("o/"))

    monkeypatch.setattr(hub, "model_info", unreachable)
    monkeypatch.setattr(hub, "snapshot_download", download)
    return calls


@pytest.mark.parametrize("offline", [True, False])
def test_everything_a_pipeline_needs_is_asked_for_alike(asked, offline):
    pipe = VisualARPipeline.from_pretrained(
        "o/delta", revision="spring", token="secret", local_files_only=offline
    )
    assert isinstance(pipe.model, DenoisingLlamaGen)
    assert {name for name, _ in asked} == {"o/delta", "o/base", "o/third", "o/fourth"}
    for name, options in asked:
        assert options["token"] == "secret" and options["local_files_only"] is offline
        assert options["revision"] == ("spring" if name == "o/delta" else None)


def test_pipelines_that_share_in_a_circle_are_refused(asked, trained):
    shared = index_of(trained / "third")["_shared"]["image_tokenizer"]
    (trained / "fourth" / "image_tokenizer").rename(trained / "fourth" / "elsewhere")
    edit_index(trained / "fourth", _shared={"image_tokenizer": ["o/third", shared[1]]})
    with pytest.raises(ValueError, match="image_tokenizer must be held by a pipeline, got a circl"):
        VisualARPipeline.from_pretrained("o/base")


@pytest.fixture
def packed(trained, tiny_text_pipeline, known):
    """The folder with "base" in 8 bits, and "delta", "sharing" made for it as it was trained."""
    known["base"] = trained / "base"
    denoiser_of(tiny_text_pipeline, "base", trained)
    VisualARPipeline.from_pretrained(trained / "base").save_pretrained(trained / "sharing")
    for name in ("image_tokenizer", "text_encoder"):
        share(trained / "sharing", name, "base")
    pack(trained / "base", trained / "small")
    known["base"] = trained / "small"
    return trained


def test_a_packed_pipeline_is_in_8_bits_and_says_what_it_stands_for(packed):
    replaced = index_of(packed / "small")["_stands_for"]
    assert set(replaced) == {"draft_head", "image_tokenizer", "model", "text_encoder"}
    for name, by_weights in replaced.items():
        stored = load_file(packed / "small" / name / WEIGHTS)
        assert any(value.dtype == torch.int8 for value in stored.values())
        before, after = (loading.fingerprint(packed / of / name) for of in ("base", "small"))
        assert by_weights == {after: [before]} and after != before
    again = packed / "again"
    pack(packed / "small", again)
    assert index_of(again) == index_of(packed / "small")


def test_what_was_made_for_the_trained_weights_accepts_those_in_8_bits(packed):
    small = VisualARPipeline.from_pretrained("base")
    assert small.draft_head is not None
    small.draft_head.check(small.model)
    for name in ("delta", "sharing"):
        pipe = VisualARPipeline.from_pretrained(packed / name)
        for part in ("image_tokenizer", "text_encoder"):
            ours, theirs = (getattr(of, part).state_dict() for of in (pipe, small))
            assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    delta = VisualARPipeline.from_pretrained(packed / "delta").model.state_dict()
    for key, value in small.model.state_dict().items():
        assert torch.equal(value, delta[key])


def test_a_packed_pipeline_shares_with_a_base_in_8_bits(packed):
    pack(packed / "base", packed / "other", base="base")
    entry = index_of(packed / "other")["_shared"]["text_encoder"]
    fingerprints = [loading.fingerprint(packed / of / "text_encoder") for of in ("small", "base")]
    assert entry == ["base", fingerprints]
    VisualARPipeline.from_pretrained(packed / "other")


def test_any_of_several_fingerprints_fits(packed, known):
    own = index_of(packed / "delta")["_base_sha256"]
    shared = index_of(packed / "sharing")["_shared"]
    known["base"] = packed / "base"
    edit_index(packed / "delta", _base_sha256=["0" * 64, own])
    several = {name: [base, ["0" * 64, one]] for name, (base, one) in shared.items()}
    edit_index(packed / "sharing", _shared=several)
    for name in ("delta", "sharing"):
        VisualARPipeline.from_pretrained(packed / name)
    edit_index(packed / "delta", _base_sha256=["0" * 64, "1" * 64])
    with pytest.raises(ValueError, match="of fingerprint 000000000000 or 111111111111, got"):
        VisualARPipeline.from_pretrained(packed / "delta")


@pytest.mark.parametrize("value", [[], [3], 3, ""])
def test_what_is_no_fingerprint_is_refused(packed, value):
    edit_index(packed / "delta", _base_sha256=value)
    with pytest.raises(ValueError, match=r"_base_sha256 in .* must be "):
        VisualARPipeline.from_pretrained(packed / "delta")


@pytest.mark.parametrize("value", [[], {"model": []}, {"model": {"0": 3}}])
def test_a_damaged_note_of_what_is_replaced_is_refused(packed, value):
    edit_index(packed / "small", _stands_for=value)
    with pytest.raises(ValueError, match=r"_stands_for in .* must be "):
        VisualARPipeline.from_pretrained(packed / "delta")


def test_other_weights_stand_for_nothing(packed):
    """Not even where the index beside them still tells of those that were there."""
    for part, needs in (("model", "delta"), ("text_encoder", "sharing")):
        path = packed / "small" / part / WEIGHTS
        stored = load_file(path)
        name = next(name for name, value in stored.items() if value.dtype == torch.int8)
        stored[name] = -stored[name]
        save_file(stored, path, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=f"the {part} of 'base' must have the weights"):
            VisualARPipeline.from_pretrained(packed / needs)


def test_a_draft_head_accepts_8_bits_and_no_other_weights(make_tiny_pipeline):
    model = make_tiny_pipeline().model
    model.tok_embeddings.weight.data[:, 0] = 8.0  # so that a step of 8 bits is a large one
    head = DraftHead.start_from(model)
    whole = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(eight_bit.restore(eight_bit.compress(whole)))
    head.check(model)
    model.load_state_dict(whole)
    head.check(model)
    model.layers[0].load_state_dict(model.layers[1].state_dict())
    with pytest.raises(ValueError, match="draft_head must be made for the model it drafts for"):
        head.check(model)
