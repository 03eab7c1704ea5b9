"""Laws over bits and their exact acceptance rules: enumeration, counting, known mistakes."""

import itertools

import pytest
import torch
from torch import Tensor

from visual_ar.sampling import Sampling, Warps, bit_uniforms
from visual_ar.testing import chi_square
from visual_ar.tokens.bits import BitLaw, Bits
from visual_ar.tokens.numbers import Numbers

# Chances whose ratios have denominators 1, 2 and 3, so that a grid of 6 uniforms is exact.
TARGET = torch.tensor([0.25, 0.75, 0.5, 0.25])
DRAFT = torch.tensor([0.75, 0.5, 0.25, 0.5])


def law(chances: Tensor, count: int = 1) -> BitLaw:
    """The same law `count` times: [count, 1] laws of len(chances) bits."""
    return BitLaw(torch.logit(chances.double()).float().expand(count, 1, -1))


def every(d: int) -> Tensor:
    """All 2^d tokens: bool [2^d, d], the first bit most significant."""
    return torch.tensor(list(itertools.product((False, True), repeat=d)))


def exact(chances: Tensor) -> Tensor:
    """The probability of every token, fp64 [2^d], in the order of `every`."""
    return torch.where(every(len(chances)), chances.double(), 1 - chances.double()).prod(-1)


def index(tokens: Tensor) -> Tensor:
    """Tokens as places in `every`. bool [..., d]; int64 [...]."""
    places = torch.arange(tokens.shape[-1] - 1, -1, -1)
    return (tokens.long() << places).sum(-1)


def emitted_by_bit(rule, p: Tensor, q: Tensor, grid: int = 6) -> tuple[Tensor, float]:
    """The exact law of what a per-bit rule emits, and the chance of accepting a draft.

    Every draft meets every combination of uniforms at the middles of `grid` equal intervals.
    """
    d = len(p)
    middles = (torch.arange(grid) + 0.5) / grid
    u = torch.cartesian_prod(*[middles] * d).reshape(-1, d)
    count, drafts = len(u), every(d)
    tokens = drafts.repeat_interleave(count, 0)[:, None]
    given = rule(
        law(p, len(tokens)), law(q, len(tokens)), tokens, u.repeat(len(drafts), 1)[:, None]
    )
    accepted = (given == tokens).all(-1)[:, 0]
    weight = exact(q).repeat_interleave(count) / count
    emitted = torch.zeros(2**d, dtype=torch.float64)
    emitted.index_add_(0, index(given[:, 0]), weight)
    return emitted, float((weight * accepted).sum())


@pytest.mark.parametrize("d", [1, 2, 3, 4])
def test_the_bit_rule_emits_the_target_law(d: int) -> None:
    p, q = TARGET[:d], DRAFT[:d]
    emitted, accepted = emitted_by_bit(BitLaw.couple_parts, p, q)
    assert torch.allclose(emitted, exact(p), rtol=0, atol=1e-6)
    assert accepted == pytest.approx(float((1 - (p - q).abs()).prod()), abs=1e-6)


def redraws_refused_bits(p: BitLaw, q: BitLaw, drafts: Tensor, u: Tensor) -> Tensor:
    """Known wrong: a refused bit is drawn from p, where its residual is the other value."""
    kept = u * q.part_probs(drafts) < p.part_probs(drafts)
    ones = p.part_probs(torch.ones_like(drafts))
    again = torch.rand(u.shape, generator=torch.Generator().manual_seed(1)) < ones
    return torch.where(kept, drafts, again)


def keeps_likelier_bits(p: BitLaw, q: BitLaw, drafts: Tensor, u: Tensor) -> Tensor:
    """Known wrong: the ratio upside down."""
    kept = u * p.part_probs(drafts) < q.part_probs(drafts)
    return drafts == kept


@pytest.mark.parametrize("mutant", [redraws_refused_bits, keeps_likelier_bits])
def test_wrong_bit_rules_are_caught(mutant) -> None:
    emitted, _ = emitted_by_bit(mutant, TARGET[:3], DRAFT[:3])
    assert 0.5 * (emitted - exact(TARGET[:3])).abs().sum() > 0.05
    tokens = decoded_by_bit(mutant)
    assert chi_square(index(tokens), exact(TARGET)) < 1e-6


def decoded_by_bit(rule, pictures: int = 8_000) -> Tensor:
    """Draws drafts from q and tests them: bool [pictures, d]."""
    p, q = law(TARGET, pictures), law(DRAFT, pictures)
    seeds, ranks = torch.arange(pictures)[:, None], torch.zeros(1, 1, dtype=torch.int64)
    drafts = q.draw(bit_uniforms(seeds, ranks, ranks, 4))
    return rule(p, q, drafts, bit_uniforms(seeds, ranks, ranks + 1, 4))[:, 0]


def test_counts_of_the_bit_rule_fit_the_target() -> None:
    assert chi_square(index(decoded_by_bit(BitLaw.couple_parts)), exact(TARGET)) > 1e-3


@pytest.mark.parametrize("d", [1, 2, 3, 4])
def test_the_token_rule_and_its_residual_emit_the_target_law(d: int) -> None:
    p, q, tokens = TARGET[:d], DRAFT[:d], every(d)
    middles = (torch.arange(6**d) + 0.5) / 6**d  # exact: ratios have denominators 2^i 3^j
    drafts = tokens.repeat_interleave(6**d, 0)[:, None]
    u = middles.repeat(2**d)[:, None]
    passes = law(p, len(drafts)).keep(law(q, len(drafts)), drafts, u[..., None])
    chance = passes.view(2**d, -1).double().mean(1)
    kept = exact(q) * chance
    assert torch.allclose(kept, torch.minimum(exact(p), exact(q)), atol=1e-6)
    proposals = tokens[:, None]
    ratio = law(p, 2**d).log_ratio(law(q, 2**d), proposals)[:, 0].double()
    keep = (1 - (-ratio).exp()).clamp(min=0)
    rest = exact(p) * keep
    assert torch.allclose(rest, (exact(p) - exact(q)).clamp(min=0), atol=1e-6)
    # One draft costs one proposal on average: a proposal is kept as often as a draft is refused.
    assert float(rest.sum()) == pytest.approx(1 - float(kept.sum()), abs=1e-6)
    emitted = kept + (1 - kept.sum()) * rest / rest.sum()
    assert torch.allclose(emitted, exact(p), atol=1e-6)


def decoded_by_token(redraw, pictures: int = 8_000) -> Tensor:
    p, q = law(TARGET, pictures), law(DRAFT, pictures)
    seed = torch.arange(pictures)
    rank, attempt = torch.zeros(pictures, 1, dtype=torch.int64), torch.ones_like(seed)
    drafts = q.draw(bit_uniforms(seed[:, None], rank, rank, 4))
    u = bit_uniforms(seed[:, None], rank, attempt[:, None], 1)
    passes = p.keep(q, drafts, u)
    instead = redraw(p, q, seed, rank, attempt)
    return torch.where(passes[..., None], drafts, instead)[:, 0]


def residual(p: BitLaw, q: BitLaw, seed: Tensor, rank: Tensor, attempt: Tensor):
    """Draws of the residual, whatever the refused drafts, and whether they are some."""
    kind = Bits(p.bits)
    numbers = kind.numbers(
        kind.uniforms(seed[:, None], rank, attempt[:, None]), seed, rank, attempt
    )
    assert isinstance(numbers, Numbers)
    return p.residual(q, torch.zeros(*rank.shape, p.bits, dtype=torch.bool), numbers)


def until_kept(p: BitLaw, q: BitLaw, seed: Tensor, rank: Tensor, attempt: Tensor) -> Tensor:
    """Draws of the residual, asking again where no proposal was kept."""
    tokens, found = residual(p, q, seed, rank, attempt)
    for more in range(1, 20):
        again, now = residual(p, q, seed, rank, attempt + more)
        tokens = torch.where(found[..., None], tokens, again)
        found = found | now
    assert found.all()
    return tokens


def redraws_from_p(p: BitLaw, q: BitLaw, seed: Tensor, rank: Tensor, attempt: Tensor) -> Tensor:
    """Known wrong: the replacement is drawn from p, not from what q left of it."""
    return p.draw(bit_uniforms(seed[:, None], rank, attempt[:, None], p.bits, stream=1))


def test_counts_of_the_token_rule_fit_the_target() -> None:
    assert chi_square(index(decoded_by_token(until_kept)), exact(TARGET)) > 1e-3
    assert chi_square(index(decoded_by_token(redraws_from_p)), exact(TARGET)) < 1e-6


def test_a_residual_is_what_the_draft_left_and_does_not_depend_on_its_neighbours() -> None:
    count = 4000
    p, q, seed = law(TARGET, count), law(DRAFT, count), torch.arange(count)
    rank, attempt = torch.full((count, 1), 5), torch.full((count,), 2)
    tokens, found = residual(p, q, seed, rank, attempt)
    assert found.all()
    rest = (exact(TARGET) - exact(DRAFT)).clamp(min=0)
    assert chi_square(index(tokens[:, 0]), rest / rest.sum()) > 1e-3
    alone, _ = residual(law(TARGET), law(DRAFT), seed[7:8], rank[:1], attempt[:1])
    assert torch.equal(alone, tokens[7:8])


def test_a_residual_that_is_rare_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visual_ar.tokens.bits.PROPOSALS", 1)
    count = 4000
    p, q, seed = law(TARGET, count), law(DRAFT, count), torch.arange(count)
    rank, attempt = torch.full((count, 1), 5), torch.ones(count, dtype=torch.int64)
    _, found = residual(p, q, seed, rank, attempt)
    chance = float((exact(TARGET) - exact(DRAFT)).clamp(min=0).sum())
    assert float(found.float().mean()) == pytest.approx(chance, abs=0.03)
    rest = (exact(TARGET) - exact(DRAFT)).clamp(min=0)
    kept = until_kept(p, q, seed, rank, attempt)
    assert chi_square(index(kept[:, 0]), rest / rest.sum()) > 1e-3
    _, equal = residual(p, p, seed, rank, attempt)
    assert equal.all()  # rounding alone refuses such a draft, and any draw from p replaces it


def test_equal_laws_are_always_accepted() -> None:
    p, tokens = law(TARGET, 16), every(4)[:, None]
    nearly_one = torch.full((16, 1, 4), 1 - 2.0**-24)
    assert torch.equal(p.couple_parts(p, tokens, nearly_one), tokens)
    assert p.keep(p, tokens, nearly_one).all()


def test_whole_tokens_are_accepted_at_least_as_often() -> None:
    draw = torch.Generator().manual_seed(0)
    for d in (2, 3, 4):
        p, q = torch.rand(2, d, generator=draw) * 0.9 + 0.05
        by_token = float(torch.minimum(exact(p), exact(q)).sum())
        by_bit = float((1 - (p - q).abs()).prod())
        assert by_token >= by_bit - 1e-6


def test_a_law_samples_and_scores() -> None:
    u = bit_uniforms(torch.arange(20_000)[:, None], torch.tensor([[3]]), torch.tensor([[0]]), 4)
    assert chi_square(index(law(TARGET, 20_000).draw(u)[:, 0]), exact(TARGET)) > 1e-3
    tokens = every(4)[:, None]
    assert torch.allclose(law(TARGET, 16).prob(tokens)[:, 0].double(), exact(TARGET), atol=1e-6)
    wide = BitLaw(torch.full((1, 1, 256), 80.0))
    tokens = torch.ones(1, 1, 256, dtype=torch.bool)
    assert wide.log_prob(tokens).abs() < 1e-6
    assert float(wide.log_prob(~tokens)) == pytest.approx(-80 * 256, rel=1e-6)


def test_wide_tokens_that_underflow_are_still_judged() -> None:
    """A probability of 256 fair bits is 0 in fp32; its ratio is not."""
    p, q = BitLaw(torch.full((1, 1, 256), 0.02)), BitLaw(torch.zeros(1, 1, 256))
    ones = torch.ones(1, 1, 256, dtype=torch.bool)
    u = torch.full((1, 1, 1), 0.5)
    assert p.keep(q, ones, u).all()
    assert not p.keep(q, ~ones, u).any()


def test_guidance_and_temperature_are_per_bit() -> None:
    sampling = Sampling.create([1, 2], guidance=3.0, temperature=0.5)
    conditional, unconditional = torch.randn(2, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    warps, scale = Warps.of(sampling), torch.tensor([[3.0], [1.0]]).expand(2, 5)
    ours = Bits(4).law(conditional, unconditional, scale, sampling, warps)
    expected = (unconditional + scale[..., None] * (conditional - unconditional)) / 0.5
    assert torch.allclose(ours.log_odds, expected, atol=1e-5)
    plain = Bits(4).law(conditional.bfloat16(), None, scale, sampling, Warps())
    assert plain.log_odds.dtype == torch.float32
    assert torch.equal(plain.log_odds, conditional.bfloat16().float())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 9}, r"top_k must be 0 \(off\) for a law over bits.*cannot be ranked, got 9"),
        ({"top_p": 0.9}, r"top_p must be 1 \(off\) for a law over bits.*got a value below 1"),
    ],
)
def test_warps_that_rank_tokens_are_refused(options: dict, message: str) -> None:
    sampling = Sampling.create([1], **options)
    logits = torch.zeros(1, 1, 4)
    with pytest.raises(ValueError, match=message) as caught:
        Bits(4).law(logits, None, torch.ones(1, 1), sampling, Warps.of(sampling))
    assert "\n" not in str(caught.value)


def test_bit_uniforms_are_independent_and_keyed() -> None:
    seed, rank, attempt = torch.arange(500)[:, None], torch.tensor([[4, 5]]), torch.tensor([[1]])
    base = bit_uniforms(seed, rank, attempt, 9)
    assert base.shape == (500, 2, 9)
    assert torch.equal(bit_uniforms(seed, rank, attempt, 2**12)[..., :9], base)
    others = [
        bit_uniforms(seed + 500, rank, attempt, 9),
        bit_uniforms(seed, rank + 2, attempt, 9),
        bit_uniforms(seed, rank, attempt + 1, 9),
        bit_uniforms(seed, rank, attempt, 9, stream=1),
    ]
    together = torch.stack([base, *others]).flatten(1)
    assert (torch.corrcoef(together) - torch.eye(5)).abs().max() < 0.05
    columns = torch.corrcoef(base.flatten(0, 1).T) - torch.eye(9)
    assert columns.abs().max() < 0.15
    with pytest.raises(ValueError, match=r"count must be in 1\.\.1048576, got 1048577"):
        bit_uniforms(seed, rank, attempt, 2**20 + 1)
