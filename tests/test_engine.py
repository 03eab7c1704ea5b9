"""The slot engine: the same pictures as alone, room, cancelling, errors of one, draining."""

import random
from concurrent.futures import CancelledError

import numpy as np
import pytest
import torch
from held_passes import WAIT, HeldPasses

from visual_ar.accel.exact_match import ExactMatchJacobiDecoding
from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.accel.sequential import SequentialDecoding
from visual_ar.accel.tree_decoding import TreeDecoding
from visual_ar.engine import Engine, EngineClosed, QueueFull
from visual_ar.models.llamagen import LlamaGen
from visual_ar.pipeline import VisualARPipeline

CELLS = 16
METHODS = {
    "sequential": SequentialDecoding(),
    "exact-match": ExactMatchJacobiDecoding(window=4),
    "jacobi": SpeculativeJacobiDecoding(window=4),
    "gumbel": SpeculativeJacobiDecoding(window=3, coupling="gumbel"),
    "tree": TreeDecoding(window=3, tree="2", drafter="left-law+above-law"),
    "adapting": TreeDecoding(window=4, tree="2", adapt="length"),
    "lossy": SpeculativeJacobiDecoding(window=3, rule="typical"),
}
ASKED = [
    {"guidance_scale": 3.0, "seeds": 1},
    {"guidance_scale": 1.0, "seeds": 2, "temperature": 0.7},
    {"top_k": 5, "seeds": 3},
    {"top_p": 0.8, "seeds": 4, "guidance_schedule": "linear"},
    {"temperature": 1.3, "top_k": 3, "top_p": 0.9, "seeds": 5},
    {"seeds": 6},
    {"guidance_scale": 0.0, "seeds": 7},
]
PROMPTS = ["red apple", "tree", "green red tree", "apple", "green", "red", "tree apple"]


def ask(pipe, count=1, **options):
    return pipe.check_inputs(
        class_labels="cat", num_images_per_prompt=count, **{"seeds": 0, **options}
    )


@pytest.mark.parametrize(
    ("method", "text"), [*((name, False) for name in METHODS), ("jacobi", True)]
)
def test_a_picture_is_the_same_alone_and_among_others(
    make_tiny_pipeline, start_engine, method, text
):
    pipe = make_tiny_pipeline(text=text)
    pipe.scheduler = METHODS[method]
    requests = [
        pipe.check_inputs(**({"prompt": prompt} if text else {"class_labels": index % 3}), **asked)
        for index, (prompt, asked) in enumerate(zip(PROMPTS, ASKED, strict=True))
    ]
    engine = start_engine(pipe, slots=3)
    alone = [engine.submit(request)[0].result(WAIT) for request in requests]
    for order in (list(range(7)), random.Random(0).sample(range(7), 7)):
        jobs = {index: engine.submit(requests[index])[0] for index in order}
        for index, job in jobs.items():
            picture = job.result(WAIT)
            assert torch.equal(picture.tokens, alone[index].tokens)
            assert picture.passes == alone[index].passes <= CELLS
            assert (np.asarray(picture.image()) == np.asarray(alone[index].image())).all()
    assert len({tuple(picture.tokens[0].tolist()) for picture in alone}) == 7


def test_every_pass_has_the_same_shape(tiny_pipeline, start_engine, monkeypatch):
    """Sums of another length round differently, so attention reads all of the cache, always."""
    model = LlamaGen(
        dim=32, n_layer=1, n_head=2, vocab_size=16, grid_size=8, ffn_dim=48, num_classes=3
    )
    pipe = VisualARPipeline(
        model.eval(),
        tiny_pipeline.image_tokenizer,
        SequentialDecoding(),
        class_names=["cat", "dog", "frog"],
        height=16,
        width=16,
    )
    shapes, step = set(), pipe.scheduler.step

    def seen(state):
        shapes.add((state.tokens.shape, state.cache.extent))
        return step(state)

    monkeypatch.setattr(pipe.scheduler, "step", seen)
    engine = start_engine(pipe, slots=2)
    for job in engine.submit(ask(pipe, 3)):
        job.result(WAIT)
    assert shapes == {((2, 65), 66)}


def test_a_picture_is_that_of_the_pipeline(tiny_pipeline, start_engine):
    options = {"class_labels": ["cat", "dog", "frog"], "seeds": [5, 9, 2], "top_k": 6}
    expected = tiny_pipeline(**options)
    jobs = start_engine(tiny_pipeline, slots=2).submit(tiny_pipeline.check_inputs(**options))
    pictures = [job.result(WAIT) for job in jobs]
    assert torch.equal(torch.cat([picture.tokens for picture in pictures]), expected.tokens)
    assert [picture.seed for picture in pictures] == [5, 9, 2]
    for picture, image in zip(pictures, expected.images, strict=True):
        assert np.allclose(np.asarray(picture.image()), np.asarray(image), rtol=0, atol=1)


def test_previews_are_evenly_spaced_and_end_with_the_picture(tiny_pipeline, start_engine):
    engine = start_engine(tiny_pipeline, slots=2)
    [job] = engine.submit(ask(tiny_pipeline), previews=3)
    previews = list(job)
    assert [preview.fraction for preview in previews] == [0.25, 0.5, 0.75]
    picture = job.result(WAIT)
    assert picture.fraction == 1 and bool(picture.known.all())
    for preview in previews:
        assert int(preview.known.sum()) == preview.fraction * CELLS
        assert torch.equal(preview.tokens[preview.known], picture.tokens[preview.known])
        assert preview.image().size == (8, 8)
    [silent] = engine.submit(ask(tiny_pipeline))
    assert list(silent) == []
    heard = []
    job.listen(heard.append)
    assert heard == [*previews, picture]


def test_a_full_queue_refuses_all_or_nothing(tiny_pipeline, start_engine, monkeypatch):
    engine = start_engine(tiny_pipeline, slots=2, queue=3)
    passes = HeldPasses(engine, monkeypatch)
    first = engine.submit(ask(tiny_pipeline, 4))
    with pytest.raises(QueueFull, match="room for 2 more pictures, got 4 of 5") as refusal:
        engine.submit(ask(tiny_pipeline, 2))
    assert refusal.value.retry_after >= 1
    last = engine.submit(ask(tiny_pipeline, 1))
    with pytest.raises(QueueFull):
        engine.submit(ask(tiny_pipeline, 1))
    first[3].cancel()
    again = engine.submit(ask(tiny_pipeline, 1))
    passes.open()
    for job in (*first[:3], *last, *again):
        job.result(WAIT)
    stats = engine.stats
    assert (stats.finished, stats.cancelled, stats.refused) == (5, 1, 3)
    assert stats.tokens == 5 * CELLS and stats.busy == stats.waiting == 0


def test_cancelling_frees_the_slot_before_the_next_pass(tiny_pipeline, start_engine, monkeypatch):
    engine = start_engine(tiny_pipeline, slots=1)
    passes = HeldPasses(engine, monkeypatch)
    [held] = engine.submit(ask(tiny_pipeline))
    passes.wait()
    [waiting] = engine.submit(ask(tiny_pipeline, seeds=5))
    held.cancel()
    passes.open()
    with pytest.raises(CancelledError):
        held.result(0)
    assert list(held) == []
    expected = tiny_pipeline(class_labels="cat", seeds=5).tokens
    assert torch.equal(waiting.result(WAIT).tokens, expected)
    # One pass of the picture that was given up, then those of the other one.
    assert engine.stats.passes == 1 + CELLS
    waiting.cancel()
    assert torch.equal(waiting.result(0).tokens, expected)


def test_an_error_of_one_picture_leaves_the_others(tiny_pipeline, start_engine, monkeypatch):
    encode = tiny_pipeline.encode_condition
    engine = start_engine(tiny_pipeline, slots=2)

    def failing(request, guided=None):
        if request.seeds == [13]:
            raise RuntimeError("no such condition")
        return encode(request, guided)

    monkeypatch.setattr(tiny_pipeline, "encode_condition", failing)
    jobs = engine.submit(ask(tiny_pipeline, 3, seeds=[12, 13, 14]))
    with pytest.raises(RuntimeError, match="no such condition"):
        jobs[1].result(WAIT)
    assert jobs[0].result(WAIT).fraction == jobs[2].result(WAIT).fraction == 1
    assert engine.stats.failed == 1


def test_a_failed_pass_ends_its_pictures_and_not_the_engine(
    tiny_pipeline, start_engine, monkeypatch
):
    method = tiny_pipeline.scheduler
    step, failures = method.step, [MemoryError("no memory left")]
    engine = start_engine(tiny_pipeline, slots=2)

    def failing(state):
        if failures:
            raise failures.pop()
        return step(state)

    monkeypatch.setattr(method, "step", failing)
    [job] = engine.submit(ask(tiny_pipeline))
    with pytest.raises(MemoryError, match="no memory left"):
        job.result(WAIT)
    [after] = engine.submit(ask(tiny_pipeline, seeds=5))
    expected = tiny_pipeline(class_labels="cat", seeds=5).tokens
    assert torch.equal(after.result(WAIT).tokens, expected)


def test_warps_of_pictures_that_left_cost_nothing(tiny_pipeline, start_engine):
    engine = start_engine(tiny_pipeline, slots=2)
    for top_k in range(2, 8):
        engine.submit(ask(tiny_pipeline, top_k=top_k, top_p=0.9))[0].result(WAIT)
    engine.submit(ask(tiny_pipeline, top_k=9))[0].result(WAIT)
    [lane] = engine._lanes._lanes.values()
    assert lane.state.warps == (False, (9,), False)


def test_closing_finishes_what_was_accepted(tiny_pipeline):
    engine = Engine(tiny_pipeline, slots=2)
    jobs = engine.submit(ask(tiny_pipeline, 7))
    engine.close()
    assert all(job.result(0).fraction == 1 for job in jobs)
    assert not engine.accepting
    with pytest.raises(EngineClosed, match="closing"):
        engine.submit(ask(tiny_pipeline))
    engine.close()


def test_closing_gives_up_after_the_timeout(tiny_pipeline, monkeypatch):
    engine = Engine(tiny_pipeline, slots=1)
    passes = HeldPasses(engine, monkeypatch)
    jobs = engine.submit(ask(tiny_pipeline, 2))
    passes.wait()
    for job in jobs:  # the engine is let go once it has given up all of them
        job.listen(lambda event: passes.open() if all(job.over for job in jobs) else None)
    engine.close(0.01)
    for job in jobs:
        with pytest.raises(CancelledError):
            job.result(0)
    assert engine.stats.cancelled == 2


def test_what_slots_cannot_do_is_refused(tiny_pipeline, make_tiny_pipeline, start_engine):
    for options, message in (
        ({"slots": 0}, "slots must be a whole number of at least 1, got 0"),
        ({"queue": -1}, "queue must be a whole number of at least 0, got -1"),
        ({"slots": 2.0}, "slots must be a whole number of at least 1, got 2.0"),
    ):
        with pytest.raises(ValueError, match=message):
            Engine(tiny_pipeline, **options)
    engine = start_engine(tiny_pipeline, slots=1)
    completing = ask(tiny_pipeline, image=torch.zeros(3, 8, 8), mask=np.ones((4, 4), dtype=bool))
    with pytest.raises(ValueError, match="image must be left out"):
        engine.submit(completing)
    with pytest.raises(ValueError, match="previews must be a whole number of at least 0, got -1"):
        engine.submit(ask(tiny_pipeline), previews=-1)
    hooked = make_tiny_pipeline()
    hooked.model._hf_hook = object()
    with pytest.raises(ValueError, match="without offloading"):
        Engine(hooked)
    [job] = engine.submit(ask(tiny_pipeline, 1))
    job.result(WAIT)


def test_waiting_for_a_picture_can_be_limited(tiny_pipeline, start_engine, monkeypatch):
    engine = start_engine(tiny_pipeline, slots=1)
    passes = HeldPasses(engine, monkeypatch)
    [job] = engine.submit(ask(tiny_pipeline))
    with pytest.raises(TimeoutError, match=r"not complete after 0.01 s"):
        job.result(0.01)
    passes.open()
    assert job.result(WAIT).fraction == 1
