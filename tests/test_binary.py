"""The binary tokenizer: agreement with the official code, both checkpoint layouts, refusals."""

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import visual_ar.tokenizers
from visual_ar.accel.rules.parse import parse_rule
from visual_ar.conversion import convert
from visual_ar.size import Size
from visual_ar.tokenizers.binary import BinaryTokenizer, convert_official
from visual_ar.tokenizers.binary_quantizers import GroupedLookupFreeQuantizer, LookupFreeQuantizer
from visual_ar.tokenizers.bit_codes import bits_to_codes

FIXTURES = Path(__file__).parent / "fixtures"
KEYS = json.loads((FIXTURES / "binary_official_keys.json").read_text())


def wave(key: str, shape: list[int]) -> Tensor:
    """The weights with which tests/fixtures/make_binary_fixture.py ran the official models."""
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
    """A BitDance checkpoint: the two networks by name and nothing else."""
    return {key: wave(key, shape) for key, shape in KEYS["tiny"].items()}


@pytest.fixture
def lightning(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The `state_dict` of an Open-MAGVIT2 checkpoint: the averages are what counts."""
    averages = {"model_ema." + key.replace(".", ""): value for key, value in state.items()}
    return {
        **{key: torch.zeros_like(value) for key, value in state.items()},
        "loss.discriminator.block_in.0.weight": torch.zeros(2, 3),
        "model_ema.decay": torch.tensor(0.999),
        "model_ema.num_updates": torch.tensor(7),
        "model_ema.lossdiscriminatorblock_in0weight": torch.zeros(2, 3),
        **averages,
    }


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    return load_file(FIXTURES / "binary_official.safetensors")


@pytest.fixture(scope="module")
def tokenizer() -> BinaryTokenizer:
    torch.manual_seed(0)
    return BinaryTokenizer(
        channels=8,
        channel_multipliers=(1, 2, 2),
        residual_blocks=1,
        bits=12,
        bit_groups=3,
        norm_groups=4,
    ).eval()


def test_gives_the_official_bits_and_pixels(state: dict, expected: dict) -> None:
    config, weights = convert_official(state)
    ours = BinaryTokenizer(**config).double().eval()
    ours.load_state_dict(weights)
    assert torch.allclose(ours.latents(expected["pixels"]), expected["latents"], atol=1e-9)
    tokens = ours.encode(expected["pixels"])
    assert torch.equal(tokens, expected["tokens"])
    decoded = ours.decode(tokens, ours.grid(Size(12, 8)))
    assert torch.allclose(decoded, expected["decoded"], rtol=0, atol=1e-9)


def test_numbers_codes_as_the_official_quantizers_do(expected: dict) -> None:
    tokens = expected["tokens"]
    assert torch.equal(bits_to_codes(tokens, "lsb"), expected["codes"])
    assert torch.equal(bits_to_codes(tokens.unflatten(-1, (2, 3)), "lsb"), expected["group_codes"])


def test_gives_the_official_entropies(expected: dict) -> None:
    """They add 1e-5 inside a logarithm over 64 and 8 values, hence the tolerance."""
    latents = expected["latents"]
    joint, grouped = LookupFreeQuantizer(6)(latents), GroupedLookupFreeQuantizer(6, 2)(latents)
    names = ("sample_entropy", "batch_entropy")
    ours = torch.stack([*(joint.statistics[n] for n in names), joint.losses["commitment"]])
    assert torch.allclose(ours, expected["lfq"], rtol=0, atol=1e-3)
    ours = torch.stack([grouped.statistics[name] for name in names])
    assert torch.allclose(ours, expected["gfq"], rtol=0, atol=1e-3)


def test_published_sizes() -> None:
    with torch.device("meta"):
        default = BinaryTokenizer()
        state = {key: torch.empty(shape) for key, shape in KEYS["256_L"].items()}
        config, weights = convert_official(state)
        small = BinaryTokenizer(channel_multipliers=(1, 2, 2, 4))
        bitdance = BinaryTokenizer(channels=256, bits=32, bit_groups=4)
    shapes = {key: list(value.shape) for key, value in default.state_dict().items()}
    assert shapes == KEYS["256_L"]
    assert config == {
        "channels": 128,
        "channel_multipliers": (1, 1, 2, 2, 4),
        "residual_blocks": 4,
        "bits": 18,
        "bit_groups": 1,
    }
    assert set(weights) == set(KEYS["256_L"])
    for model, name in ((default, "256_L"), (small, "128_L"), (bitdance, "d16c32")):
        assert sum(p.numel() for p in model.parameters()) == KEYS["parameters"][name]


@pytest.mark.parametrize("layout", ["open-magvit2", "bitdance"])
def test_both_layouts_convert(
    layout: str, state: dict, lightning: dict, expected: dict, tmp_path: Path
) -> None:
    if layout == "bitdance":
        source = tmp_path / "ae.safetensors"
        save_file({key: value.float() for key, value in state.items()}, source)
    else:
        source = tmp_path / "epoch.ckpt"
        torch.save({"state_dict": lightning, "epoch": 3, "loops": {"a": [1]}}, source)
    assert convert(source, tmp_path / "out").startswith("BinaryTokenizer with ")
    again = BinaryTokenizer.from_pretrained(tmp_path / "out").eval().double()
    tokens = again.encode(expected["pixels"])
    assert torch.equal(tokens, expected["tokens"])
    decoded = again.decode(tokens, (6, 4))
    assert torch.allclose(decoded, expected["decoded"], rtol=0, atol=1e-4)


def test_conversion_names_what_is_wrong(state: dict, lightning: dict, tmp_path: Path) -> None:
    def refuse(message: str, checkpoint: dict) -> None:
        source = tmp_path / "bad.ckpt"
        torch.save({"state_dict": checkpoint}, source)
        with pytest.raises(ValueError, match=message):
            convert(source, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    some = {k: v for k, v in lightning.items() if k != "model_ema.encoderconv_inweight"}
    refuse("running averages, but none of encoder.conv_in.weight: model_ema.encoder", some)
    key = "decoder.up.1.upsample.conv1.bias"
    refuse(rf"lacks the parameter {key}", {k: v for k, v in state.items() if k != key})
    refuse(rf"{key} must have shape \[256\], got \[3\]", state | {key: torch.zeros(3)})
    refuse("that the model lacks: encoder.extra", state | {"encoder.extra": torch.zeros(1)})
    refuse(
        "has no encoder.conv_out.weight",
        {k: v for k, v in state.items() if k != "encoder.conv_out.weight"},
    )
    refuse(
        "widths that 32 divides",
        state | {"encoder.down.1.block.0.conv1.weight": torch.zeros(40, 32, 3, 3)},
    )
    refuse(
        "decoder that draws noise is not supported",
        state | {"decoder.conv_in.weight": torch.zeros(64, 12, 3, 3)},
    )
    most_first = torch.tensor([32, 16, 8, 4, 2, 1])
    refuse(r"first bit least \(lsb\).*quantize.mask", state | {"quantize.mask": most_first})
    config, _ = convert_official(state | {"quantize.mask": most_first.flip(0)})
    assert config["bits"] == 6


def test_groups_of_wide_tokens(state: dict) -> None:
    wide = dict(state)
    wide["encoder.conv_out.weight"] = torch.zeros(256, 64, 1, 1)
    wide["decoder.conv_in.weight"] = torch.zeros(64, 256, 3, 3)
    config, _ = convert_official(wide)
    assert (config["bits"], config["bit_groups"]) == (256, 32)
    assert BinaryTokenizer(**config).codebook_size == 2**256


def test_bits_survive_a_round_trip_through_codes(tokenizer: BinaryTokenizer) -> None:
    tokens = torch.rand(2, 6, 12, generator=torch.Generator().manual_seed(0)) < 0.5
    codes = tokenizer.lookup(tokens, (2, 3))
    assert codes.shape == (2, 12, 2, 3)
    assert torch.equal(codes.flatten(2).transpose(1, 2) > 0, tokens)
    assert torch.equal(tokenizer.quantize.encode(codes * 3), tokens)


def test_pictures_are_independent(tokenizer: BinaryTokenizer) -> None:
    pixels = torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    together = tokenizer.encode(pixels)
    assert together.shape == (3, 24, 12)
    assert together.dtype == torch.bool
    assert torch.equal(tokenizer.encode(pixels[1:2]), together[1:2])
    drawn, quantized = tokenizer(pixels)
    assert torch.equal(quantized.tokens, together)
    assert torch.allclose(drawn, tokenizer.decode(together, (4, 6)), atol=1e-5)


def test_unknown_cells_show_the_mean_code(tokenizer: BinaryTokenizer) -> None:
    tokens = torch.rand(2, 16, 12, generator=torch.Generator().manual_seed(1)) < 0.5
    known = torch.ones(2, 16, dtype=torch.bool)
    full = tokenizer.decode(tokens, (4, 4))
    assert torch.equal(tokenizer.decode(tokens, (4, 4), known), full)
    known[:, 3:] = False
    changed = tokens.clone()
    changed[:, 3:] = ~changed[:, 3:]
    part = tokenizer.decode(tokens, (4, 4), known)
    assert torch.equal(part, tokenizer.decode(changed, (4, 4), known))
    assert not torch.allclose(part, full)


def test_trains(tokenizer: BinaryTokenizer) -> None:
    pixels = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    drawn, quantized = tokenizer(pixels)
    loss = (drawn - pixels).square().mean() + sum(quantized.losses.values())
    gradients = torch.autograd.grad(loss, list(tokenizer.parameters()))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert gradients[0].abs().max() > 0  # of encoder.conv_in, through the signs


def test_saved_and_loaded_is_the_same(tokenizer: BinaryTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = visual_ar.tokenizers.BinaryTokenizer.from_pretrained(tmp_path).eval()
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(again.encode(pixels), tokenizer.encode(pixels))
    assert (again.grid(Size(16, 8)), again.bits, again.codebook_size) == ((4, 2), 12, 4096)


def test_bad_input_is_refused(tokenizer: BinaryTokenizer) -> None:
    tokens = torch.zeros(1, 16, 12, dtype=torch.bool)
    wrong = r"tokens must be bool \[B, 16, 12\] for the grid \(4, 4\), got"
    for bad in (tokens.long(), tokens[..., 0], tokens[:, :15], tokens[..., :11]):
        with pytest.raises(ValueError, match=wrong):
            tokenizer.decode(bad, (4, 4))
        with pytest.raises(ValueError, match=wrong):
            tokenizer.lookup(bad, (4, 4))
    with pytest.raises(ValueError, match=r"known must be \[1, 16\], one a cell, got \[1, 4\]"):
        tokenizer.decode(tokens, (4, 4), torch.ones(1, 4).bool())
    with pytest.raises(ValueError, match=r"grid must have at least 2 cells.*got \(1, 1\)"):
        tokenizer.decode(tokens[:, :1], (1, 1))
    with pytest.raises(ValueError, match="width must be a positive multiple of 4, got 15"):
        tokenizer.encode(torch.zeros(1, 3, 16, 15))
    with pytest.raises(ValueError, match=r"pixels must be \[B, 3, H, W\], got \[1, 1, 16, 16\]"):
        tokenizer.encode(torch.zeros(1, 1, 16, 16))
    with pytest.raises(ValueError, match="length must be left out for a code without order, got 3"):
        tokenizer.encode(torch.zeros(1, 3, 16, 16), length=3)
    with pytest.raises(ValueError, match="12 bits has no table of neighbours"):
        tokenizer.neighbours(3)
    with pytest.raises(ValueError, match="12 bits has no code book"):
        tokenizer.code_vectors()
    with pytest.raises(ValueError, match="groups must divide the 10 bits of a token, got 4"):
        BinaryTokenizer(bits=10, bit_groups=4)
    with pytest.raises(ValueError, match="residual_blocks must be at least 1, got 0"):
        BinaryTokenizer(residual_blocks=0)
    with pytest.raises(ValueError, match=r"multiple of norm_groups=32, got 40 \* 1"):
        BinaryTokenizer(channels=40)


@pytest.mark.parametrize(
    ("rule", "message"), [("lantern", "no table of neighbours"), ("grouped", "no code book")]
)
def test_rules_that_need_a_code_book_are_refused(
    tokenizer: BinaryTokenizer, rule: str, message: str
) -> None:
    with pytest.raises(ValueError, match=f"12 bits has {message}"):
        parse_rule(rule).bind(tokenizer, torch.device("cpu"))
