"""Saved pipelines are found by name, and damaged ones are refused in one clear sentence."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from visual_ar import assets, eight_bit, loading
from visual_ar.cli.info import model
from visual_ar.models.llamagen import LlamaGen
from visual_ar.pipeline import VisualARPipeline
from visual_ar.training.bundle import pack, share

MODEL, TOKENIZER = "model/diffusion_pytorch_model.safetensors", "image_tokenizer/config.json"


@pytest.fixture
def folder(tiny_pipeline, tmp_path):
    """A folder that holds a saved pipeline, to be damaged."""
    tiny_pipeline.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def edit_json(path, **changes):
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, **changes}))


def edit_weights(path, change):
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


def test_a_bundled_name_stands_for_its_folder(folder, monkeypatch):
    monkeypatch.setattr(loading, "bundled", lambda: {"tiny": folder})
    pipe = VisualARPipeline.from_pretrained("tiny")
    assert pipe.config.class_names == ["cat", "dog", "frog"]
    assert not pipe.model.training


@pytest.fixture
def sharing(tiny_pipeline, folder, tmp_path, monkeypatch):
    """A pipeline whose tokenizer is that of the one in `folder`, known as "base"."""
    monkeypatch.setattr(loading, "bundled", lambda: {"base": folder})
    path = tmp_path / "sharing"
    tiny_pipeline.save_pretrained(path)
    share(path, "image_tokenizer", "base")
    return path


def test_the_names_of_two_classes_are_no_component(tiny_pipeline, tmp_path):
    config = {**tiny_pipeline.model.config, "num_classes": 2}
    parts = {**tiny_pipeline.components, "model": LlamaGen.from_config(config).eval()}
    pipe = VisualARPipeline(**parts, class_names=["cat", "dog"], height=8, width=8)
    pipe.save_pretrained(tmp_path / "two")
    loaded = VisualARPipeline.from_pretrained(tmp_path / "two")
    loaded.set_progress_bar_config(disable=True)
    assert loaded.config.class_names == ["cat", "dog"]
    drawn = [one(class_labels=1, seeds=1, output_type="pt").images for one in (pipe, loaded)]
    assert torch.equal(*drawn)
    told = model(str(tmp_path / "two"))
    assert told["settings"]["class_names"] == ["cat", "dog"]
    assert told["components"].keys() == {"model", "image_tokenizer", "scheduler"}


def test_a_shared_component_comes_from_where_it_is_held(sharing, folder, tmp_path):
    assert not (sharing / "image_tokenizer").exists()
    pipe, base = (VisualARPipeline.from_pretrained(path) for path in (sharing, folder))
    theirs = base.image_tokenizer.state_dict()
    for key, value in pipe.image_tokenizer.state_dict().items():
        assert torch.equal(value, theirs[key])
    half = VisualARPipeline.from_pretrained(sharing, dtype=torch.bfloat16)
    assert half.image_tokenizer.dtype == half.model.dtype == torch.bfloat16
    pipe.save_pretrained(tmp_path / "whole")
    assert "_shared" not in json.loads((tmp_path / "whole" / "model_index.json").read_text())
    VisualARPipeline.from_pretrained(tmp_path / "whole")


def test_a_shared_component_is_told(sharing, folder, monkeypatch):
    monkeypatch.setattr(assets, "bundled", lambda: {"base": folder})
    told, own = (model(str(path))["components"]["image_tokenizer"] for path in (sharing, folder))
    assert told == own | {"shared with": "base"}


def test_a_shared_component_with_other_weights_is_refused(sharing, folder, tiny_pipeline):
    weights = folder / "image_tokenizer" / "diffusion_pytorch_model.safetensors"
    edit_weights(weights, lambda state: state["quantize.embedding.weight"].add_(1))
    with pytest.raises(ValueError, match=r"image_tokenizer of 'base' must have the weights that"):
        VisualARPipeline.from_pretrained(sharing)
    tiny_pipeline.save_pretrained(sharing)
    with pytest.raises(ValueError, match=r"image_tokenizer must have the weights of 'base'"):
        share(sharing, "image_tokenizer", "base")
    assert (sharing / "image_tokenizer").is_dir()


def test_a_packed_pipeline_holds_only_what_is_its_own(folder, tiny_pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(eight_bit, "_FEWEST", 64)
    monkeypatch.setattr(loading, "bundled", lambda: {"base": folder})
    other, better, packed = (tmp_path / name for name in ("other", "better", "packed"))
    torch.nn.init.zeros_(tiny_pipeline.model.output.weight)
    tiny_pipeline.save_pretrained(other)
    packed.mkdir()
    (packed / "README.md").write_text("a card")
    pack(other, packed, base="base")
    assert sorted(path.name for path in packed.iterdir()) == [
        *("README.md", "model", "model_index.json", "scheduler")
    ]
    assert load_file(packed / MODEL)["output.weight"].dtype == torch.int8
    torch.nn.init.ones_(tiny_pipeline.image_tokenizer.decoder.conv_out.weight)
    tiny_pipeline.image_tokenizer.save_pretrained(better)
    pack(other, packed, base="base", tokenizer=better)
    decoder = VisualARPipeline.from_pretrained(packed).image_tokenizer.decoder
    assert decoder.conv_out.weight.sub(1).abs().max() < 0.01  # of 8 bits
    torch.nn.init.ones_(tiny_pipeline.image_tokenizer.encoder.conv_out.weight)
    tiny_pipeline.image_tokenizer.save_pretrained(better)
    with pytest.raises(ValueError, match="tokenizer must keep the encoder of the pipeline's"):
        pack(other, packed, tokenizer=better)


@pytest.mark.parametrize("entry", [[], {"image_tokenizer": "base"}, {"colours": ["base", "1"]}])
def test_a_damaged_note_of_what_is_shared_is_refused(folder, entry):
    edit_json(folder / "model_index.json", _shared=entry or ["base"])
    with pytest.raises(ValueError, match=r"(_shared|colours) in .*model_index\.json must"):
        VisualARPipeline.from_pretrained(folder)


def test_the_modules_of_the_components_need_not_be_imported_before(folder, monkeypatch):
    """Diffusers refuses components of modules that nobody imported."""
    modules = ("visual_ar.models.llamagen", "visual_ar.accel.sequential")
    for module in modules:
        monkeypatch.delitem(sys.modules, module)
    pipe = VisualARPipeline.from_pretrained(folder)
    assert (type(pipe.model).__module__, type(pipe.scheduler).__module__) == modules


def test_weights_in_shards_load(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    again = VisualARPipeline.from_pretrained(tmp_path)
    for key, value in tiny_pipeline.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[key], value)
    next((tmp_path / "model").glob("*-00002-*")).unlink()
    with pytest.raises(ValueError, match=r"must hold .*-00002-.*got no such file"):
        VisualARPipeline.from_pretrained(tmp_path)


def test_unknown_names_are_answered_with_the_known_ones(monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "bundled", lambda: {"cifar10": tmp_path, "emoji": tmp_path})
    with pytest.raises(FileNotFoundError, match=r"cifar10, emoji.*'emojo'; did you mean 'emoji'\?"):
        VisualARPipeline.from_pretrained("emojo")
    with pytest.raises(FileNotFoundError, match=r"existing folder .* got '.*/nothing'$"):
        VisualARPipeline.from_pretrained(tmp_path / "nothing")


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "weights.pt").touch()
    with pytest.raises(NotADirectoryError, match=r"model must be a folder, got the file .*pt'"):
        VisualARPipeline.from_pretrained(tmp_path / "weights.pt")


def test_a_hub_model_that_is_not_there_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(OSError, match="model must be an existing folder or a repository") as caught:
        VisualARPipeline.from_pretrained("nobody/nothing", local_files_only=True)
    assert "'nobody/nothing'" in str(caught.value) and "\n" not in str(caught.value)


def no_index(folder):
    (folder / "model_index.json").unlink()


def broken_index(folder):
    (folder / "model_index.json").write_text("{")


def other_pipeline(folder):
    edit_json(folder / "model_index.json", _class_name="StableDiffusionPipeline")


def unknown_component(folder):
    edit_json(folder / "model_index.json", model=["visual_ar.models.llamagen", "LlamaGun"])


def foreign_component(folder):
    edit_json(folder / "model_index.json", model=["subprocess", "Popen"])


def missing_module(folder):
    edit_json(folder / "model_index.json", model=["visual_ar.models.mamba", "Mamba"])


def no_component(folder):
    (folder / "image_tokenizer").rename(folder / "tokenizer")


def bad_config(folder):
    edit_json(folder / TOKENIZER, channels=7)


def no_config(folder):
    (folder / TOKENIZER).unlink()


def no_weights(folder):
    (folder / MODEL).unlink()


def pickled_weights(folder):
    torch.save(load_file(folder / MODEL), (folder / MODEL).with_suffix(".bin"))
    (folder / MODEL).unlink()


def truncated_weights(folder):
    whole = (folder / MODEL).read_bytes()
    (folder / MODEL).write_bytes(whole[: len(whole) // 2])


def text_weights(folder):
    (folder / MODEL).write_text("these are not weights at all")


def wrong_shape(folder):
    edit_weights(folder / MODEL, lambda w: w.update({"norm.weight": torch.ones(31)}))


def renamed_weights(folder):
    edit_weights(folder / MODEL, lambda w: w.update({"final.weight": w.pop("norm.weight")}))


def extra_weights(folder):
    edit_weights(folder / MODEL, lambda w: w.update({"more.weight": torch.ones(3)}))


DAMAGES = {
    no_index: "a model folder must hold model_index.json, got .*saved' without it",
    broken_index: r"model_index.json must be JSON",
    other_pipeline: "must describe a VisualARPipeline, got 'StableDiffusionPipeline'",
    unknown_component: "model in .*model_index.json must be a class of this library.*'LlamaGun'",
    foreign_component: "model in .*model_index.json must be a class of this library.*'subprocess'",
    missing_module: "model in .*model_index.json needs visual_ar.models.mamba",
    no_component: "must hold a folder image_tokenizer",
    bad_config: r"config.json must describe a VQTokenizer: every width",
    no_config: "image_tokenizer must hold config.json",
    no_weights: r"model' must hold diffusion_pytorch_model.safetensors, got no such file",
    pickled_weights: r"model' must hold diffusion_pytorch_model.safetensors, got no such file",
    truncated_weights: r"diffusion_pytorch_model.safetensors must be a whole safetensors file",
    text_weights: r"diffusion_pytorch_model.safetensors must be a whole safetensors file",
    wrong_shape: r"norm.weight must have shape \[32\] in the weights in .*model', got \[31\]",
    renamed_weights: "the weights in .*model' lack the parameter norm.weight",
    extra_weights: "the weights in .*model' have an unknown parameter more.weight",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_model_is_refused(folder, damage):
    damage(folder)
    with pytest.raises(ValueError, match=DAMAGES[damage]) as caught:
        VisualARPipeline.from_pretrained(folder)
    assert "\n" not in str(caught.value)
