"""A parallel model drafts for a next-token model: the law stays the next-token model's."""

from dataclasses import replace

import pytest
import torch
from diffusers.configuration_utils import register_to_config

from visual_ar.accel.hybrid import HybridDecoding
from visual_ar.cast import Cast
from visual_ar.pipeline import VisualARPipeline
from visual_ar.sampling import Sampling, uniforms
from visual_ar.testing import (
    ToyBitModel,
    ToyTokenModel,
    chi_square,
    decode_all,
    enumerate_law,
    sequence_index,
)
from visual_ar.tokens.codes import CategoricalLaw

PICTURES = 12_000
ALARM, DETECTED = 1e-4, 1e-9  # as in test_lossless
METHODS = {
    "whole": HybridDecoding(window=2, drafts="whole"),
    "whole 3": HybridDecoding(window=3, drafts="whole"),
    "ahead": HybridDecoding(window=2, drafts="ahead"),
    "ahead 3": HybridDecoding(window=3, drafts="ahead"),
}
CASES = {
    "guided": {"guidance": 1.8, "temperature": 0.8},
    "warped": {"top_k": 2, "top_p": 0.9},
}


def pair(vocab_size=2, grid=(3, 3), prefix_length=2, seed=0):
    """A next-token toy and the next-neighbour toy that drafts for it."""
    options = {"vocab_size": vocab_size, "grid": grid}
    model = ToyTokenModel(**options, prefix_length=prefix_length, seed=seed)
    drafter = ToyTokenModel(**options, seed=seed + 100, order="neighbour")
    return Cast(model, model.layout(grid), draft_model=drafter)


def conditions(cast, labels, guided):
    drafts = cast.draft_model.condition(labels, guided)
    return cast.model.condition(labels, guided)._replace(draft=drafts)


def fit(method, cast, forced=None, pictures=PICTURES, **options):
    model = cast.model
    if forced is not None:
        cast = cast.with_layout(cast.layout.with_forced(forced))
    sampling = Sampling.create(list(range(pictures)), **options)
    condition = conditions(cast, [0] * pictures, options.get("guidance", 1) != 1)
    tokens, _ = decode_all(method, cast, condition, sampling)
    law = enumerate_law(model, 0, Sampling.create([0], **options), forced)
    return chi_square(sequence_index(tokens, model.vocab_size), law)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", METHODS)
def test_the_law_is_that_of_the_next_token_model(method, case):
    assert fit(METHODS[method], pair(seed=len(case)), **CASES[case]) > ALARM


@pytest.mark.parametrize("method", ["whole", "ahead"])
def test_forced_cells_are_kept_in_both_orders(method):
    forced = torch.tensor([-1, 2, -1, -1, 0, -1])
    cast = pair(vocab_size=3, grid=(2, 3), seed=4)
    assert fit(METHODS[method], cast, forced, guidance=1.5) > ALARM


@pytest.mark.parametrize("method", ["whole", "ahead"])
def test_clips_are_drafted_too(method):
    assert fit(METHODS[method], pair(grid=(2, 2, 2), seed=5)) > ALARM


class DiscardsAndRedrafts(HybridDecoding):
    """Mutant: after a rejection the drafts behind it are drawn anew from their own laws."""

    @register_to_config
    def __init__(self) -> None:
        super().__init__(window=2, drafts="whole")
        self.register_to_config(window=2, drafts="whole")

    def step(self, state):
        before = state.tokens.clone()
        step = super().step(state)
        ranks = torch.arange(state.tokens.shape[1]).expand_as(state.tokens)
        u = uniforms(state.seed[:, None], ranks, state.passes[:, None])[3]
        fresh = CategoricalLaw(probabilities=state.method.q).draw(u)
        corrected = (state.tokens != before).any(1, keepdim=True)
        anew = corrected & (ranks >= state.length[:, None])
        state.tokens = torch.where(anew, fresh, state.tokens)
        return step


class KeepsWhatWasDrawnAhead(HybridDecoding):
    """Mutant: a draft made ahead stays, and is tested against the law of a later pass."""

    @register_to_config
    def __init__(self) -> None:
        super().__init__(window=2, drafts="ahead")
        self.register_to_config(window=2, drafts="ahead")

    def _draft_ahead(self, state, ranks, u):
        kept = state.tokens.clone()
        law = super()._draft_ahead(state, ranks, u)
        state.tokens = torch.where(state.passes[:, None] > 0, kept, state.tokens)
        return law


def crossed():
    """Models of uniform laws, but that the drafter tells the third cell from the fourth.

    The fourth cell is drafted before the third and verified after it, so that whether the third
    draft is kept says something about the fourth.
    """
    cast = pair(grid=(2, 3), seed=1)
    model, drafter = cast.model, cast.draft_model
    with torch.no_grad():
        third = drafter.head[3].clone()  # cell 2 has rank 3 in the drafter's order
        model.head.zero_()
        drafter.head.zero_()
        drafter.head[3] = third
        drafter.contributions.mul_(4)
    return cast


@pytest.mark.parametrize("mutant", [DiscardsAndRedrafts, KeepsWhatWasDrawnAhead])
def test_known_mistakes_are_detected(mutant):
    assert fit(mutant(), crossed()) < DETECTED


@pytest.mark.parametrize("method", ["whole", "ahead"])
def test_what_detects_them_lets_the_exact_forms_pass(method):
    assert fit(METHODS[method], crossed()) > ALARM


@pytest.mark.parametrize("method", ["whole", "ahead"])
def test_options_and_slots_belong_to_pictures(method):
    """Different options in a batch, ragged slots, and admission in mid-run: the same pictures."""
    cast, decoding = pair(vocab_size=3, seed=3), METHODS[method]
    options = [(1.0, 1.0, 0, 1.0), (2.0, 0.7, 0, 1.0), (1.5, 1.0, 2, 1.0), (3.0, 1.4, 0, 0.8)]
    parts = [Sampling.create([seed], *option) for seed, option in enumerate(options)]
    labels = [0, 1, 1, 0]
    expected = torch.cat(
        [
            decode_all(decoding, cast, conditions(cast, [label], True), part)[0]
            for label, part in zip(labels, parts, strict=True)
        ]
    )
    together = Sampling(*(torch.cat(fields) for fields in zip(*parts, strict=True)))
    batch, _ = decode_all(decoding, cast, conditions(cast, labels, True), together)
    assert torch.equal(batch, expected)

    state = decoding.init(cast, slots=2, window=2)
    waiting, holds, finished = list(range(4)), {}, {}
    while waiting or holds:
        for slot in range(2):
            if slot not in holds and waiting:
                picture = waiting.pop(0)
                holds[slot] = picture
                condition = conditions(cast, [labels[picture]], True)
                decoding.admit(state, torch.tensor([slot]), condition, parts[picture])
        step = decoding.advance(state)
        for slot in [slot for slot in holds if step.done[slot]]:
            finished[holds.pop(slot)] = step.tokens[slot]
    assert torch.equal(torch.stack([finished[k] for k in range(4)]), expected)


def test_a_drafter_with_the_same_law_is_always_believed():
    """Independent cells: both models agree, so every draft is kept; its work is reported."""
    cast = pair(vocab_size=3, grid=(3, 4), seed=6)
    for toy in (cast.model, cast.draft_model):
        torch.nn.init.zeros_(toy.head)
    condition = conditions(cast, [0, 1], False)
    steps = list(HybridDecoding(window=4).decode(cast, condition, Sampling.create([1, 2])))
    assert [step.committed.tolist() for step in steps] == [[4, 4]] * 3
    drafted = sum((1, 2, 3, 3, 3, 2))  # a pass is as wide as the group that it feeds or draws
    assert steps[0].head_evaluations == 2 * 4 + 2 * drafted
    assert steps[1].head_evaluations == 2 * 4


def test_models_that_do_not_fit_are_refused():
    cast, method = pair(vocab_size=3), METHODS["whole"]
    condition = cast.model.condition([0], False)
    state = method.init(cast, slots=1, guided=False, window=2)
    with pytest.raises(ValueError, match="condition must hold the drafter's prefix"):
        method.admit(state, torch.tensor([0]), condition, Sampling.create([0]))
    strict = ToyTokenModel(3, (3, 3), order="neighbour")
    strict.capabilities = frozenset()
    for form, drafter, message in (
        ("whole", ToyTokenModel(2, (3, 3), order="neighbour"), "tokenizer's 3 codes, got 2 codes"),
        ("whole", ToyBitModel(2, (3, 3), order="neighbour"), "draft_model must name the law of"),
        ("whole", ToyTokenModel(3, (2, 3), order="neighbour"), r"must be \(2, 3\), got \(3, 3\)"),
        ("ahead", strict, "predicts from some of its sources"),
        ("whole", None, "needs a model with a draft model"),
    ):
        with pytest.raises(ValueError, match=message):
            METHODS[form].check(replace(cast, draft_model=drafter))
    method.check(replace(cast, draft_model=strict))
    with pytest.raises(ValueError, match="drafts must be one of whole, ahead, got 'half'"):
        HybridDecoding(drafts="half")


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("drafts", ["whole", "ahead"])
def test_pipelines_draw_alone_and_together(
    make_tiny_pipeline, make_parallel_pipeline, text, drafts
):
    pipe = make_tiny_pipeline(text=text)
    drafter = make_parallel_pipeline(pipe)
    subjects = {"prompt": ["red apple", "tree"]} if text else {"class_labels": ["cat", "frog"]}
    alone = drafter(**subjects, seeds=3, output_type="tokens")
    assert alone.stats.passes == [7, 7]
    pipe.draft_with(drafter)
    pipe.scheduler = HybridDecoding(window=4, drafts=drafts)
    together = pipe(**subjects, seeds=3, output_type="tokens")
    assert together.stats.lossless and max(together.stats.passes) <= 16
    again = pipe(**subjects, seeds=3, output_type="tokens")
    assert torch.equal(together.tokens, again.tokens)
    pipe.draft_with(None)
    with pytest.raises(ValueError, match="needs a model with a draft model"):
        pipe(**subjects)


def test_a_parallel_pipeline_completes_pictures(make_tiny_pipeline, make_parallel_pipeline):
    drafter = make_parallel_pipeline(make_tiny_pipeline())
    picture = torch.rand(3, 8, 8)
    keep = torch.zeros(4, 4, dtype=torch.bool)
    keep[2:] = True  # later cells constrain nothing, but stay
    output = drafter(class_labels=0, seeds=1, image=picture, mask=keep, output_type="tokens")
    codes = drafter.image_tokenizer.encode(picture[None] * 2 - 1)
    assert torch.equal(output.tokens[0, 8:], codes[0, 8:])


def test_pipelines_that_do_not_fit_are_refused(make_tiny_pipeline, make_parallel_pipeline):
    pipe = make_tiny_pipeline()
    other = make_tiny_pipeline().image_tokenizer
    with torch.no_grad():
        next(iter(other.parameters())).add_(1)
    with pytest.raises(ValueError, match="drafter must share the image tokenizer"):
        pipe.draft_with(make_parallel_pipeline(pipe, image_tokenizer=other))
    with pytest.raises(ValueError, match=r"drafter must draw the 3 classes \['cat'"):
        pipe.draft_with(make_parallel_pipeline(pipe, class_names=["one", "two", "three"]))
    unnamed, fewer = make_tiny_pipeline(class_names=None), make_parallel_pipeline(pipe)
    fewer.register_to_config(class_names=None)
    fewer.model.register_to_config(num_classes=2)
    with pytest.raises(ValueError, match="drafter must draw the 3 classes like the model"):
        unnamed.draft_with(fewer)
    assert pipe.draft_model is None


def test_a_drafter_belongs_to_its_pipeline(make_tiny_pipeline, make_parallel_pipeline):
    pipe = make_tiny_pipeline()
    alone = VisualARPipeline(
        **pipe.components, class_names=pipe.config.class_names, height=8, width=8
    )
    alone.scheduler = pipe.scheduler = HybridDecoding(window=4)
    pipe.draft_with(make_parallel_pipeline(pipe))
    with pytest.raises(ValueError, match="needs a model with a draft model"):
        alone(class_labels="cat")
    assert pipe(class_labels="cat", seeds=1).stats.lossless


def test_two_pipelines_may_draft_for_each_other(make_tiny_pipeline):
    one, other = make_tiny_pipeline(), make_tiny_pipeline()
    one.draft_with(other)
    other.draft_with(one)
    one.scheduler = HybridDecoding(window=4)
    assert max(one(class_labels="cat", seeds=1).stats.passes) <= 16


def test_pipelines_that_share_a_model_draft_with_whom_they_like(
    make_tiny_pipeline, make_parallel_pipeline
):
    """Drawn by turns, each gives the pictures that it gives alone, in its own number of passes."""
    one = make_tiny_pipeline()
    other = VisualARPipeline(
        **one.components, class_names=one.config.class_names, height=8, width=8
    )
    other.set_progress_bar_config(disable=True)
    one.draft_with(make_parallel_pipeline(one))
    drafter = make_parallel_pipeline(one)
    with torch.no_grad():
        for parameter in drafter.model.parameters():
            parameter.mul_(-1)
    other.draft_with(drafter)
    one.scheduler = other.scheduler = HybridDecoding(window=4)
    assert one.model is other.model and one.draft_model is not other.draft_model

    def draw(pipe, seed):
        output = pipe(class_labels=["cat", "frog"], seeds=seed, output_type="tokens")
        return output.tokens.tolist(), output.stats.passes

    alone = [[draw(pipe, seed) for seed in range(4)] for pipe in (one, other)]
    by_turns = [[draw(one, seed), draw(other, seed)] for seed in range(4)]
    assert [list(pictures) for pictures in zip(*by_turns, strict=True)] == alone
    assert alone[0] != alone[1]
