"""The VQ tokenizer: agreement with the official model, its contract and its refusals."""

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from visual_ar.size import Size
from visual_ar.tokenizers.quantizers import VectorQuantizer
from visual_ar.tokenizers.vq import VQTokenizer, convert_official

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module")
def official_keys() -> dict[str, dict[str, list[int]]]:
    """Keys and shapes of the official models, by name."""
    return json.loads((FIXTURES / "vq_official_keys.json").read_text())


@pytest.fixture
def official_state(official_keys: dict) -> dict[str, Tensor]:
    """The weights with which tests/fixtures/make_vq_fixture.py ran the official model."""

    def wave(key: str, shape: list[int]) -> Tensor:
        phase = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 1000
        count = torch.arange(math.prod(shape), dtype=torch.float64)
        values = torch.sin(count * 12.9898 + phase)
        if "norm" in key:
            values = values * 0.1 + (1.0 if key.endswith("weight") else 0.0)
        elif len(shape) > 1:
            values = values * math.sqrt(2 / math.prod(shape[1:]))
        else:
            values = values * 0.1
        return values.reshape(shape)

    return {key: wave(key, shape) for key, shape in official_keys["tiny"].items()}


@pytest.fixture
def tokenizer() -> VQTokenizer:
    torch.manual_seed(0)
    return VQTokenizer(
        channels=8,
        channel_multipliers=(1, 2, 2),
        residual_blocks=1,
        latent_channels=16,
        codebook_size=32,
        codebook_dim=8,
        norm_groups=4,
    ).eval()


def test_gives_the_official_codes_and_pixels(official_state: dict[str, Tensor]) -> None:
    config, weights = convert_official({"model": official_state})
    # Computed in float64 on both sides, so that the tolerance is not about rounding.
    ours = VQTokenizer(**config).double().eval()
    ours.load_state_dict(weights)
    expected = load_file(FIXTURES / "vq_official.safetensors")
    tokens = ours.encode(expected["pixels"])
    assert torch.equal(tokens, expected["tokens"])
    decoded = ours.decode(tokens, ours.grid(Size(16, 24)))
    assert torch.allclose(decoded, expected["decoded"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "keys", "multipliers"),
    [("VQ-16", 344, (1, 1, 2, 2, 4)), ("VQ-8", 300, (1, 2, 2, 4))],
)
def test_official_checkpoints_convert(
    official_keys: dict, name: str, keys: int, multipliers: tuple[int, ...]
) -> None:
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in official_keys[name].items()}
        config, weights = convert_official(state)
        expected = VQTokenizer(channel_multipliers=multipliers)
    assert len(state) == keys
    assert config["channel_multipliers"] == multipliers
    assert {k: v.shape for k, v in weights.items()} == {
        k: v.shape for k, v in expected.state_dict().items()
    }


def test_conversion_names_what_is_wrong(official_state: dict[str, Tensor]) -> None:
    key = "decoder.mid.1.q.weight"
    missing = {k: v for k, v in official_state.items() if k != key}
    with pytest.raises(ValueError, match=f"no {key}"):
        convert_official(missing)
    with pytest.raises(ValueError, match=rf"{key} must be \[64, 64, 1, 1\].*got \[64, 63, 1, 1\]"):
        convert_official(official_state | {key: torch.zeros(64, 63, 1, 1)})
    with pytest.raises(ValueError, match="lacks: surplus"):
        convert_official(official_state | {"surplus": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"no encoder\.conv_in\.weight"):
        convert_official({"layers.0.attention.wqkv.weight": torch.zeros(2, 2)})


def test_codes_survive_a_round_trip_through_latents(tokenizer: VQTokenizer) -> None:
    tokens = torch.arange(32).reshape(2, 16)
    codes = tokenizer.lookup(tokens, (4, 4))
    assert torch.equal(tokenizer.quantize.encode(codes * 3), tokens)


def test_soft_codes_follow_the_distance_from_the_latent(tokenizer: VQTokenizer) -> None:
    pixels = torch.rand(2, 3, 16, 24) * 2 - 1
    size = tokenizer.codebook_size
    tokens, chances = tokenizer.soft_encode(pixels, size, 0.3)
    assert torch.equal(tokens[..., 0], tokenizer.encode(pixels))
    latents = torch.nn.functional.normalize(tokenizer.latents(pixels), dim=1)
    vectors = tokenizer.quantize.codebook()
    distance = torch.cdist(latents[1].flatten(1).T, vectors).square()  # [N, V]
    expected = (-distance / 0.3).softmax(-1).gather(-1, tokens[1])
    assert torch.allclose(chances[1], expected, atol=1e-5)
    few, renormalised = tokenizer.soft_encode(pixels, 3, 0.3)
    assert torch.equal(few, tokens[..., :3])
    assert torch.allclose(renormalised.sum(-1), torch.ones(2, 24))
    for arguments, message in (
        ((0, 0.3), f"count must be in 1..{size}, got 0"),
        ((size + 1, 0.3), f"count must be in 1..{size}, got {size + 1}"),
        ((2, 0.0), "temperature must be above 0, got 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            tokenizer.soft_encode(pixels, *arguments)


def test_pictures_are_independent(tokenizer: VQTokenizer) -> None:
    pixels = torch.rand(3, 3, 16, 24) * 2 - 1
    together = tokenizer.encode(pixels)
    assert together.shape == (3, 24)
    assert torch.equal(tokenizer.encode(pixels[1:2]), together[1:2])


def test_unknown_cells_show_the_mean_code(tokenizer: VQTokenizer) -> None:
    tokens = torch.randint(32, (2, 16), generator=torch.Generator().manual_seed(1))
    known = torch.zeros(2, 16, dtype=torch.bool)
    blank = tokenizer.decode(tokens, (4, 4), known)
    mean = tokenizer.quantize.codebook().mean(0).reshape(1, 8, 1, 1).expand(2, 8, 4, 4)
    assert torch.allclose(blank, tokenizer.reconstruct(mean), atol=1e-5)
    full = tokenizer.decode(tokens, (4, 4))
    assert torch.equal(tokenizer.decode(tokens, (4, 4), ~known), full)
    assert not torch.allclose(full, blank)


def test_neighbours_are_the_nearest_other_codes(tokenizer: VQTokenizer) -> None:
    nearest = tokenizer.neighbours(5)
    codes = tokenizer.quantize.codebook()
    distances = torch.cdist(codes, codes)
    distances.fill_diagonal_(torch.inf)
    assert nearest.shape == (32, 5)
    assert torch.allclose(
        distances.gather(1, nearest), distances.sort(dim=-1).values[:, :5], atol=1e-4
    )


def test_gradient_passes_straight_through_the_quantizer() -> None:
    quantizer = VectorQuantizer(16, 4)
    latents = torch.randn(1, 4, 2, 3, requires_grad=True)
    quantized = quantizer(latents)
    weights = torch.randn(1, 4, 2, 3)
    (quantized.codes * weights).sum().backward()
    ours = latents.grad
    other = latents.detach().clone().requires_grad_()
    (torch.nn.functional.normalize(other, dim=1) * weights).sum().backward()
    assert ours is not None
    assert other.grad is not None
    assert torch.allclose(ours, other.grad, atol=1e-6)


def test_saved_and_loaded_is_the_same(tokenizer: VQTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = VQTokenizer.from_pretrained(tmp_path)
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    assert torch.equal(again.encode(pixels), tokenizer.encode(pixels))
    assert again.grid(Size(16, 8)) == (4, 2)


def test_bad_input_is_refused(tokenizer: VQTokenizer) -> None:
    with pytest.raises(ValueError, match="width must be a positive multiple of 4, got 15"):
        tokenizer.encode(torch.zeros(1, 3, 16, 15))
    with pytest.raises(ValueError, match=r"pixels must be \[B, 3, H, W\], got \[1, 1, 16, 16\]"):
        tokenizer.encode(torch.zeros(1, 1, 16, 16))
    with pytest.raises(ValueError, match="length must be left out for a code without order, got 3"):
        tokenizer.encode(torch.zeros(1, 3, 16, 16), length=3)
    with pytest.raises(ValueError, match=r"tokens must be \[B, 16\]"):
        tokenizer.decode(torch.zeros(1, 15, dtype=torch.int64), (4, 4))
    with pytest.raises(ValueError, match=r"known must be \[1, 16\], one a cell, got \[1, 4\]"):
        tokenizer.decode(torch.zeros(1, 16, dtype=torch.int64), (4, 4), torch.ones(1, 4).bool())
    with pytest.raises(ValueError, match=r"k must be in 1\.\.31, got 32"):
        tokenizer.neighbours(32)
    with pytest.raises(ValueError, match="codebook_size must be at least 1, got 0"):
        VQTokenizer(codebook_size=0)
    with pytest.raises(ValueError, match=r"multiple of norm_groups=32, got 40 \* 1"):
        VQTokenizer(channels=40)
