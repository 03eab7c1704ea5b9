"""The draft head: what it sees, what it refuses, the law it decodes with, known mistakes."""

import copy
import io

import pytest
import torch
from diffusers import SchedulerMixin  # noqa: F401
from diffusers.configuration_utils import register_to_config
from rich.console import Console

from visual_ar.accel.draft_head import DraftHeadDecoding
from visual_ar.accel.drafts.head_drafter import HeadDrafter
from visual_ar.accel.tree_decoding import TreeDecoding
from visual_ar.cast import Cast
from visual_ar.evaluation.speed import Schedule, bench
from visual_ar.evaluation.speed_table import render
from visual_ar.evaluation.workload import from_pipeline
from visual_ar.models.draft_head import DraftHead
from visual_ar.models.llamagen import LlamaGen
from visual_ar.pipeline import VisualARPipeline
from visual_ar.sampling import Sampling
from visual_ar.testing import (
    ToyTokenModel,
    decode_all,
)
from visual_ar.tokens.codes import CategoricalLaw
from visual_ar.training.subjects import Given
from visual_ar.training.train_draft_head import laws, losses, teach, unroll

ALARM, DETECTED = 1e-4, 1e-9
GRID = (4, 4)


def shaken(model: LlamaGen) -> DraftHead:
    """A head for the model that no longer foretells what it is given."""
    head = DraftHead.start_from(model).eval()
    generator = torch.Generator().manual_seed(3)
    for parameter in head.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return head


@pytest.fixture
def pipe(tiny_pipeline):
    """A class-conditional pipeline with a draft head and a method that uses it."""
    tiny_pipeline.register_modules(draft_head=shaken(tiny_pipeline.model))
    tiny_pipeline.scheduler = DraftHeadDecoding(window=3)
    return tiny_pipeline


class Recorder(DraftHeadDecoding):
    """Remembers the first rank and the laws of every chain it drafts."""

    @register_to_config
    def __init__(self) -> None:
        super().__init__(window=3)
        self.chains = []

    def _draft(self, state, ranks, u):
        drafts, q = super()._draft(state, ranks, u)
        self.chains.append((state.length, q.probabilities))
        return drafts, q


def test_training_sees_the_laws_that_decoding_draws_from(pipe, monkeypatch):
    """Guided laws of the model and of the first two drafts, after what was committed in the end.

    A loss on other laws than these is a published mistake, and so is a head whose cache keeps
    states that it foretold itself.
    """
    model, head, method = pipe.model, pipe.draft_head, Recorder()
    cast = Cast(model, model.layout(GRID), draft_head=head)
    labels = torch.tensor([0, 1, 2, 1])
    sampling = Sampling.create([5, 6, 7, 8])
    sampling.guidance[:] = torch.tensor([1.0, 2.0, 3.0, 0.5])
    sampling.temperature[:] = torch.tensor([2.0, 1.5, 3.0, 2.5])
    sampling.top_k[1], sampling.top_p[2] = 9, 0.9
    condition = model.condition(labels)
    tokens, committed = decode_all(method, cast, condition, sampling)
    lesson = teach(model, tokens, Given(labels, None))
    foretold = [laws(model, s, sampling).softmax(-1) for s in unroll(head, lesson, 2)]
    second = 0
    for (length, q), count in zip(method.chains, committed, strict=True):
        for picture in range(4):
            rank = int(length[picture])
            if rank < 16:
                assert torch.allclose(q[picture, 0], foretold[0][picture, rank], atol=1e-5)
            if count[picture] > 1 and rank + 1 < 16:
                second += 1
                assert torch.allclose(q[picture, 1], foretold[1][picture, rank + 1], atol=1e-5)
    assert second > 4

    # The same for a tree, whose first branches see what a chain sees.
    tree, filled = TreeDecoding(window=3, tree="2x2", drafter="head"), []
    draft = HeadDrafter.draft

    def recorded(self, shape, u):
        drafts = draft(self, shape, u)
        # The laws lie in a buffer of the drafter, which the next pass writes to.
        kept = CategoricalLaw(probabilities=drafts.q.probabilities.clone())
        filled.append((self.state.length, drafts._replace(q=kept)))
        return drafts

    monkeypatch.setattr(HeadDrafter, "draft", recorded)
    tokens, committed = decode_all(tree, cast, condition, sampling)
    lesson = teach(model, tokens, Given(labels, None))
    foretold = [laws(model, s, sampling).softmax(-1) for s in unroll(head, lesson, 2)]
    second = 0
    for (length, drafts), count in zip(filled, committed, strict=True):
        q, parents = drafts.q.probabilities, drafts.rows
        for picture in range(4):
            rank = int(length[picture])
            if rank < 16:
                assert torch.allclose(q[picture, 0], foretold[0][picture, rank], atol=1e-5)
            if count[picture] > 1 and rank + 1 < 16:
                heirs = (parents[picture] == 0) & (drafts.tokens[picture] == tokens[picture, rank])
                column = 1 + int(heirs.long().argmax())
                second += 1
                assert torch.allclose(q[picture, column], foretold[1][picture, rank + 1], atol=1e-5)
    assert second > 4

    state = method.init(cast, 4, True, window=16)
    method.admit(state, torch.arange(4), condition, sampling)
    ranks = torch.arange(16).expand(4, -1)
    with torch.inference_mode():
        p = state.law(state.forward(tokens.roll(1, 1), ranks - 1), ranks)
    ours = laws(model, lesson.features, sampling).softmax(-1)
    assert torch.allclose(p.probabilities, ours, atol=1e-5)


def test_later_steps_are_trained_as_they_are_drafted(pipe):
    """Three steps of an unrolled chain equal three steps through a cache of fixed slots."""
    head = pipe.draft_head
    lesson = teach(pipe.model, torch.randint(16, (2, 16)), Given(torch.tensor([0, 2]), None))
    states = unroll(head, lesson, 3)
    ranks = torch.arange(-1, 15).expand(4, -1)
    before = torch.nn.functional.pad(lesson.features[:, :-1], (0, 0, 1, 0))
    for start in (0, 1, 6, 13):
        cache = head.new_cache(4, 16)
        with torch.no_grad():
            known = slice(0, start + 1)
            state = head(lesson.embeddings[:, known], before[:, known], ranks[:, known], cache)
            state = state[:, -1:]
            for step in range(3):
                column = start + step
                assert torch.allclose(state, states[step][:, column : column + 1], atol=1e-5)
                after = slice(column + 1, column + 2)
                if step < 2:
                    state = head(lesson.embeddings[:, after], state, ranks[:, after], cache)


def test_a_head_learns_the_laws_of_its_model(pipe):
    model, head = pipe.model.requires_grad_(False), DraftHead.start_from(pipe.model)
    draw = torch.Generator().manual_seed(0)
    sampling = Sampling.create([0] * 6, 2.0)
    optimiser = torch.optim.Adam(head.parameters(), 3e-3)
    history = []
    for _ in range(40):
        tokens = torch.randint(16, (6, 16), generator=draw)
        lesson = teach(model, tokens, Given(torch.randint(3, (6,), generator=draw), None))
        law, features = losses(model, head, lesson, sampling, 2)
        history.append((float(law.detach()), float(features.detach())))
        (law + features).backward()
        optimiser.step()
        optimiser.zero_grad()
    (law, features), (first_law, first_features) = history[-1], history[0]
    floor = float(CategoricalLaw(logits=laws(model, lesson.features, sampling)).entropy().mean())
    assert floor * 0.6931 < law < first_law - 0.1  # entropy is in bits
    assert features < first_features


def test_a_pipeline_draws_with_its_head_and_says_what_it_cost(pipe, tmp_path):
    output = pipe(class_labels=["cat", "dog"], seeds=1)
    stats = output.stats
    assert stats.lossless and stats.window == 3
    assert stats.head_evaluations == 2 * 3 * max(stats.passes)
    assert stats.draft_evaluations == 2 * 2 * max(stats.passes)
    assert max(stats.passes) < 16
    assert not [key for key in pipe.model.state_dict() if "fc." in key]

    pipe.save_pretrained(tmp_path / "tiny")
    again = VisualARPipeline.from_pretrained(tmp_path / "tiny")
    assert isinstance(again.draft_head, DraftHead)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(again(class_labels=["cat", "dog"], seeds=1).tokens, output.tokens)
    again.draft_head = None
    with pytest.raises(ValueError, match="needs a model with a draft head trained for it"):
        again(class_labels="cat")


def test_a_lossy_rule_says_what_it_spends(pipe):
    pipe.scheduler = DraftHeadDecoding(window=4, rule="omega/omega=1.5", measure_tv=True)
    stats = pipe(class_labels=["cat", "dog"], seeds=1, temperature=2.0).stats
    assert not stats.lossless and 0 < stats.total_variation < 0.5
    pipe.scheduler = DraftHeadDecoding(window=4, rule="lantern++/neighbours=3")
    assert pipe(class_labels="cat", seeds=1).stats.total_variation > 0


def test_a_report_counts_drafts(pipe):
    schedule = Schedule(pictures=2, batches=(2,), rounds=1, warmup=0)
    workload = from_pipeline(pipe, ["cat", "dog"])
    document = bench(workload, ["draft-head:window=3"], schedule)
    baseline, ours = (method["batches"][0] for method in document["methods"])
    assert baseline["draft_evaluations_per_picture"] == 0
    assert ours["draft_evaluations_per_picture"] == 2 * ours["passes_per_batch"]
    assert ours["head_evaluations_per_picture"] == 3 * ours["passes_per_batch"]
    console = Console(file=io.StringIO(), width=120)
    console.print(render(document))
    assert "drafts: steps of a draft head" in console.file.getvalue()


def test_an_automatic_window_is_one_that_drafts(pipe, tmp_path, monkeypatch):
    monkeypatch.setenv("VISUAL_AR_CACHE", str(tmp_path))
    pipe.scheduler = DraftHeadDecoding()
    assert pipe(class_labels="cat", seeds=1).stats.window in DraftHeadDecoding.candidates


def test_heads_of_other_models_are_refused(pipe, make_tiny_pipeline):
    model, head = pipe.model, pipe.draft_head
    other = LlamaGen(**{k: v for k, v in model.config.items() if not k.startswith("_")})
    with pytest.raises(ValueError, match="got one for other weights of LlamaGen"):
        head.check(other)
    with pytest.raises(ValueError, match="whose width is 6, got one for 32"):
        head.check(ToyTokenModel(vocab_size=16))
    with pytest.raises(ValueError, match="whose number of codes is 3, got one for 16"):
        head.check(ToyTokenModel(vocab_size=3, hidden_size=32))
    parts = {**pipe.components, "model": other}
    with pytest.raises(ValueError, match="got one for other weights"):
        VisualARPipeline(**parts, height=8, width=8)
    for dtype in (torch.float16, torch.bfloat16):
        head.check(copy.deepcopy(model).to(dtype))


def test_what_the_method_cannot_serve_is_refused(pipe):
    model, head = pipe.model, pipe.draft_head
    fresh, half = model.__class__.from_config(model.config), copy.deepcopy(model).half()
    toy = ToyTokenModel(2, (2, 3, 3), hidden_size=32)
    layout, clip = model.layout(GRID), toy.layout((2, 3, 3))
    for cast, message in (
        (Cast(fresh, layout), r"this LlamaGen has none; (of the|no) bundled model"),
        (
            Cast(toy, clip, draft_head=DraftHead(32, 2, 2, grid_size=4)),
            r"every cell of the grid \(2, 3, 3\), got one for 4 x 4",
        ),
        (Cast(half, layout, draft_head=head), "must be torch.float16 like the model"),
    ):
        with pytest.raises(ValueError, match=message):
            DraftHeadDecoding().check(cast)
    with pytest.raises(ValueError, match="compares codes and needs a tokenizer"):
        DraftHeadDecoding(rule="lantern").check(Cast(model, layout, draft_head=head))
    with pytest.raises(ValueError, match="window must be 'auto' or a whole number"):
        DraftHeadDecoding(window=0)
    with pytest.raises(ValueError, match="rule must be one of"):
        DraftHeadDecoding(rule="near")
    with pytest.raises(ValueError, match="dim must be a multiple of 4 n_head = 12, got 32"):
        DraftHead(32, 3)
