"""Weights in 8 bits: what they hold, how far they are from the weights, and files that lie."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from visual_ar import eight_bit, loading
from visual_ar.component_files import count_parameters
from visual_ar.pipeline import VisualARPipeline

WEIGHTS = "diffusion_pytorch_model.safetensors"


def test_a_matrix_is_restored_to_half_a_step_of_its_row():
    torch.manual_seed(0)
    scales = torch.tensor([1e-3, 1.0, 30.0, 0.0])[:, None, None]
    state = {"kernel": scales * torch.randn(4, 40, 9), "bias": torch.randn(4)}
    stored = eight_bit.compress(state)
    assert stored["kernel"].dtype == torch.int8
    assert stored["bias"].dtype == stored["kernel" + eight_bit.SCALE].dtype == torch.float16
    restored = eight_bit.restore(stored)
    assert restored.keys() == state.keys()
    largest = state["kernel"].abs().amax(dim=(1, 2), keepdim=True)
    # Rounding the scale to float16 may cut off the largest entry by its own rounding.
    assert bool(((restored["kernel"] - state["kernel"]).abs() <= largest / 127 * 0.6).all())
    again = eight_bit.restore(eight_bit.compress(restored))
    assert torch.equal(again["kernel"], restored["kernel"])


def test_small_matrices_stay_in_float16_and_numbers_must_be_finite():
    stored = eight_bit.compress({"small": torch.ones(3, 3)})
    assert stored["small"].dtype == torch.float16
    with pytest.raises(ValueError, match="large must be finite to be stored in 8 bits"):
        eight_bit.compress({"large": torch.full((40, 40), torch.inf)})


@pytest.fixture
def folder(tiny_pipeline, tmp_path, monkeypatch):
    """A saved pipeline whose model and tokenizer are stored in 8 bits."""
    monkeypatch.setattr(eight_bit, "_FEWEST", 1)
    tiny_pipeline.save_pretrained(tmp_path / "saved")
    for part in ("model", "image_tokenizer"):
        eight_bit.rewrite(tmp_path / "saved" / part)
    return tmp_path / "saved"


def test_a_pipeline_is_loaded_from_8_bits(folder, tiny_pipeline):
    pipe = VisualARPipeline.from_pretrained(folder)
    for part in ("model", "image_tokenizer"):
        stored = load_file(folder / part / WEIGHTS)
        assert any(value.dtype == torch.int8 for value in stored.values())
        ours = getattr(pipe, part).state_dict()
        for key, value in getattr(tiny_pipeline, part).state_dict().items():
            assert ours[key].dtype == value.dtype == torch.float32
            torch.testing.assert_close(ours[key], value, rtol=0, atol=float(value.abs().max()) / 60)
    half = VisualARPipeline.from_pretrained(folder, dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16
    assert pipe(class_labels=0, seeds=1).images[0].size == (pipe.config.width, pipe.config.height)


def test_a_class_is_loaded_from_8_bits_without_a_pipeline(folder, tiny_pipeline):
    alone = type(tiny_pipeline.model).from_pretrained(folder / "model")
    whole = VisualARPipeline.from_pretrained(folder).model.state_dict()
    assert all(torch.equal(value, whole[key]) for key, value in alone.state_dict().items())


def test_a_fingerprint_is_that_of_the_restored_weights(folder, tmp_path):
    path = folder / "model" / WEIGHTS
    before = loading.fingerprint(folder / "model")
    save_file(eight_bit.restore(load_file(path)), path, metadata={"format": "pt"})
    assert loading.fingerprint(folder / "model") == before


def test_scales_are_not_counted_as_parameters(folder, tiny_pipeline):
    expected = sum(weight.numel() for weight in tiny_pipeline.model.parameters())
    assert count_parameters(folder / "model", type(tiny_pipeline.model)) == expected


@pytest.mark.parametrize("change", ["missing", "short"])
def test_scales_that_do_not_fit_are_refused(folder, change):
    path = folder / "model" / WEIGHTS
    stored = load_file(path)
    name = next(name for name, value in stored.items() if value.dtype == torch.int8)
    if change == "missing":
        del stored[name + eight_bit.SCALE]
    else:
        stored[name + eight_bit.SCALE] = stored[name + eight_bit.SCALE][1:].clone()
    save_file(stored, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"scales, got|unknown parameter .*scale_of_rows"):
        VisualARPipeline.from_pretrained(folder)
