"""The BSQ-ViT tokenizer: agreement with the official code, checkpoint layouts, refusals."""

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import visual_ar.tokenizers
from visual_ar.conversion import convert
from visual_ar.size import Size
from visual_ar.tokenizers.binary_quantizers import BinarySphericalQuantizer
from visual_ar.tokenizers.bit_codes import bits_to_codes
from visual_ar.tokenizers.bsq import BSQTokenizer, convert_official

FIXTURES = Path(__file__).parent / "fixtures"
KEYS = json.loads((FIXTURES / "bsq_official_keys.json").read_text())
SIZES = {
    "image_size": 12,
    "patch_size": 4,
    "width": 64,
    "layers": 2,
    "heads": 1,
    "bits": 6,
    "bit_groups": 2,
    "ffn_dim": 48,
}


def wave(key: str, shape: list[int]) -> Tensor:
    """The weights with which tests/fixtures/make_bsq_fixture.py ran the official model."""
    key = key.replace("ln_", "norm_")
    phase = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 1000
    values = torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * 12.9898 + phase)
    if "norm" in key:
        values = values * 0.1 + (1.0 if key.endswith("weight") else 0.0)
    elif len(shape) > 1:
        values = values * math.sqrt(2 / math.prod(shape[1:]))
    else:
        values = values * 0.1
    return values.reshape(shape)


@pytest.fixture
def state() -> dict[str, Tensor]:
    """The official state dict, without what training puts around it."""
    weights = {key: wave(key, shape) for key, shape in KEYS["tiny"].items() if "basis" not in key}
    tables = {
        "quantize.basis": 2 ** torch.arange(5, -1, -1),
        "quantize.group_basis": 2 ** torch.arange(2, -1, -1),
    }
    return weights | tables


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    return load_file(FIXTURES / "bsq_official.safetensors")


@pytest.fixture(scope="module")
def tokenizer() -> BSQTokenizer:
    torch.manual_seed(0)
    return BSQTokenizer(**(SIZES | {"layers": 1, "heads": 2, "width": 16})).eval()


def test_gives_the_official_bits_and_pixels(state: dict, expected: dict) -> None:
    config, weights = convert_official(state)
    assert config == SIZES
    ours = BSQTokenizer(**config).double().eval()
    ours.load_state_dict(weights)
    with torch.no_grad():
        latents = ours.latents(expected["pixels"])
    assert latents.shape == (2, 6, 3, 3)
    on_sphere = torch.nn.functional.normalize(latents, dim=1).flatten(2).transpose(1, 2)
    assert torch.allclose(on_sphere, expected["latents"], atol=1e-9)
    tokens = ours.encode(expected["pixels"])
    assert torch.equal(tokens, expected["tokens"])
    assert 0.2 < float(tokens.float().mean()) < 0.8
    assert torch.equal(bits_to_codes(tokens, "msb"), expected["codes"])
    decoded = ours.decode(tokens, ours.grid(Size(12, 12)))
    # The corners of the cube are kept in float32.
    assert torch.allclose(decoded, expected["decoded"], rtol=0, atol=1e-6)


def test_gives_the_official_entropies(expected: dict) -> None:
    """With the entropy of a sample in closed form, theirs of the batch is bit by bit.

    They add 1e-8 inside a logarithm, hence the tolerance.
    """
    on_grid = expected["latents"].transpose(1, 2).unflatten(2, (3, 3))
    for name, groups in (("analytical", 6), ("group", 2)):
        statistics = BinarySphericalQuantizer(6, groups)(on_grid).statistics
        ours = torch.stack([statistics["sample_entropy"], statistics["batch_entropy"]])
        assert torch.allclose(ours.double(), expected[name], rtol=0, atol=1e-5), name


def test_published_sizes() -> None:
    with torch.device("meta"):
        default = BSQTokenizer()
        state = {key: torch.empty(shape) for key, shape in KEYS["b18g2"].items()}
        config, weights = convert_official(state)
    shapes = {key: list(value.shape) for key, value in default.state_dict().items()}
    published = {key: shape for key, shape in KEYS["b18g2"].items() if "basis" not in key}
    assert shapes == published
    assert set(weights) == set(published)
    assert config == {
        "image_size": 256,
        "patch_size": 8,
        "width": 768,
        "layers": 12,
        "heads": 12,
        "bits": 18,
        "bit_groups": 2,
        "ffn_dim": 3072,
    }


@pytest.mark.parametrize("layout", ["averages", "no averages"])
def test_both_layouts_convert(layout: str, state: dict, expected: dict, tmp_path: Path) -> None:
    checkpoint = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}
    checkpoint["ema_state_dict"] = None
    if layout == "averages":
        checkpoint["ema_state_dict"] = {f"module.module.{k}": v for k, v in state.items()}
        checkpoint["state_dict"] = {k: v * 0 for k, v in checkpoint["state_dict"].items()}
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    report = convert(tmp_path / "checkpoint.pt", tmp_path / "out")
    assert report.startswith("BSQTokenizer with ")
    again = visual_ar.tokenizers.BSQTokenizer.from_pretrained(tmp_path / "out").eval()
    tokens = again.encode(expected["pixels"].float())
    assert torch.equal(tokens, expected["tokens"])
    decoded = again.decode(tokens, (3, 3))
    assert torch.allclose(decoded.double(), expected["decoded"], rtol=0, atol=1e-4)


def test_conversion_names_what_is_wrong(state: dict, tmp_path: Path) -> None:
    def refuse(message: str, checkpoint: dict) -> None:
        source = tmp_path / "bad.pt"
        torch.save({"state_dict": {f"module.{k}": v for k, v in checkpoint.items()}}, source)
        with pytest.raises(ValueError, match=message):
            convert(source, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    key = "decoder.ffn.0.bias"
    refuse(rf"lacks the parameter {key}", {k: v for k, v in state.items() if k != key})
    refuse(rf"{key} must have shape \[48\], got \[3\]", state | {key: torch.zeros(3)})
    video = {"encoder.temporal_positional_embedding": torch.zeros(4, 64)}
    refuse("that the model lacks: encoder.temporal_positional_embedding", state | video)
    without = {k: v for k, v in state.items() if k != "encoder.positional_embedding"}
    refuse("checkpoint has no encoder.positional_embedding", without)
    refuse(
        "square of cells and of pixels in each, got 8 in positional_embedding and 48",
        state | {"encoder.positional_embedding": torch.zeros(8, 64)},
    )
    refuse("multiple of 64 rows, got 40", state | {"encoder.conv1.weight": torch.zeros(40, 48)})
    refuse("conv1.weight must have 2 axes", state | {"encoder.conv1.weight": torch.zeros(64)})
    least_first = state["quantize.basis"].flip(0)
    refuse(r"first bit most \(msb\).*quantize.basis", state | {"quantize.basis": least_first})


def test_unknown_cells_show_the_mean_code(tokenizer: BSQTokenizer) -> None:
    tokens = torch.rand(2, 9, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    known = torch.ones(2, 9, dtype=torch.bool)
    full = tokenizer.decode(tokens, (3, 3))
    assert full.shape == (2, 3, 12, 12)
    assert torch.equal(tokenizer.decode(tokens, (3, 3), known), full)
    known[:, 3:] = False
    changed = tokens.clone()
    changed[:, 3:] = ~changed[:, 3:]
    part = tokenizer.decode(tokens, (3, 3), known)
    assert torch.equal(part, tokenizer.decode(changed, (3, 3), known))
    assert not torch.allclose(part, full)


def test_codes_lie_on_the_sphere_and_encode_to_themselves(tokenizer: BSQTokenizer) -> None:
    tokens = torch.rand(2, 9, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    codes = tokenizer.lookup(tokens, (3, 3))
    assert torch.allclose(codes.square().sum(1), torch.ones(2, 3, 3))
    assert torch.equal(tokenizer.quantize.encode(codes), tokens)
    assert tokenizer.codebook_size == 64


def test_trains(tokenizer: BSQTokenizer) -> None:
    pixels = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    drawn, quantized = tokenizer(pixels)
    loss = (drawn - pixels).square().mean() + quantized.losses["entropy"]
    gradients = torch.autograd.grad(loss, list(tokenizer.parameters()))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    first = next(i for i, (n, _) in enumerate(tokenizer.named_parameters()) if "conv1" in n)
    assert gradients[first].abs().max() > 0  # through the signs


def test_bad_input_is_refused(tokenizer: BSQTokenizer) -> None:
    tokens = torch.zeros(1, 9, 6, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"height must be 12, for which the positions.*got 24"):
        tokenizer.encode(torch.zeros(1, 3, 24, 12))
    with pytest.raises(ValueError, match=r"grid must be \(3, 3\), for which.*got \(1, 9\)"):
        tokenizer.decode(tokens, (1, 9))
    with pytest.raises(ValueError, match=r"tokens must be bool \[B, 9, 6\]"):
        tokenizer.decode(tokens.long(), (3, 3))
    with pytest.raises(ValueError, match="6 bits has no code book"):
        tokenizer.code_vectors()
    for options, message in (
        ({"image_size": 13}, "image_size must be a multiple of patch_size = 4, got 13"),
        ({"heads": 3}, "heads must divide the width 64, got 3"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"bit_groups": 4}, "groups must divide the 6 bits of a token, got 4"),
    ):
        with pytest.raises(ValueError, match=message):
            BSQTokenizer(**(SIZES | options))
