"""Generators of tokens that are bits: cache, losses, laws, and the pipeline around them."""

import itertools
import json
import math
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from visual_ar.accel.exact_match import ExactMatchJacobiDecoding
from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.accel.sequential import SequentialDecoding
from visual_ar.cast import Cast
from visual_ar.engine import Engine
from visual_ar.evaluation.probes import law_entropy
from visual_ar.models.bitwise import BitLlamaGen, SubcodeLlamaGen
from visual_ar.models.llamagen import LlamaGen
from visual_ar.pipeline import VisualARPipeline
from visual_ar.sampling import Sampling, Warps
from visual_ar.testing import chi_square, decode_all
from visual_ar.tokenizers.binary import BinaryTokenizer
from visual_ar.tokenizers.vq import VQTokenizer
from visual_ar.tokens.bits import BitLaw
from visual_ar.tokens.codes import CategoricalLaw

SIZES = {"dim": 16, "n_layer": 2, "n_head": 2, "ffn_dim": 24, "num_classes": 3}


JACOBI = (("maximal", "uniform"), ("independent", "above-law"), ("gumbel", "left"))


def _model(kind: str, bits: int = 6, grid: int = 4) -> BitLlamaGen:
    torch.manual_seed(0)
    if kind == "bits":
        model = BitLlamaGen(bits=bits, grid_size=grid, **SIZES)
    else:
        model = SubcodeLlamaGen(bits=bits, subcodes=2, grid_size=grid, **SIZES)
    for parameter in model.output.parameters():  # heads start at zero, where all laws agree
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def _tokens(count: int, length: int, bits: int) -> torch.Tensor:
    return torch.rand(count, length, bits, generator=torch.Generator().manual_seed(1)) < 0.5


@pytest.mark.parametrize("kind", ["bits", "subcodes"])
@torch.no_grad()
def test_cached_steps_equal_the_full_forward(kind: str) -> None:
    model, tokens = _model(kind), _tokens(2, 16, 6)
    condition = model.condition(torch.tensor([0, 1]), guided=False)
    full = model.logits(tokens, condition)
    cache = model.new_cache(2, 17, 1)
    x, parts = condition.prefix, []
    for rank in range(16):
        ranks = torch.full((2, 1), rank - 1)
        parts.append(model.predict(model.forward(x, ranks, cache), ranks + 1))
        x = model.embed(tokens[:, rank : rank + 1], ranks + 1)
    assert torch.allclose(torch.cat(parts, 1), full, atol=1e-4)
    other = tokens.clone()
    other[:, 9] ^= True
    changed = model.logits(other, condition)
    assert torch.equal(changed[:, :10], full[:, :10])
    assert not torch.allclose(changed[:, 10:], full[:, 10:])


@pytest.mark.parametrize("kind", ["bits", "subcodes"])
@torch.no_grad()
def test_the_loss_is_the_laws_own_and_laws_sum_to_one(kind: str) -> None:
    model, every = _model(kind), torch.tensor(list(itertools.product((False, True), repeat=6)))
    hidden = torch.randn(1, 1, 16, generator=torch.Generator().manual_seed(2)).expand(64, 1, -1)
    loss = model.token_loss(hidden, every[:, None])
    assert float((-loss).exp().sum()) == pytest.approx(1, abs=1e-5)
    parts = model.predict(hidden, torch.zeros(64, 1, dtype=torch.int64))
    ones = torch.ones(64)
    options = Sampling.create([0] * 64)
    law = model.tokens.law(parts, None, ones[:, None], options, Warps())
    assert torch.allclose(law.log_prob(every[:, None]), -loss, atol=1e-5)
    if kind == "subcodes":
        codes = model.split(every)
        assert codes.shape == (64, 2) and codes[0b100000].tolist() == [1, 0]
        assert codes[0b001001].tolist() == [4, 4]


@torch.no_grad()
def test_a_head_of_sub_codes_starts_with_the_law_of_the_classifiers() -> None:
    base, tokens = _model("bits"), _tokens(2, 16, 6)
    model = SubcodeLlamaGen.from_base(base, {"subcodes": 2})
    hidden = base.features(tokens, base.condition(torch.tensor([0, 1]), guided=False), False)
    expected = base.token_loss(hidden, tokens)
    assert torch.allclose(model.token_loss(hidden, tokens), expected, atol=1e-5)
    assert not torch.allclose(expected, torch.full_like(expected, 6 * math.log(2)), atol=0.1)
    with pytest.raises(ValueError, match="subcodes must divide the 6 bits of a token, got 4"):
        SubcodeLlamaGen.from_base(base, {"subcodes": 4})


@pytest.mark.parametrize("guided", [False, True])
@torch.inference_mode()
def test_sub_codes_are_drawn_from_their_law(guided: bool) -> None:
    """All 256 pictures of four tokens of two bits, by the chain rule and by counting."""
    model, count = _model("subcodes", bits=2, grid=2), 6000
    every = torch.tensor(list(itertools.product((False, True), repeat=8))).view(256, 4, 2)
    conditions = [
        model.condition(torch.full((256,), label), guided=False) for label in (0, 3)[: 1 + guided]
    ]
    hidden = [model.features(every, condition) for condition in conditions]
    scale, temperature = (2.0, 0.7) if guided else (1.0, 1.0)
    law = model.tokens.law(
        hidden[0],
        hidden[1] if guided else None,
        torch.full((256, 4), scale),
        Sampling.create([0] * 256, temperature=temperature),
        Warps(temperature=guided),
    )
    exact = law.log_prob(every).sum(1).exp()
    assert float(exact.sum()) == pytest.approx(1, abs=1e-4)
    condition = model.condition(torch.zeros(count, dtype=torch.int64), guided=guided)
    sampling = Sampling.create(list(range(count)), scale, temperature)
    layout = model.layout((2, 2))
    tokens, _ = decode_all(SequentialDecoding(), Cast(model, layout), condition, sampling)
    places = torch.arange(7, -1, -1)
    assert chi_square((tokens.flatten(1).long() << places).sum(1), exact) > 1e-4
    again, _ = decode_all(
        ExactMatchJacobiDecoding(window=3, init="uniform"), Cast(model, layout), condition, sampling
    )
    assert torch.equal(again, tokens)
    for coupling, init in JACOBI:
        method = SpeculativeJacobiDecoding(3, coupling, init)
        drafted, _ = decode_all(method, Cast(model, layout), condition, sampling)
        assert chi_square((drafted.flatten(1).long() << places).sum(1), exact) > 1e-4


@torch.inference_mode()
def test_the_largest_noise_draws_what_is_possible() -> None:
    forced = torch.tensor([[[True, False, False, False]]])
    model = _model("subcodes", bits=4, grid=2)
    features = model.tokens.certain(forced, model.tokens.width(False))
    noise = torch.full((1, 1, 4), 1 - 2.0**-24).logit()
    drawn = model.tokens.law_from(features, torch.ones(1)).draw_frozen(noise)
    assert torch.equal(drawn, forced)


@torch.inference_mode()
def test_sub_codes_with_forced_tokens_and_a_wrong_residual(monkeypatch) -> None:
    """Kept tokens stay, the rest has its law; a residual drawn from p is detected."""
    model, count = _model("subcodes", bits=2, grid=2), 6000
    forced = torch.full((count, 4, 2), -1)
    forced[:, 1] = torch.tensor([1, 0])
    layout = model.layout((2, 2)).with_forced(forced)
    condition = model.condition(torch.zeros(count, dtype=torch.int64), guided=False)
    sampling = Sampling.create(list(range(count)))
    every = torch.tensor(list(itertools.product((False, True), repeat=8))).view(256, 4, 2)
    fits = (every[:, 1] == torch.tensor([True, False])).all(-1)
    hidden = model.features(every, model.condition(torch.zeros(256).long(), guided=False))
    loss = model.token_loss(hidden, every)
    loss[:, 1] = 0
    exact, places = torch.where(fits, (-loss.sum(1)).exp(), 0.0), torch.arange(7, -1, -1)

    def fit(coupling: str, init: str) -> float:
        method = SpeculativeJacobiDecoding(3, coupling, init)
        tokens, _ = decode_all(method, Cast(model, layout), condition, sampling)
        assert torch.equal(tokens[:, 1], forced[:, 1] > 0)
        return chi_square((tokens.flatten(1).long() << places).sum(1), exact)

    assert fit("maximal", "left-law") > 1e-4
    monkeypatch.setattr(CategoricalLaw, "redraw", lambda self, q, u: self.draw(u))
    assert fit("independent", "left-law") < 1e-9
    for rule in ("omega", "hamming-grouped"):
        with pytest.raises(ValueError, match=f"rule {rule} needs laws that tell"):
            SpeculativeJacobiDecoding(rule=rule).check(Cast(model, layout))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 0}, "bits must be at least 1, got 0"),
        ({"bits": 6, "subcodes": 4}, "subcodes must divide the 6 bits of a token, got 4"),
        ({"bits": 32, "subcodes": 2}, "a sub-code must have at most 14 bits, .* got 32 bits in 2"),
    ],
)
def test_bad_sizes_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SubcodeLlamaGen(grid_size=2, **SIZES, **options)


@pytest.mark.parametrize("kind", ["bits", "subcodes"])
@torch.no_grad()
def test_the_entropy_of_the_bench_is_that_of_the_laws(kind: str) -> None:
    model, tokens = _model(kind, bits=4, grid=2), _tokens(1, 4, 4)
    condition = model.condition(torch.tensor([1]), guided=False)
    workload = SimpleNamespace(
        cast=Cast(model, model.layout((2, 2))),
        sampling=Sampling.create,
        condition=lambda numbers: condition,
    )
    measured = law_entropy(workload, [1], [0], tokens)
    hidden = model.features(tokens, condition)
    expected = model.token_loss(hidden, tokens) / math.log(2)
    if kind == "bits":
        expected = BitLaw(model.output(hidden)).entropy()
    assert torch.allclose(measured, expected, atol=1e-4)


@torch.inference_mode()
def test_tokens_of_many_bits_are_drafted_and_tested() -> None:
    """400 bits: three numbers for each of them are more than a law of codes ever asks for."""
    model, count = _model("bits", bits=400, grid=2), 3
    cast = Cast(model, model.layout((2, 2)))
    condition = model.condition(torch.zeros(count, dtype=torch.int64), guided=True)
    sampling = Sampling.create(list(range(count)), guidance=1.5)
    expected, _ = decode_all(SequentialDecoding(), cast, condition, sampling)
    frozen, _ = decode_all(ExactMatchJacobiDecoding(window=3), cast, condition, sampling)
    assert torch.equal(frozen, expected)
    for rule in ("exact", "bitwise"):
        method = SpeculativeJacobiDecoding(window=3, rule=rule)
        tokens, committed = decode_all(method, cast, condition, sampling)
        assert tokens.shape == (count, 4, 400) and committed.sum(0).tolist() == [4] * count
        assert 0.3 < float(tokens.float().mean()) < 0.7


def _tokenizer(bits: int = 6) -> BinaryTokenizer:
    return BinaryTokenizer(
        channels=4, channel_multipliers=(1, 2), residual_blocks=1, bits=bits, norm_groups=2
    ).eval()


@pytest.fixture
def pipe() -> VisualARPipeline:
    """4x4 tokens of 6 bits, pictures of 8x8 pixels, three classes, guidance 2."""
    pipe = VisualARPipeline(
        model=_model("bits"),
        image_tokenizer=_tokenizer(),
        scheduler=SpeculativeJacobiDecoding(window=4),
        class_names=["cat", "dog", "frog"],
        height=8,
        width=8,
        guidance_scale=2.0,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_pipeline_of_bits_draws_saves_and_loads(pipe: VisualARPipeline, tmp_path) -> None:
    output = pipe(class_labels=["cat", "dog"], seeds=3)
    assert output.tokens.shape == (2, 16, 6) and output.tokens.dtype == torch.bool
    assert output.images[0].size == (8, 8)
    assert output.stats.committed_tokens == 32 and output.stats.lossless
    alone = pipe(class_labels="dog", seeds=4, output_type="tokens")
    assert torch.equal(alone.images, output.tokens[1:])
    latents = pipe(class_labels="dog", seeds=4, output_type="latent").images
    assert set(latents.unique().tolist()) == {-1.0, 1.0}
    pipe.save_pretrained(tmp_path / "saved")
    assert "vocab_size" not in json.loads((tmp_path / "saved/model/config.json").read_text())
    assert load_file(tmp_path / "saved/model/diffusion_pytorch_model.safetensors")
    again = VisualARPipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    assert torch.equal(again(class_labels="cat", seeds=3).tokens, output.tokens[:1])


def test_previews_completion_and_slots_work_on_bits(pipe: VisualARPipeline) -> None:
    first = next(pipe.stream(class_labels="cat", seeds=1))
    assert not bool(first.tokens[~first.known].any())
    assert first.images("pt").shape == (1, 3, 8, 8)
    picture = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    keep = torch.zeros(4, 4, dtype=torch.bool)
    keep[1:3] = True
    drawn = pipe(class_labels=["cat", "dog"], seeds=1, image=picture, mask=keep)
    theirs = pipe.image_tokenizer.encode(picture[None] * 2 - 1)
    kept = keep.flatten()
    assert torch.equal(drawn.tokens[:, kept], theirs[:, kept].expand(2, -1, -1))
    request = pipe.check_inputs(class_labels=["cat", "dog", "cat"], seeds=5)
    with Engine(pipe, slots=2) as engine:
        jobs = engine.submit(request)
        tokens = torch.cat([job.result(120).tokens for job in jobs])
    assert tokens.shape == (3, 16, 6)
    assert jobs[0].result().image().size == (8, 8)


@pytest.mark.parametrize("method", [SequentialDecoding(), ExactMatchJacobiDecoding(window=3)])
def test_frozen_methods_draw_the_same_picture(pipe: VisualARPipeline, method) -> None:
    pipe.scheduler = SequentialDecoding()
    expected = pipe(class_labels="cat", seeds=7).tokens
    pipe.scheduler = method
    assert torch.equal(pipe(class_labels="cat", seeds=7).tokens, expected)


def test_options_that_rank_tokens_are_refused_before_any_work(
    pipe: VisualARPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe, "encode_condition", None)
    for option, message in (({"top_k": 5}, "top_k must be 0"), ({"top_p": 0.9}, "top_p must be 1")):
        with pytest.raises(ValueError, match=message):
            pipe(class_labels="cat", **option)
        parts = {"model": pipe.model, "image_tokenizer": pipe.image_tokenizer}
        with pytest.raises(ValueError, match=message):
            VisualARPipeline(**parts, scheduler=SequentialDecoding(), height=8, width=8, **option)


def test_parts_of_other_tokens_are_refused(pipe: VisualARPipeline) -> None:
    torch.manual_seed(0)
    codes = VQTokenizer(
        channels=4,
        channel_multipliers=(1, 2),
        residual_blocks=1,
        latent_channels=4,
        codebook_size=64,
        codebook_dim=2,
        norm_groups=2,
    )
    size = {"height": 8, "width": 8, "scheduler": SequentialDecoding()}
    plain = LlamaGen(vocab_size=64, grid_size=4, **SIZES)
    for model, tokenizer, kinds in (
        (pipe.model, codes, "vectors of 6 bits .* codes of 64"),
        (plain, pipe.image_tokenizer, "codes of 64 .* vectors of 6 bits"),
        (pipe.model, _tokenizer(5), "vectors of 6 bits .* vectors of 5 bits"),
    ):
        with pytest.raises(ValueError, match=kinds):
            VisualARPipeline(model=model, image_tokenizer=tokenizer, **size)


def test_a_law_of_bits_is_certain_where_forced() -> None:
    law = BitLaw(torch.zeros(1, 1, 3))
    forced = law.with_forced(torch.tensor([[[1, 0, -1]]]))
    assert forced.part_probs(torch.tensor([[[True, False, True]]])).tolist() == [[[1.0, 1.0, 0.5]]]
    assert float(forced.entropy()) == pytest.approx(1.0)
