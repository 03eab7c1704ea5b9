"""Quantizers: brute force, an independent implementation, half precision, and refusals."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from visual_ar.tokenizers import bit_codes
from visual_ar.tokenizers.binary_quantizers import (
    BinaryQuantizer,
    BinarySphericalQuantizer,
    GroupedLookupFreeQuantizer,
    LookupFreeQuantizer,
)
from visual_ar.tokenizers.quantizers import FiniteScalarQuantizer, Quantizer, VectorQuantizer

BINARY = {
    "lfq": lambda d, groups=1: LookupFreeQuantizer(d, groups, inverse_temperature=0.7),
    "lfq-published": lambda d, groups=1: LookupFreeQuantizer(d, groups),
    "gfq": lambda d, groups=1: GroupedLookupFreeQuantizer(d, groups, inverse_temperature=0.7),
    "bsq": lambda d, groups=1: BinarySphericalQuantizer(d, groups),
}


def latents_of(d: int, dtype: torch.dtype = torch.float64, size: float = 1.0) -> Tensor:
    draw = torch.Generator().manual_seed(d)
    return (torch.randn(2, d, 2, 3, generator=draw, dtype=torch.float64) * size).to(dtype)


def corners(d: int) -> Tensor:
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=d)), dtype=torch.float64)


def brute_entropies(quantizer: BinaryQuantizer, latents: Tensor) -> tuple[Tensor, Tensor]:
    """By the definition: a softmax over every corner, each group by itself."""
    if isinstance(quantizer, BinarySphericalQuantizer):
        latents = latents / latents.square().sum(1, keepdim=True).sqrt()
    vectors = latents.permute(0, 2, 3, 1).flatten(0, 2)
    kappa, samples, laws = quantizer.inverse_temperature, [], []
    for part in vectors.chunk(quantizer.groups, dim=-1):
        cube = corners(part.shape[-1]) * quantizer.scale
        distances = (part[:, None] - cube).square().sum(-1)  # 2 u.c and a constant
        law = torch.softmax(-kappa * distances, -1)
        samples.append(torch.special.entr(law).sum(-1).mean())
        laws.append(law)
    if isinstance(quantizer, GroupedLookupFreeQuantizer):
        pooled = torch.cat(laws).mean(0)
        return torch.stack(samples).mean(), torch.special.entr(pooled).sum()
    batch = [torch.special.entr(law.mean(0)).sum() for law in laws]
    return torch.stack(samples).sum(), torch.stack(batch).sum()


@pytest.mark.parametrize(("d", "groups"), [(1, 1), (6, 2), (6, 3), (10, 1), (10, 5)])
@pytest.mark.parametrize("name", ["lfq", "gfq", "bsq"])
def test_entropies_and_their_gradients_equal_brute_force(name: str, d: int, groups: int) -> None:
    quantizer = BINARY[name](d, groups)
    ours, theirs = latents_of(d).requires_grad_(), latents_of(d).requires_grad_()
    quantized = quantizer(ours)
    sample, batch = brute_entropies(quantizer, theirs)
    close = {"rtol": 0, "atol": 1e-6}
    assert torch.allclose(quantized.statistics["sample_entropy"], sample, **close)
    assert torch.allclose(quantized.statistics["batch_entropy"], batch, **close)
    assert torch.allclose(quantized.losses["entropy"], sample - batch, **close)
    quantized.losses["entropy"].backward()
    (sample - batch).backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.allclose(ours.grad, theirs.grad, **close)
    assert ours.grad.abs().max() > 1e-4 or d == 1


def test_the_bitwise_batch_entropy_would_credit_too_much() -> None:
    """The batch entropy is joint within a group: one group is below the sum over single bits."""
    joint = LookupFreeQuantizer(8)(latents_of(8)).statistics["batch_entropy"]
    bitwise = LookupFreeQuantizer(8, groups=8)(latents_of(8)).statistics["batch_entropy"]
    assert joint < bitwise - 0.1


def test_signs_are_the_tokens_and_zero_is_off() -> None:
    latents = torch.tensor([-2.0, -0.0, 0.0, 1e-30, 3.0]).reshape(1, 5, 1, 1)
    tokens = LookupFreeQuantizer(5).encode(latents)
    assert tokens.tolist() == [[[False, False, False, True, True]]]
    assert torch.equal(LookupFreeQuantizer(5)(latents).tokens, tokens)
    codes = BinarySphericalQuantizer(5).lookup(tokens, (1, 1))
    assert torch.allclose(codes.flatten() * math.sqrt(5), torch.tensor([-1.0, -1, -1, 1, 1]))


@pytest.mark.parametrize("name", BINARY)
def test_codes_are_those_of_the_tokens(name: str) -> None:
    quantizer = BINARY[name](6)
    latents = latents_of(6, torch.float32)
    quantized = quantizer(latents)
    assert torch.allclose(quantized.codes, quantizer.lookup(quantized.tokens, (2, 3)), atol=1e-6)
    assert torch.equal(quantized.tokens, quantizer.encode(latents))
    assert torch.equal(quantizer.encode(quantized.codes), quantized.tokens)


@pytest.mark.parametrize("scaled", [False, True])
def test_gradient_of_bsq_passes_with_either_scale(scaled: bool) -> None:
    d = 6
    latents, weights = latents_of(d).requires_grad_(), latents_of(d + 1)[:, :d]
    codes = BinarySphericalQuantizer(d, scaled_gradient=scaled)(latents).codes
    (codes * weights).sum().backward()
    other = latents_of(d).requires_grad_()
    expected = F.normalize(other, dim=1) * (d**-0.5 if scaled else 1.0)
    (expected * weights).sum().backward()
    assert torch.allclose(latents.grad, other.grad, atol=1e-6)


def test_gradients_of_lfq_and_fsq() -> None:
    weights = latents_of(7)[:, :6]
    latents = latents_of(6).requires_grad_()
    (LookupFreeQuantizer(6)(latents).codes * weights).sum().backward()
    assert torch.allclose(latents.grad, weights, atol=1e-6)

    fsq = FiniteScalarQuantizer([8, 5])
    latents, other = latents_of(2).requires_grad_(), latents_of(2).requires_grad_()
    fsq(latents).codes.sum().backward()
    half = torch.tensor([7, 4]).double() * 1.001 / 2
    shift = torch.atanh(torch.tensor([0.5, 0.0]).double() / half)
    bounded = (
        torch.tanh(other + shift[:, None, None]) * (half / torch.tensor([4, 2]))[:, None, None]
    )
    bounded.sum().backward()
    assert torch.allclose(latents.grad, other.grad, atol=1e-6)


def test_commitment_by_hand() -> None:
    latents = latents_of(4)
    signs = torch.where(latents > 0, 1.0, -1.0)
    lfq = LookupFreeQuantizer(4)(latents).losses["commitment"]
    assert torch.allclose(lfq, (latents - signs).square().mean(), atol=1e-6)
    bsq = BinarySphericalQuantizer(4)(latents).losses["commitment"]
    unit = latents / latents.norm(dim=1, keepdim=True)
    assert torch.allclose(bsq, (unit - signs / 2).square().mean(), atol=1e-6)
    torch.manual_seed(0)
    quantizer = VectorQuantizer(9, 4)
    quantized = quantizer(latents.float())
    gap = quantized.latents - quantizer.lookup(quantized.tokens, (2, 3))
    for name in ("commitment", "codebook"):
        assert torch.allclose(quantized.losses[name], gap.square().mean())
    quantized.losses["codebook"].backward()
    assert quantizer.embedding.weight.grad is not None


def test_autocast_does_not_change_which_code_is_nearest() -> None:
    torch.manual_seed(0)
    quantizer, latents = VectorQuantizer(4096, 8), torch.randn(4, 8, 16, 16)
    expected = quantizer(latents)
    with torch.autocast("cpu", torch.bfloat16):
        got, alone = quantizer(latents), quantizer.encode(latents)
        narrow = quantizer(latents.bfloat16())
    assert torch.equal(got.tokens, expected.tokens)
    assert torch.equal(alone, expected.tokens)
    assert torch.equal(got.codes, expected.codes)
    assert torch.equal(narrow.tokens, quantizer(latents.bfloat16().float()).tokens)
    assert narrow.codes.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-3, 1.0, 3e4])
@pytest.mark.parametrize("name", BINARY)
def test_half_precision_stays_finite(name: str, size: float, dtype: torch.dtype) -> None:
    latents = latents_of(8, size=size).clamp(-6e4, 6e4).to(dtype).requires_grad_()
    quantizer = BINARY[name](8, 2)
    with torch.autocast("cpu", torch.bfloat16):
        quantized = quantizer(latents)
    assert quantized.codes.dtype == dtype
    assert all(loss.dtype == torch.float32 for loss in quantized.losses.values())
    full = BINARY[name](8, 2)(latents.detach().float())
    assert torch.equal(quantized.losses["entropy"], full.losses["entropy"])
    (quantized.codes.float().sum() + quantized.losses["entropy"]).backward()
    assert torch.isfinite(quantized.losses["commitment"])
    assert torch.isfinite(latents.grad).all()


def test_bit_entropy_is_exact_far_from_zero() -> None:
    log_odds = torch.tensor([-3e4, -30.0, -5.0, 0.0, 0.1, 20.0, 3e4])
    p = torch.sigmoid(log_odds.double())
    q = torch.sigmoid(-log_odds.double())
    exact = torch.special.entr(p) + torch.special.entr(q)
    assert torch.allclose(bit_codes.bit_entropy(log_odds).double(), exact, rtol=1e-4, atol=0)


def test_statistics_tell_unused_bits() -> None:
    latents = latents_of(3).abs() * torch.tensor([1.0, -1.0, 1.0]).reshape(3, 1, 1)
    latents[:, 2, 0] *= -1  # half of the cells
    entropy = LookupFreeQuantizer(3)(latents).statistics["bit_entropy"]
    assert torch.allclose(entropy, torch.tensor([0.0, 0.0, 1.0]))
    quantizer = VectorQuantizer(4, 2)
    with torch.no_grad():
        quantizer.embedding.weight.copy_(torch.tensor([[1, 0], [0, 1], [-1, 0], [0, -1]]))
    used = torch.tensor([[1.0, 0], [0, 1]]).T.reshape(1, 2, 1, 2)
    assert torch.isclose(quantizer(used).statistics["perplexity"], torch.tensor(2.0))


def test_agrees_with_an_independent_lfq_and_bsq() -> None:
    library = pytest.importorskip("vector_quantize_pytorch")
    latents = latents_of(6, torch.float32, size=0.5)
    for ours, spherical, kappa in (
        (LookupFreeQuantizer(6, inverse_temperature=0.4), False, 0.4),
        (BinarySphericalQuantizer(6, scaled_gradient=False), True, 1.0),
    ):
        theirs = library.LFQ(codebook_size=64, spherical=spherical, commitment_loss_weight=1.0)
        (codes, codes_index, _), parts = theirs.train()(
            latents, inv_temperature=kappa, return_loss_breakdown=True
        )
        quantized = ours(latents)
        index = bit_codes.bits_to_codes(quantized.tokens, "msb")
        assert torch.equal(index, codes_index.flatten(1).long())
        assert torch.allclose(quantized.codes, codes, atol=1e-6)
        sample, batch = (quantized.statistics[n] for n in ("sample_entropy", "batch_entropy"))
        assert torch.allclose(sample, parts.per_sample_entropy, atol=1e-5)
        assert torch.allclose(batch, parts.batch_entropy, atol=1e-5)
        assert torch.allclose(quantized.losses["commitment"], parts.commitment, atol=1e-6)


def test_agrees_with_an_independent_fsq() -> None:
    library = pytest.importorskip("vector_quantize_pytorch")
    levels = [8, 5, 4, 3]
    latents = latents_of(4, torch.float32, size=2.0)
    codes, index = library.FSQ(levels)(latents)
    quantized = FiniteScalarQuantizer(levels)(latents)
    assert torch.equal(quantized.tokens, index.flatten(1).long())
    assert torch.allclose(quantized.codes, codes, atol=1e-6)
    assert torch.allclose(FiniteScalarQuantizer(levels).lookup(quantized.tokens, (2, 3)), codes)


def test_agrees_with_an_independent_vq() -> None:
    library = pytest.importorskip("vector_quantize_pytorch")
    torch.manual_seed(0)
    ours = VectorQuantizer(16, 4)
    theirs = library.VectorQuantize(4, 16, use_cosine_sim=True, accept_image_fmap=True).eval()
    theirs._codebook.embed.data.copy_(ours.codebook()[None])
    latents = latents_of(4, torch.float32)
    codes, index, _ = theirs(latents)
    assert torch.equal(ours.encode(latents), index.flatten(1))
    assert torch.allclose(ours(latents).codes, codes, atol=1e-6)


def test_fsq_codes_round_trip() -> None:
    fsq = FiniteScalarQuantizer([4, 3, 5])
    every = torch.arange(60).reshape(1, 60)
    codes = fsq.lookup(every, (6, 10))
    assert codes.abs().max() == 1
    # Undo the bound to come back to the same codes.
    levels = torch.tensor([4, 3, 5])[:, None, None]
    half = (levels - 1) * 1.001 / 2
    offset = torch.where(levels % 2 == 0, 0.5, 0.0)
    latents = torch.atanh((codes * (levels // 2) + offset) / half) - torch.atanh(offset / half)
    assert torch.equal(fsq.encode(latents), every)
    assert fsq(latents).statistics["perplexity"].round() == 60


@pytest.mark.parametrize("d", [1, 18, 31, 32, 33, 63, 64, 100, 256])
@pytest.mark.parametrize("order", ["lsb", "msb"])
def test_integers_are_exact(d: int, order: bit_codes.BitOrder) -> None:
    bits = torch.rand(3, 4, d, generator=torch.Generator().manual_seed(d)) < 0.5
    bits[0, 0], bits[0, 1] = True, False
    integers = bit_codes.bits_to_integers(bits, order)
    assert integers[0, 0] == 2**d - 1
    assert integers[0, 1] == 0
    text = "".join(str(int(b)) for b in bits[1, 1])
    assert integers[1, 1] == int(text if order == "msb" else text[::-1], 2)
    if d <= 63:
        codes = bit_codes.bits_to_codes(bits, order)
        assert np.array_equal(codes.numpy().astype(object), integers)
        assert torch.equal(bit_codes.codes_to_bits(codes, d, order), bits)


def test_the_two_bit_orders_differ() -> None:
    first = torch.tensor([True] + [False] * 7)
    assert int(bit_codes.bits_to_codes(first, "lsb")) == 1
    assert int(bit_codes.bits_to_codes(first, "msb")) == 128


def test_quantizers_share_a_protocol() -> None:
    for quantizer in (
        VectorQuantizer(8, 4),
        FiniteScalarQuantizer([3] * 4),
        *(make(4) for make in BINARY.values()),
    ):
        kept: Quantizer = quantizer.eval()
        latents = latents_of(4, torch.float32)
        quantized = kept(latents)
        assert torch.equal(quantized.tokens, kept.encode(latents))
        assert quantized.tokens.shape[:2] == (2, 6)
        assert kept.lookup(quantized.tokens, (2, 3)).shape == quantized.codes.shape
        assert all(loss.ndim == 0 for loss in quantized.losses.values())
        assert not any(number.requires_grad for number in quantized.statistics.values())


def test_bad_input_is_refused() -> None:
    def refuse(message: str, make, *arguments, **options) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            make(*arguments, **options)
        assert "\n" not in str(caught.value)

    refuse("groups must divide the 10 bits of a token, got 4", LookupFreeQuantizer, 10, 4)
    refuse("at most 18 bits.*got 64 bits in 2 groups", LookupFreeQuantizer, 64, 2)
    refuse("bits must be at least 1, got 0", BinarySphericalQuantizer, 0)
    refuse("inverse_temperature must be above 0, got 0", LookupFreeQuantizer, 4, 1, 0)
    refuse(r"levels must be one or more numbers of at least 2, got \[\]", FiniteScalarQuantizer, [])
    refuse(r"fewer than 2\^63 codes", FiniteScalarQuantizer, [2] * 63)
    quantizer = LookupFreeQuantizer(4)
    for call in (quantizer, quantizer.encode, FiniteScalarQuantizer([3] * 4)):
        refuse(
            r"latents must be float \[B, 4, h, w\], got .*\[1, 3,", call, torch.zeros(1, 3, 2, 2)
        )
    refuse("latents must be float", quantizer, torch.zeros(1, 4, 2, 2, dtype=torch.int64))
    tokens = torch.zeros(1, 6, 4, dtype=torch.bool)
    wrong = r"tokens must be bool \[B, 6, 4\] for the grid \(2, 3\), got"
    for bad in (tokens.long(), tokens[:, :5], tokens[..., :3], tokens[0]):
        refuse(wrong, quantizer.lookup, bad, (2, 3))
    fsq = FiniteScalarQuantizer([3] * 4)
    refuse(r"tokens must be in 0\.\.80, got 81", fsq.lookup, torch.tensor([[3, 81]]), (1, 2))
    for bad in (torch.zeros(1, 2), torch.zeros(1, 3).long()):
        refuse(r"tokens must be int64 \[B, 2\] for the grid \(1, 2\)", fsq.lookup, bad, (1, 2))


def test_integer_codes_beyond_their_range_are_refused() -> None:
    bits = torch.zeros(2, 64, dtype=torch.bool)
    with pytest.raises(ValueError, match="at most 63 bits, got 64; use bits_to_integers"):
        bit_codes.bits_to_codes(bits, "lsb")
    with pytest.raises(ValueError, match='bit order must be "lsb" or "msb", got \'big\''):
        bit_codes.bits_to_codes(bits, "big")
    with pytest.raises(ValueError, match=r"bits must be bool \[\.\.\., d\], got torch.int64"):
        bit_codes.bits_to_integers(bits.long(), "lsb")
    for code in (8, -1):
        with pytest.raises(ValueError, match=rf"codes of 3 bits must be in 0\.\.7, got {code}"):
            bit_codes.codes_to_bits(torch.tensor([1, code]), 3, "lsb")
    with pytest.raises(ValueError, match=r"bits must be in 1\.\.63 for int64 codes, got 64"):
        bit_codes.codes_to_bits(torch.tensor([1]), 64, "lsb")
    with pytest.raises(ValueError, match=r"codes must be int64, got torch.float32"):
        bit_codes.codes_to_bits(torch.tensor([1.0]), 3, "lsb")
