"""Captured passes on a CPU, with a recorder of operations that stands in for CUDA graphs.

The recorder keeps the operations of a pass with the very tensors they worked on, and does them
again on those, as a graph does: what a pass reads on the host or keeps outside of the state's
tensors makes it fail or give other tokens.
"""

from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_iter

from visual_ar import accel
from visual_ar.accel.draft_head import DraftHeadDecoding
from visual_ar.accel.exact_match import ExactMatchJacobiDecoding
from visual_ar.accel.groups import GroupDecoding
from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.accel.loop import graphs
from visual_ar.accel.loop.graphs import CapturedSteps, extent_for
from visual_ar.accel.loop.state import Step
from visual_ar.accel.sequential import SequentialDecoding
from visual_ar.accel.tree_decoding import TreeDecoding
from visual_ar.cast import Cast
from visual_ar.engine import Engine
from visual_ar.models.nar import NAR
from visual_ar.sampling import Sampling
from visual_ar.testing import ToyBitModel, ToyTokenModel, decode_all, random_draft_head

HOST_READS = {
    *("item", "_local_scalar_dense", "nonzero", "equal", "is_nonzero"),
    *("masked_select", "unique_dim", "_unique2", "bincount", "repeat_interleave"),
}
CAPTURABLE = [name for name in accel.METHODS if accel.method(name)().capturable]


def storages(values):
    return {
        v.untyped_storage().data_ptr() for v in tree_iter(values) if isinstance(v, torch.Tensor)
    }


class Recorder(TorchDispatchMode):
    """Keeps every operation; refuses those for which a device would be waited."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        masked = name.startswith(("index", "_index")) and any(
            one.dtype == torch.bool for one in tree_iter(args[1:2]) if isinstance(one, torch.Tensor)
        )
        if name in HOST_READS or masked:
            raise RuntimeError(f"{function} waits for the device")
        result = function(*args, **kwargs)
        alias = bool(storages(result) & storages((args, kwargs)) - {0})
        if function._schema.is_mutable or not alias:
            self.operations.append((function, args, kwargs, result))
        return result

    def replay(self):
        with torch.inference_mode():
            for function, args, kwargs, result in self.operations:
                again = function(*args, **kwargs)
                if function._schema.is_mutable:
                    continue
                for old, new in zip(tree_flatten(result)[0], tree_flatten(again)[0], strict=True):
                    if isinstance(old, torch.Tensor):
                        old.copy_(new)


class FakeCapture:
    """Stands in for `CudaCapture`, but does what it records: the first replay is then over."""

    def __call__(self, body):
        recorder = Recorder()
        with recorder:
            step = body()
        done = iter([True])
        return lambda: next(done, False) or recorder.replay(), step


@pytest.fixture
def captured(monkeypatch):
    """Lets a CPU be a device whose passes are captured."""
    monkeypatch.setattr(CapturedSteps, "serves", staticmethod(lambda device: True))
    monkeypatch.setattr(CapturedSteps, "on", classmethod(lambda cls, device: cls(FakeCapture())))
    # As on a device: the recorder would not see what NumPy does.
    monkeypatch.setattr("visual_ar.sampling._numpy_selects", lambda logits: False)


def toy(pictures, guided=True):
    model = ToyTokenModel(4, (8, 6), hidden_size=8, seed=3)
    sampling = Sampling.create(list(range(pictures)), 1.6, 0.9)
    sampling.top_k[::2], sampling.top_p[1:] = 3, 0.9
    layout = model.layout((8, 6))
    layout.forced[7] = 2
    condition = model.condition([index % 2 for index in range(pictures)], guided)
    return Cast(model, layout, draft_head=random_draft_head(model)), condition, sampling


def by_one_operation_at_a_time(method, *given):
    method.capturable = False
    tokens, committed = decode_all(method, *given)
    del method.capturable
    return tokens, committed


VARIANTS = {
    **{name: accel.method(name) for name in CAPTURABLE},
    "block": partial(SpeculativeJacobiDecoding, coupling="independent", rule="block"),
    "head-block": partial(DraftHeadDecoding, rule="block"),
    "tree-head": partial(TreeDecoding, drafter="head", adapt="length"),
    "tree-gumbel": partial(TreeDecoding, coupling="gumbel"),
    "tree-lossy": partial(TreeDecoding, drafter="left-law+above-law", rule="omega/omega=1.2"),
}


def variant(name):
    """A method whose window makes several passes of the toy."""
    method = VARIANTS[name]()
    if "window" in method.config:
        method.register_to_config(window=5)
    return method


def test_all_methods_but_one_are_captured():
    assert set(accel.METHODS) - set(CAPTURABLE) == {"hybrid"}


@pytest.mark.parametrize("name", VARIANTS)
def test_captured_passes_give_the_tokens_of_eager_ones(captured, name):
    method, given = variant(name), toy(3)
    expected, committed = by_one_operation_at_a_time(method, *given)
    tokens, again = decode_all(method, *given)
    assert torch.equal(tokens, expected) and torch.equal(again, committed)
    # Attention reaches 32 slots, then all; that of wide trees reaches all at once.
    assert method.kept[1].captured.count in ((1, 2) if "tree" in name else (2,))


def test_captured_groups_give_the_tokens_of_eager_ones(captured):
    """Groups are of many widths; a captured pass has the widest."""
    torch.manual_seed(0)
    model = NAR(
        dim=32, n_layer=1, n_head=2, vocab_size=8, grid_size=4, ffn_dim=48, num_classes=3
    ).eval()
    for head in model.outputs:
        torch.nn.init.normal_(head.weight, std=0.6)
    cast = Cast(model, model.layout((4, 4)))
    sampling = Sampling.create([1, 2, 3], 1.6, 0.9)
    given = cast, model.condition(torch.tensor([0, 1, 2])), sampling
    method = GroupDecoding()
    expected, committed = by_one_operation_at_a_time(method, *given)
    tokens, again = decode_all(method, *given)
    assert torch.equal(tokens, expected) and torch.equal(again, committed)
    assert method.kept[1].captured.count


def toy_of_bits(pictures):
    model = ToyBitModel(3, (8, 6), seed=3)
    sampling = Sampling.create(list(range(pictures)), 1.6, 0.9)
    forced = torch.full((pictures, 48, 3), -1)
    forced[:, 7] = torch.tensor([1, 0, 1])
    layout = model.layout((8, 6)).with_forced(forced)
    condition = model.condition([index % 2 for index in range(pictures)], True)
    return Cast(model, layout), condition, sampling


BIT_METHODS = {
    "sequential": SequentialDecoding(),
    "exact-match": ExactMatchJacobiDecoding(window=5),
    "exact": SpeculativeJacobiDecoding(5, init="above-law"),
    "bitwise": SpeculativeJacobiDecoding(5, "independent", rule="bitwise"),
    "lossy": SpeculativeJacobiDecoding(5, "gumbel", rule="hamming-lantern"),
}


@pytest.mark.parametrize("name", BIT_METHODS)
def test_captured_passes_over_bits_give_the_tokens_of_eager_ones(captured, name):
    method, given = BIT_METHODS[name], toy_of_bits(3)
    expected, committed = by_one_operation_at_a_time(method, *given)
    tokens, again = decode_all(method, *given)
    assert torch.equal(tokens, expected) and torch.equal(again, committed)
    state = method.kept[1]
    assert state.captured.count == 2
    cast, condition, sampling = given
    free = cast.with_layout(cast.model.layout((8, 6)))  # nothing is forced now
    tokens, _ = decode_all(method, free, condition, sampling)
    assert method.kept[1] is state
    expected, _ = by_one_operation_at_a_time(method, free, condition, sampling)
    assert torch.equal(tokens, expected)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_later_call_finds_nothing_of_the_one_before(captured, name):
    method, first = variant(name), toy(2)
    decode_all(method, *first)
    state, count = method.kept[1], method.kept[1].captured.count
    cast, condition, sampling = first
    other = sampling._replace(seed=sampling.seed + 50)
    tokens, committed = decode_all(method, cast, condition, other)
    assert method.kept[1] is state and state.captured.count == count
    expected, again = by_one_operation_at_a_time(variant(name), cast, condition, other)
    assert torch.equal(tokens, expected) and torch.equal(committed, again)


@pytest.mark.parametrize("coupling", ["independent", "maximal", "gumbel"])
def test_later_calls_reuse_the_graphs(captured, coupling):
    method = SpeculativeJacobiDecoding(4, coupling, init="above-law")
    first = toy(2)
    decode_all(method, *first)
    state, count = method.kept[1], method.kept[1].captured.count
    cast, condition, sampling = first
    other = sampling._replace(seed=sampling.seed + 50, guidance=sampling.guidance * 0.7)
    free = cast.with_layout(cast.model.layout((8, 6)))  # nothing is forced now
    tokens, _ = decode_all(method, free, condition, other)
    assert method.kept[1] is state and state.captured.count == count
    fresh = SpeculativeJacobiDecoding(4, coupling, init="above-law")
    expected, _ = by_one_operation_at_a_time(fresh, free, condition, other)
    assert torch.equal(tokens, expected)


def test_only_a_state_that_fits_is_reused(captured):
    method = SequentialDecoding()
    given = toy(2)
    decode_all(method, *given)
    state = method.kept[1]
    one, two = (method.decode(*given) for _ in range(2))
    next(one), next(two)  # two calls at a time
    assert method.kept is None
    two.close()
    assert method.kept[1] is not state
    one.close()
    assert method.kept[1] is state
    model = given[0].model
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    decode_all(method, *given)
    assert method.kept[1] is not state  # the weights lie elsewhere


def test_a_failed_call_leaves_no_state_behind(captured):
    method = SequentialDecoding()
    steps = method.decode(*toy(2))
    next(steps)
    with pytest.raises(ZeroDivisionError):
        steps.throw(ZeroDivisionError())
    assert method.kept is None


def graphs_of(engine):
    (lane,) = engine._lanes._lanes.values()
    return lane.state.captured


def test_pictures_are_admitted_between_captured_passes(captured, tiny_pipeline):
    pipe = tiny_pipeline
    pipe.scheduler = SpeculativeJacobiDecoding(window=3)
    requests = [pipe.check_inputs(class_labels=n % 3, seeds=n, top_k=n) for n in range(5)]
    with Engine(pipe, slots=2) as engine:
        together = [engine.submit(request)[0] for request in requests]
        found = [job.result().tokens for job in together]
    assert graphs_of(engine).count >= 1
    pipe.scheduler.capturable = False
    with Engine(pipe, slots=2) as engine:
        expected = [engine.submit(request)[0].result().tokens for request in requests]
    assert graphs_of(engine) is None
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


class Careless(SequentialDecoding):
    """Does in `step` what a graph cannot."""

    def step(self, state):
        step = super().step(state)
        self.misdeed(state)
        return step


@pytest.mark.parametrize(
    ("misdeed", "message"),
    [
        (lambda state: state.length.sum().item(), "waits for the device"),
        (lambda state: setattr(state, "window", state.window + 1), "keep what it changes in"),
        (lambda state: setattr(state, "length", state.length[:1]), r"got length \[1\] after \[2\]"),
    ],
)
def test_a_step_that_cannot_be_captured_is_an_error(captured, misdeed, message):
    method = Careless()
    method.misdeed = misdeed
    with pytest.raises(RuntimeError, match=message):
        decode_all(method, *toy(2))


def test_buffers_that_trade_places_keep_their_contents():
    state = SequentialDecoding().init(toy(2)[0], 2)
    state.length, state.passes = torch.tensor([3, 4]), torch.tensor([5, 6])
    length, passes = state.length, state.passes

    def swap(state):
        state.length, state.passes = state.passes, state.length
        return Step(state.tokens, state.tokens, state.passes, 1, state.done)

    graphs._in_place(swap, state)
    assert state.length is length and state.passes is passes
    assert length.tolist() == [5, 6] and passes.tolist() == [3, 4]


def test_a_result_belongs_to_the_caller(captured):
    kept = list(SequentialDecoding().decode(*toy(1)))
    known = [int(step.known.sum()) for step in kept]
    assert known == list(range(1, 49))


def test_extents_are_few_and_not_much_too_large():
    for limit in (576, 4200):
        found = {extent_for(slots, limit, True) for slots in range(1, limit + 1)}
        assert len(found) <= 4 * limit.bit_length() - 24
        for slots in range(1, limit + 1):
            extent = extent_for(slots, limit, True)
            assert slots <= extent <= max(1.25 * slots, slots + 32)
            assert extent <= limit
    assert extent_for(300, 900, False) == 320
