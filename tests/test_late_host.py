"""Where the host learns late that pictures are complete, as on CUDA, all counts stay the same.

A device whose numbers arrive one step late gets a pass that does nothing after the last one; nobody
is told of it.
"""

from contextlib import contextmanager

import pytest
import torch

from visual_ar.accel.draft_head import DraftHeadDecoding
from visual_ar.accel.exact_match import ExactMatchJacobiDecoding
from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.accel.loop.host_copy import HostCopy
from visual_ar.accel.sequential import SequentialDecoding
from visual_ar.accel.tree_decoding import TreeDecoding
from visual_ar.cast import Cast
from visual_ar.engine import Engine
from visual_ar.sampling import Sampling
from visual_ar.testing import ToyTokenModel, random_draft_head

CPU = torch.device("cpu")
METHODS = {
    "sequential": SequentialDecoding(),
    "exact-match": ExactMatchJacobiDecoding(window=4),
    "jacobi": SpeculativeJacobiDecoding(5),
    "lossy": SpeculativeJacobiDecoding(5, rule="typical"),
    "draft-head": DraftHeadDecoding(window=4),
    "tree": TreeDecoding(window=4, tree="2x2"),
}
GRIDS = [((6, 4), (7, 23)), ((1, 2), ()), ((2, 2), range(4))]


class Event:
    """Of a device that is always done."""

    def record(self):
        """Marks nothing."""

    def synchronize(self):
        """Waits for nothing."""


@contextmanager
def late():
    """Lets numbers arrive one push late on a CPU."""
    create = HostCopy.__init__

    def init(self, *given):
        create(self, *given)
        self._lags, self._events = True, [Event(), Event()]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HostCopy, "__init__", init)
        yield


def toy(grid, forced=()):
    model = ToyTokenModel(4, grid, seed=3, hidden_size=8)
    layout = model.layout(grid)
    layout.forced[list(forced)] = 2
    condition = model.condition([0, 1, 0], True)
    sampling = Sampling.create([0, 1, 2], 1.6, 0.9)
    return Cast(model, layout, draft_head=random_draft_head(model)), condition, sampling


def told(method, given):
    """Every step of a decode as plain data, its tokens, and how many passes were made for it."""
    passes, run = [], method.run

    def counted(state):
        passes.append(state)
        return run(state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method, "run", counted)
        steps = list(method.decode(*given))
    facts = [
        (
            step.committed.tolist(),
            step.head_evaluations,
            step.draft_evaluations,
            step.known.tolist(),
            step.done.tolist(),
            None if step.spent is None else step.spent.tolist(),
        )
        for step in steps
    ]
    return facts, steps[-1].tokens, len(passes)


def test_numbers_arrive_late():
    with late():
        copy, read = HostCopy(CPU, 7), []
        for value in (1, 2, 3):
            copy.push(torch.tensor(value))
            read.append(copy.read())
        assert copy.lag == 1
    assert read == [7, 1, 2]
    assert HostCopy(CPU, 7).lag == 0


@pytest.mark.parametrize(("grid", "forced"), GRIDS)
@pytest.mark.parametrize("name", METHODS)
def test_a_late_host_is_told_of_the_same_passes(name, grid, forced):
    given = toy(grid, forced)
    expected, tokens, passes = told(METHODS[name], given)
    with late():
        found, again, made = told(METHODS[name], given)
    assert found == expected and torch.equal(again, tokens)
    assert (passes, made) == (len(expected), len(expected) + 1)
    assert any(found[-1][0])  # the last one that it is told of did something


@pytest.mark.parametrize("name", ["sequential", "jacobi"])
def test_the_statistics_of_a_call_are_the_same(tiny_pipeline, name):
    tiny_pipeline.scheduler = METHODS[name]

    def drawn():
        output = tiny_pipeline(class_labels=[0, 1, 2], seeds=[1, 2, 3], output_type="tokens")
        facts = output.stats.to_dict()
        del facts["seconds"]
        return facts, output.tokens

    expected, tokens = drawn()
    with late():
        found, again = drawn()
    assert found == expected and torch.equal(again, tokens)


def test_pictures_in_slots_count_the_same_passes(tiny_pipeline):
    tiny_pipeline.scheduler = METHODS["jacobi"]
    requests = [tiny_pipeline.check_inputs(class_labels=n % 3, seeds=n) for n in range(4)]

    def drawn():
        with Engine(tiny_pipeline, slots=2) as engine:
            jobs = [engine.submit(request)[0] for request in requests]
            pictures = [job.result() for job in jobs]
        return [(picture.passes, picture.tokens.tolist()) for picture in pictures]

    expected = drawn()
    with late():
        assert drawn() == expected
