"""The model that reads noisy embeddings, the method that decodes with it, and what is refused."""

import pytest
import torch

from visual_ar.accel.denoising import SpeculativeDenoisingDecoding
from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.cast import Cast
from visual_ar.models.denoising import DenoisingLlamaGen
from visual_ar.models.llamagen import LlamaGen
from visual_ar.sampling import Sampling, normal_noise
from visual_ar.testing import ToyTokenModel, chi_square, decode_all, sequence_index

SMALL = {"dim": 16, "n_layer": 2, "n_head": 2, "vocab_size": 3, "grid_size": 2, "ffn_dim": 24}


def build(**options):
    """A LlamaGen with random weights, and it with a denoiser of random weights."""
    torch.manual_seed(0)
    base = LlamaGen(**{**SMALL, "num_classes": 2, **options}).eval()
    torch.nn.init.normal_(base.output.weight, std=0.8)
    torch.nn.init.normal_(base.tok_embeddings.weight, std=0.5)
    model = DenoisingLlamaGen.from_base(base, {"adapter_dim": 8, "largest_ratio": 10.0}).eval()
    for parameter in model.denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return base, model


@torch.no_grad()
def test_without_noise_it_is_the_model_underneath():
    base, model = build()
    condition = base.condition(torch.tensor([0, 1]))
    tokens = torch.randint(3, (4, 4))
    assert torch.equal(model.logits(tokens, condition), base.logits(tokens, condition))
    ranks = torch.arange(-1, 3).expand(4, -1)
    x = torch.cat([condition.prefix, base.embed(tokens[:, :3], ranks)], dim=1)
    noisy = torch.tensor([False, False, True, True]).expand(4, -1)
    mixed = torch.where(noisy[..., None], model.embed_noisy(x, torch.ones(4, 4)), x)
    hidden, clean = model(mixed, ranks, noisy=noisy), base(x, ranks)
    assert torch.equal(hidden[:, :2], clean[:, :2])
    assert not torch.isclose(hidden[:, 2:], clean[:, 2:]).all(-1).any()


@torch.no_grad()
def test_a_new_denoiser_does_nothing_but_name_the_noise():
    base, _ = build()
    model = DenoisingLlamaGen.from_base(base, {})
    table = model.latents(torch.arange(3)[None], torch.zeros(1, 3, dtype=torch.int64))
    assert torch.allclose(table.mean(1), torch.zeros(1, 16), atol=1e-5)
    assert torch.allclose(table.std(1), torch.ones(1, 16), atol=1e-5)
    again = model.embed_noisy(table, torch.ones(1, 3))
    assert torch.allclose(again[0], base.tok_embeddings.weight, atol=1e-5)
    assert model.config.adapter_dim == 96 and model.config.num_classes == 2


def test_noise_ratios_rise_from_none_to_the_largest():
    _, model = build()
    for steps in (1, 2, 5):
        ratios = model.noise_ratios(steps)
        assert ratios.shape == (steps + 1,) and float(ratios[0]) == 0
        assert float(ratios[-1]) == pytest.approx(10, rel=1e-4)
        assert bool((ratios.diff() > 0).all())
    assert float(model.noise_ratios(2)[1]) == pytest.approx(1.5, rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("text", [False, True])
def test_training_shows_the_contexts_of_decoding(text):
    """Clean tokens up to the run of the input, noisy ones from there to it, in one plain pass."""
    options = {"num_classes": None, "caption_dim": 6, "caption_length": 3} if text else {}
    _, model = build(**options)
    if text:
        mask = torch.tensor([[False, True, True], [True, True, True]])
        condition = model.condition(torch.randn(2, 3, 6), mask, guided=False)
    else:
        condition = model.condition(torch.tensor([0, 1]), guided=False)
    tokens, drafts = torch.randint(3, (2, 4)), torch.randint(3, (2, 3))
    noise, ratios = torch.randn(2, 3, 16), torch.tensor([[0.5, 1.0, 3.0], [2.0, 0.4, 0.6]])
    starts = torch.tensor([[0, 1, 1], [0, 0, 2]])
    logits = model.noisy_logits(tokens, drafts, noise, ratios, starts, condition)
    assert logits.shape == (2, 3, 3)
    prefix, ranks = model.prefix_length, torch.arange(3)
    latents = model.latents(drafts, ranks.expand(2, -1)) + ratios[..., None] * noise
    foggy = model.embed_noisy(latents / (1 + ratios.square()).sqrt()[..., None], ratios)
    for row in range(2):
        for rank in range(3):
            is_noisy = (ranks >= starts[row, rank])[None]
            clean = model.embed(tokens[row : row + 1, :3], ranks[None])
            x = torch.where(is_noisy[..., None], foggy[row : row + 1], clean)
            one = condition.rows(torch.tensor([row]))
            x = torch.cat([one.prefix, x], dim=1)
            cache = model.new_cache(1, prefix + 3, prefix)
            cache.prefix_mask = one.mask
            every = torch.arange(-prefix, 3)[None]
            noisy = torch.cat([torch.zeros(1, prefix, dtype=torch.bool), is_noisy], dim=1)
            hidden = model(x, every, cache, noisy=noisy)[:, prefix + rank]
            expected = model.predict(hidden, every[:, :1])
            assert torch.allclose(logits[row, rank], expected[0], atol=1e-4)


def test_only_the_denoiser_learns():
    _, model = build()
    model.requires_grad_(False)
    model.denoiser.requires_grad_(True)
    tokens, condition = (
        torch.randint(3, (2, 4)),
        model.condition(torch.tensor([0, 1]), guided=False),
    )
    starts = torch.zeros(2, 3, dtype=torch.int64)
    logits = model.noisy_logits(
        tokens, tokens[:, 1:], torch.randn(2, 3, 16), torch.ones(2, 3), starts, condition
    )
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == name.startswith("denoiser."), name


@torch.inference_mode()
def enumerate_base(base: LlamaGen, label: int, guidance: float) -> torch.Tensor:
    """The law of all 81 sequences of the model underneath, by full passes without noise."""
    sequences = torch.cartesian_prod(*[torch.arange(3)] * 4)
    condition = base.condition(torch.full((81,), label))
    conditional, unconditional = base.logits(sequences.repeat(2, 1), condition).chunk(2)
    laws = torch.lerp(unconditional, conditional, guidance).double().softmax(-1)
    return laws.gather(-1, sequences[..., None])[..., 0].prod(-1)


def p_value(method, pictures=20_000):
    base, model = build()
    sampling = Sampling.create(list(range(pictures)), guidance=1.5)
    condition = model.condition(torch.ones(pictures, dtype=torch.int64))
    tokens, _ = decode_all(method, Cast(model, model.layout((2, 2))), condition, sampling)
    return chi_square(sequence_index(tokens, 3), enumerate_base(base, 1, 1.5))


def test_pictures_follow_the_law_of_the_model_underneath(monkeypatch):
    method = SpeculativeDenoisingDecoding(window=4, steps=4, clean=1)
    assert p_value(method) > 1e-4
    monkeypatch.setattr(method, "_tested", lambda state, passes, ranks: passes)
    assert p_value(method) < 1e-9, "drafts that were fed as noise must not be verified"


def test_ranks_grow_clean_from_left_to_right_and_with_every_pass():
    model = ToyTokenModel(vocab_size=3, grid=(30,))
    method = SpeculativeDenoisingDecoding(window=8, steps=4, clean=2)
    layout = model.layout((30,))
    state = method.init(Cast(model, layout), slots=5, guided=False, window=8)
    sampling = Sampling.create(list(range(5)))
    method.admit(state, torch.arange(5), model.condition([0] * 5, False), sampling)
    assert bool((state.method.levels == 4).all())
    while not bool(state.done.any()):
        before, length = state.method.levels.clone(), state.length.clone()
        method.advance(state)
        for row in range(5):
            seen = state.method.levels[row, int(state.length[row]) :][:7]
            entered = int(state.length[row]) + torch.arange(7) > int(length[row]) + 7
            assert bool((seen.diff() >= 0).all())
            assert bool((seen[:2] == 0).logical_or(entered[:2]).all())
            assert bool((seen[entered] == 4).all())
            old = before[row, int(state.length[row]) :][:7]
            assert bool((seen < old).logical_or(old == 0).logical_or(entered).all())


def test_a_clean_rank_has_lost_its_noise_and_a_noisy_one_moves_to_its_token():
    model = ToyTokenModel(vocab_size=3, grid=(12,))
    method = SpeculativeDenoisingDecoding(window=12, steps=6, clean=2)
    layout = model.layout((12,))
    state = method.init(Cast(model, layout), slots=1, guided=False, window=12)
    method.admit(state, torch.tensor([0]), model.condition([0], False), Sampling.create([3]))
    noise = normal_noise(torch.tensor([3]), torch.arange(24), model.hidden_size)
    ratios = model.noise_ratios(6)
    deviation = ratios / (1 + ratios.square()).sqrt()
    assert torch.allclose(state.method.latents, deviation[6] * noise, atol=1e-5)
    method.advance(state)
    start = int(state.length[0])
    ranks = torch.arange(start, 12)
    levels = state.method.levels[0, ranks]
    token = model.latents(state.tokens[:, ranks], ranks[None])[0]
    signal = 1 / (1 + ratios.square()).sqrt()
    share = (deviation[levels] / deviation[6])[:, None]
    pure = deviation[6] * noise[0, ranks]
    expected = share * pure + (signal[levels][:, None] - signal[6] * share) * token
    noisy = levels > 0
    assert bool(noisy.any()) and bool((levels < 6).all())
    assert torch.allclose(state.method.latents[0, ranks][noisy], expected[noisy], atol=1e-4)


def test_one_step_is_jacobi_decoding_after_the_first_pass():
    """With one level every rank is a token from its second pass on: about as many passes."""
    model = ToyTokenModel(vocab_size=3, grid=(5, 6), sharpness=2.0)
    layout, sampling = model.layout((5, 6)), Sampling.create(list(range(400)))
    condition = model.condition([0] * 400, False)
    passes = []
    methods = (SpeculativeDenoisingDecoding(window=8, steps=1), SpeculativeJacobiDecoding(window=8))
    for method in methods:
        _, committed = decode_all(method, Cast(model, layout), condition, sampling)
        passes.append(float((committed > 0).sum(0).float().mean()))
    assert passes[0] < 0.75 * 30
    assert abs(passes[0] - passes[1]) < 0.15 * passes[1]


def test_forced_tokens_are_never_noise():
    model = ToyTokenModel(vocab_size=3, grid=(8,))
    forced = torch.tensor([-1, 2, -1, -1, 0, 1, -1, -1])
    layout = model.layout((8,)).with_forced(forced)
    method = SpeculativeDenoisingDecoding(window=8, steps=4)
    state = method.init(Cast(model, layout), slots=2, guided=False, window=8)
    sampling = Sampling.create([0, 1])
    method.admit(state, torch.arange(2), model.condition([0, 0], False), sampling)
    assert torch.equal(state.method.levels[:, :8] == 0, (forced >= 0).expand(2, -1))
    tokens, _ = decode_all(method, Cast(model, layout), model.condition([0, 0], False), sampling)
    assert torch.equal(tokens[:, forced >= 0], forced[forced >= 0].expand(2, -1))


def test_normal_noise_is_normal_and_belongs_to_its_seed_and_rank():
    noise = normal_noise(torch.tensor([1, 2]), torch.arange(50), 402)
    assert noise.shape == (2, 50, 402)
    assert abs(float(noise.mean())) < 0.02 and abs(float(noise.std()) - 1) < 0.02
    assert float((noise[0] * noise[1]).mean().abs()) < 0.03
    assert torch.equal(normal_noise(torch.tensor([2]), torch.tensor([7]), 402), noise[1:, 7:8])


def test_a_model_that_reads_no_noise_is_refused(tiny_pipeline):
    tiny_pipeline.scheduler = SpeculativeDenoisingDecoding()
    message = (
        r"capability 'denoising', which DenoisingLlamaGen has .* LlamaGen has only \['trees'\]"
    )
    with pytest.raises(ValueError, match=message):
        tiny_pipeline(class_labels="cat")


@pytest.mark.parametrize("name", ["steps", "clean"])
@pytest.mark.parametrize("value", [0, -1, 2.5, True, "four"])
def test_bad_options_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a whole number from 1 to .*, got"):
        SpeculativeDenoisingDecoding(**{name: value})


def test_noise_falls_evenly_towards_the_clean_ranks():
    method = SpeculativeDenoisingDecoding(window=11, steps=4, clean=3)
    assert method._most(torch.arange(10), 11).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3, 4]
    assert method._most(torch.arange(2), 3).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapter_dim": 0}, "adapter_dim must be at least 1, got 0"),
        ({"smallest_ratio": 0.0}, "smallest_ratio must be above 0 .* got 0.0 and 30.0"),
        ({"largest_ratio": 0.1}, "below largest_ratio, got 1.5 and 0.1"),
    ],
)
def test_bad_options_of_the_model_are_named(options, message):
    base, _ = build()
    with pytest.raises(ValueError, match=message):
        DenoisingLlamaGen.from_base(base, options)
