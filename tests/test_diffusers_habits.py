"""What users of diffusers type works, or is refused in one sentence."""

from pathlib import Path

import pytest
import torch

from visual_ar import hub
from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.diffusers_habits import INSTEAD_OF_CALL
from visual_ar.pipeline import VisualARPipeline


@pytest.fixture
def folder(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize(
    "options",
    [
        {"torch_dtype": torch.bfloat16},
        {"dtype": torch.bfloat16, "torch_dtype": torch.bfloat16, "local_files_only": True},
        {"cache_dir": "x", "force_download": True, "low_cpu_mem_usage": False, "variant": None},
        {"device_map": None, "use_safetensors": True, "custom_pipeline": None, "subfolder": ""},
        {"trust_remote_code": False, "scheduler": None, "use_safetensors": None},
    ],
)
def test_loading_takes_what_changes_nothing_or_can_be_had(folder, options):
    pipe = VisualARPipeline.from_pretrained(folder, **options)
    assert pipe.dtype == options.get("torch_dtype", torch.float32)
    assert pipe.image_tokenizer.dtype == pipe.dtype


def test_a_given_scheduler_takes_the_place_of_the_saved_one(folder, tmp_path):
    method = SpeculativeJacobiDecoding(4)
    pipe = VisualARPipeline.from_pretrained(folder, scheduler=method)
    assert pipe.scheduler is method
    pipe.save_pretrained(tmp_path / "again")
    again = VisualARPipeline.from_pretrained(tmp_path / "again")
    assert isinstance(again.scheduler, SpeculativeJacobiDecoding)
    assert again.scheduler.config.window == 4


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"variant": "fp16"}, ValueError, "variant must be left out, .*; got 'fp16'"),
        ({"device_map": "cuda"}, ValueError, r"device_map must be left out, .* \.to\(device\)"),
        ({"use_safetensors": False}, ValueError, "use_safetensors must be left out"),
        ({"subfolder": "a"}, ValueError, "subfolder must be left out"),
        ({"custom_pipeline": "a"}, ValueError, "custom_pipeline must be left out"),
        ({"trust_remote_code": True}, ValueError, "trust_remote_code must be left out"),
        ({"scheduler": "ddim"}, ValueError, "scheduler must be a decoding method .*, got str"),
        ({"torch_dtype": "float16"}, ValueError, "torch_dtype must be a type .*, got 'float16'"),
        ({"dtype": torch.int16}, ValueError, "dtype must be a type .*, got torch.int16"),
        (
            {"dtype": torch.float16, "torch_dtype": torch.bfloat16},
            ValueError,
            "torch_dtype must be left out beside dtype torch.float16",
        ),
        ({"image_tokenizer": None}, TypeError, "takes no argument 'image_tokenizer'; build"),
        ({"cachedir": "x"}, TypeError, "'cachedir'; did you mean 'cache_dir'"),
        ({"vae": None}, TypeError, "takes no argument 'vae'"),
    ],
)
def test_loading_refuses_before_it_looks_for_the_model(options, error, message):
    with pytest.raises(error, match=message):
        VisualARPipeline.from_pretrained("nonesuch", **options)


def test_the_hub_is_asked_as_the_user_says(monkeypatch, folder):
    asked = {}

    def unreachable(name, **options):
        raise OSError(name)

    def download(name, **options):
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr(hub, "model_info", unreachable)
    monkeypatch.setattr(hub, "snapshot_download", download)
    VisualARPipeline.from_pretrained("a/b", cache_dir="c", force_download=True, token="t")
    assert (asked["cache_dir"], asked["force_download"], asked["token"]) == (Path("c"), True, "t")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"safe_serialization": True, "variant": None, "push_to_hub": False},
        {"max_shard_size": "2KB"},
        {"max_shard_size": 3000},
    ],
)
def test_every_way_of_saving_can_be_loaded(tiny_pipeline, tmp_path, options):
    tiny_pipeline.save_pretrained(tmp_path / "out", **options)
    if "max_shard_size" in options:
        assert len(list((tmp_path / "out" / "model").glob("*.safetensors"))) > 1
    again = VisualARPipeline.from_pretrained(str(tmp_path / "out"))
    for key, value in tiny_pipeline.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[key], value)


@pytest.mark.parametrize(
    "options", [{"variant": "fp16"}, {"safe_serialization": False}, {"push_to_hub": True}]
)
def test_what_could_not_be_loaded_is_not_written(tiny_pipeline, tmp_path, options):
    (name, value) = next(iter(options.items()))
    with pytest.raises(ValueError, match=f"{name} must be .*, got {value!r}"):
        tiny_pipeline.save_pretrained(tmp_path / "out", **options)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="save_directory must be a folder"):
        tiny_pipeline.save_pretrained(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_pipeline_is_made_of_another_one(tiny_pipeline):
    method = SpeculativeJacobiDecoding(4)
    second = VisualARPipeline.from_pipe(tiny_pipeline, scheduler=method)
    assert second.model is tiny_pipeline.model
    assert second.scheduler is method is not tiny_pipeline.scheduler
    assert second.config.class_names == tiny_pipeline.config.class_names
    assert VisualARPipeline.from_pipe(second).scheduler is method
    with pytest.raises(ValueError, match=r"pipeline must be a VisualARPipeline, .* got a Module"):
        VisualARPipeline.from_pipe(torch.nn.Module())


@pytest.mark.parametrize("name", [*INSTEAD_OF_CALL, "clip_skips"])
def test_arguments_of_other_calls_are_named(tiny_pipeline, name):
    with pytest.raises(TypeError, match=f"takes no argument '{name}'") as caught:
        tiny_pipeline(class_labels=0, **{name: None})
    assert "\n" not in str(caught.value)
    assert name == "clip_skips" or INSTEAD_OF_CALL[name] in str(caught.value)


@pytest.mark.parametrize(
    "switch",
    [
        *("enable_attention_slicing", "enable_xformers_memory_efficient_attention"),
        *("enable_vae_slicing", "enable_vae_tiling"),
    ],
)
def test_switches_that_would_do_nothing_say_so(tiny_pipeline, switch):
    with pytest.raises(NotImplementedError, match="is not "):
        getattr(tiny_pipeline, switch)()


def test_moving_is_as_in_diffusers(folder):
    pipe = VisualARPipeline.from_pretrained(folder).to("cpu", torch.bfloat16)
    assert pipe.model.dtype == pipe.image_tokenizer.dtype == torch.bfloat16
