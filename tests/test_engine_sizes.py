"""The slot engine with pictures of several sizes: one lane of slots each, under one memory."""

import pytest
import torch
from held_passes import WAIT, HeldPasses

from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.accel.sequential import SequentialDecoding
from visual_ar.engine import Engine
from visual_ar.layout import raster_layout
from visual_ar.models.llamagen import LlamaGen
from visual_ar.pipeline import VisualARPipeline

LARGE, SMALL = {}, {"height": 4, "width": 4}
METHODS = {"sequential": SequentialDecoding(), "jacobi": SpeculativeJacobiDecoding(window=3)}


class TwoSizes(LlamaGen):
    """A model of grids of 4x4 and of 2x2 cells."""

    def layout(self, grid):
        """The raster order of either grid."""
        if tuple(grid) not in ((4, 4), (2, 2)):
            raise ValueError(f"grid must be (4, 4) or (2, 2), got {tuple(grid)}")
        return raster_layout(tuple(grid))


@pytest.fixture
def pipe(tiny_pipeline):
    """The tiny pipeline with a model of two sizes: pictures of 8x8 and of 4x4 pixels."""
    model = TwoSizes.from_config(tiny_pipeline.model.config).eval()
    model.load_state_dict(tiny_pipeline.model.state_dict())
    pipe = VisualARPipeline(**{**tiny_pipeline.components, "model": model}, height=8, width=8)
    pipe.register_to_config(class_names=["cat", "dog", "frog"], guidance_scale=2.0)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ask(pipe, size, seeds, label="cat"):
    count = len(seeds)
    return pipe.check_inputs(class_labels=label, num_images_per_prompt=count, seeds=seeds, **size)


def keys(engine):
    """The grids of the lanes that there are, those used last at the end."""
    return [lane.layout.grid for lane in engine._lanes._lanes.values()]


def in_order(jobs):
    """Numbers of pictures in the order in which they are complete, once they are."""
    ended = []
    for number, job in enumerate(jobs):
        job.listen(lambda event, number=number: ended.append(number))
    return ended


@pytest.mark.parametrize("method", METHODS)
def test_both_sizes_are_served_and_a_picture_is_the_same_alone(pipe, start_engine, method):
    pipe.scheduler = METHODS[method]
    asked = [ask(pipe, size, [seed]) for seed in range(4) for size in (LARGE, SMALL)]
    engine = start_engine(pipe, slots=2)
    alone = [engine.submit(request)[0].result(WAIT) for request in asked]
    assert keys(engine) == [(4, 4), (2, 2)]
    together = [engine.submit(request)[0] for request in asked]
    for request, job, picture in zip(asked, together, alone, strict=True):
        drawn = job.result(WAIT)
        assert torch.equal(drawn.tokens, picture.tokens)
        assert drawn.passes == picture.passes <= request.layout.length
        assert drawn.image().size == (request.size.width, request.size.height)
    assert len({tuple(picture.tokens[0].tolist()) for picture in alone}) == 8
    assert engine.stats.tokens == 2 * 4 * (16 + 4)


def test_a_picture_of_another_size_is_that_of_the_pipeline(pipe, start_engine):
    labels, seeds = ["dog", "dog"], [5, 9]
    expected = [pipe(class_labels=labels, seeds=seeds, **size).tokens for size in (LARGE, SMALL)]
    engine = start_engine(pipe, slots=2)
    jobs = [engine.submit(ask(pipe, size, seeds, "dog")) for size in (LARGE, SMALL)]
    for parts, tokens in zip(jobs, expected, strict=True):
        assert torch.equal(torch.cat([job.result(WAIT).tokens for job in parts]), tokens)


def test_previews_of_both_sizes_are_of_their_own_length(pipe, start_engine):
    engine = start_engine(pipe, slots=1)
    jobs = [engine.submit(ask(pipe, size, [1]), previews=1)[0] for size in (LARGE, SMALL)]
    for job, cells in zip(jobs, (16, 4), strict=True):
        [preview] = list(job)
        assert (preview.fraction, int(preview.known.sum())) == (0.5, cells // 2)
        assert preview.image().size == job.result(WAIT).image().size


def test_a_size_that_the_model_has_not_is_refused_where_it_is_asked_for(pipe):
    with pytest.raises(ValueError, match="must be a size this model was trained for, got 6x6"):
        ask(pipe, {"height": 6, "width": 6}, [0])


def test_without_memory_an_idle_size_is_given_up_and_made_again(pipe, start_engine):
    engine = start_engine(pipe, slots=2, memory=1)
    assert keys(engine) == [(4, 4)]
    drawn = []
    for size, grid in ((LARGE, (4, 4)), (SMALL, (2, 2)), (LARGE, (4, 4)), (SMALL, (2, 2))):
        [job] = engine.submit(ask(pipe, size, [3]))
        drawn.append(job.result(WAIT).tokens)
        assert keys(engine) == [grid]
    assert torch.equal(drawn[0], drawn[2]) and torch.equal(drawn[1], drawn[3])


def test_with_memory_for_all_no_size_is_given_up(pipe, start_engine):
    engine = start_engine(pipe, slots=2)
    lanes = []
    for size in (LARGE, SMALL, LARGE, SMALL):
        engine.submit(ask(pipe, size, [3]))[0].result(WAIT)
        lanes.append(list(engine._lanes._lanes.values())[-1])
    assert lanes[0] is lanes[2] and lanes[1] is lanes[3] and lanes[0] is not lanes[1]


def test_without_memory_pictures_wait_while_the_other_size_is_busy(pipe, start_engine, monkeypatch):
    engine = start_engine(pipe, slots=2, memory=1)
    passes = HeldPasses(engine, monkeypatch)
    large = engine.submit(ask(pipe, LARGE, [1, 2]))
    small = engine.submit(ask(pipe, SMALL, [3]))
    passes.wait()
    passes.allow(10)
    stats = engine.stats
    assert (stats.busy, stats.waiting) == (2, 1) and keys(engine) == [(4, 4)]
    ended = in_order([*large, *small])
    passes.open()
    expected = pipe(class_labels="cat", seeds=[3], **SMALL).tokens
    assert torch.equal(small[0].result(WAIT).tokens, expected)
    assert ended == [0, 1, 2]


def test_without_memory_no_size_waits_for_ever(pipe, start_engine, monkeypatch):
    """Slots of the busy size that fall idle one after the other are not filled again before it."""
    engine = start_engine(pipe, slots=2, memory=1)
    passes = HeldPasses(engine, monkeypatch)
    jobs = engine.submit(ask(pipe, LARGE, [1]))
    passes.wait()
    passes.allow(5)
    jobs += engine.submit(ask(pipe, LARGE, [2]))
    jobs += engine.submit(ask(pipe, SMALL, [3]))
    jobs += engine.submit(ask(pipe, LARGE, [4, 5, 6]))
    ended = in_order(jobs)
    passes.open()
    for job in jobs:
        job.result(WAIT)
    assert ended == [0, 1, 2, 3, 4, 5]


def test_a_cancelled_picture_leaves_its_memory_to_the_other_size(pipe, start_engine, monkeypatch):
    engine = start_engine(pipe, slots=1, memory=1)
    passes = HeldPasses(engine, monkeypatch)
    [large] = engine.submit(ask(pipe, LARGE, [1]))
    passes.wait()
    [small] = engine.submit(ask(pipe, SMALL, [2]))
    large.cancel()
    passes.open()
    assert small.result(WAIT).fraction == 1
    # One pass of the picture that was given up, then those of the other one.
    assert engine.stats.passes == 1 + 4


def test_closing_finishes_the_pictures_of_every_size(pipe):
    engine = Engine(pipe, slots=1, memory=1)
    jobs = [job for size in (LARGE, SMALL, LARGE) for job in engine.submit(ask(pipe, size, [1, 2]))]
    engine.close()
    assert all(job.result(0).fraction == 1 for job in jobs)


def test_an_error_of_one_size_leaves_the_other(pipe, start_engine, monkeypatch):
    engine = start_engine(pipe, slots=1)
    init = pipe.scheduler.init

    def failing(cast, *rest):
        if cast.layout.length == 4:
            raise MemoryError("no memory left")
        return init(cast, *rest)

    monkeypatch.setattr(pipe.scheduler, "init", failing)
    jobs = [engine.submit(ask(pipe, size, [1]))[0] for size in (LARGE, SMALL, LARGE)]
    with pytest.raises(MemoryError, match="no memory left"):
        jobs[1].result(WAIT)
    assert jobs[0].result(WAIT).fraction == jobs[2].result(WAIT).fraction == 1
    monkeypatch.undo()
    assert engine.submit(ask(pipe, SMALL, [1]))[0].result(WAIT).fraction == 1
