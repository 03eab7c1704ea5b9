"""The choice of a window: its arithmetic, its measurement on an engine, its bounds, its store."""

import json
from itertools import chain, count

import numpy as np
import pytest
import torch

from visual_ar.accel import METHODS
from visual_ar.accel import method as constructor
from visual_ar.accel.exact_match import ExactMatchJacobiDecoding
from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.accel.loop import window, window_store
from visual_ar.accel.loop.window_store import Measured, Trial
from visual_ar.cast import Cast
from visual_ar.sampling import Sampling
from visual_ar.testing import ToyTokenModel, decode_all


@pytest.fixture
def pictures():
    model = ToyTokenModel(vocab_size=3, grid=(4, 5), sharpness=3.0)
    sampling = Sampling.create([0, 1], guidance=1.5)
    return Cast(model, model.layout((4, 5))), model.condition([0, 1], True), sampling


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("VISUAL_AR_CACHE", str(tmp_path))
    return tmp_path / "visual_ar" / "windows.json"


def clock(monkeypatch, readings):
    """Passes take what the readings say; one is made before a pass and one after it."""
    monkeypatch.setattr(window, "_clock", lambda device: (readings.__next__, 1e-9))


@pytest.mark.parametrize(
    ("rates", "best"),
    [
        ([1, 2, 3, 4, 5], 16),
        ([5, 4, 3, 2, 1], 1),
        ([1, 2, 3, 4, 3], 8),
        ([2, 3, 1.6, 4, 1], 8),
        ([4, 3, 2, 1, 5], 1),  # a peak, and none that lies beyond a valley
        ([1, 1, 1, 1, 1], 4),
    ],
)
def test_the_window_with_more_tokens_a_second_than_its_neighbours_wins(rates, best):
    by_window = dict(zip((1, 2, 4, 8, 16), rates, strict=True))
    found = window.fastest_window(list(by_window), lambda width: Trial(by_window[width], 1.0))
    assert found.window == best
    assert all(trial.rate == by_window[width] for width, trial in found.trials.items())


def test_rates_are_of_passes_with_the_window_itself(pictures, monkeypatch):
    """With a clock that ticks once a reading, tokens a second are tokens a pass."""
    clock(monkeypatch, count())
    rates = {
        width: window.try_window(SpeculativeJacobiDecoding(), *pictures, width).rate
        for width in (1, 2, 16)
    }
    assert rates[1] == 2  # one token of each of two pictures
    assert rates[1] < rates[2] < rates[16]
    stats = decode_all(SpeculativeJacobiDecoding(window=16), *pictures)[1]
    assert rates[16] == pytest.approx(2 * 20 / len(stats))


def test_a_pass_that_was_interrupted_does_no_harm(pictures, monkeypatch):
    clock(monkeypatch, chain([0, 1, 1, 2, 2, 3, 3, 400], count(400)))  # the fourth pass takes 397
    assert window.try_window(SpeculativeJacobiDecoding(), *pictures, 1).rate == 2


def test_on_a_cpu_only_the_processor_counts(pictures, monkeypatch):
    """A clock that other programs drive on, as they do on a busy machine, decides nothing."""
    late = chain.from_iterable((n, n + 1000 * (n % 7)) for n in count())
    monkeypatch.setattr(window.time, "perf_counter", lambda: next(late))
    ticks = count()
    monkeypatch.setattr(window.time, "thread_time", lambda: next(ticks))
    assert window.try_window(SpeculativeJacobiDecoding(), *pictures, 1).rate == 2


def test_a_clock_too_coarse_for_a_pass_leaves_it_to_the_passes(pictures, monkeypatch):
    monkeypatch.setattr(window, "_clock", lambda device: (lambda: 0.0, 0.015))
    rates = [
        window.try_window(SpeculativeJacobiDecoding(), *pictures, width).rate for width in (2, 16)
    ]
    assert rates[0] < rates[1]


@pytest.mark.parametrize("name", METHODS)
def test_no_method_that_speculates_takes_window_1_by_itself(name, pictures, store, monkeypatch):
    method = constructor(name)()
    if not isinstance(method, window.WindowedDecoding):
        pytest.skip("has no window")
    assert 1 not in method.windows()
    monkeypatch.setattr(window, "try_window", lambda *given: Trial(1.0, float(given[-1])))
    if method.config.window == "auto":
        assert window.tuned_window(method, *pictures) == 2  # the narrower, the faster it seemed


def test_a_measured_window_is_kept_and_used(pictures, store, monkeypatch):
    method = SpeculativeJacobiDecoding()
    chosen = method.choose_window(*pictures)
    (entry,) = json.loads(store.read_text()).values()
    assert entry["window"] == chosen
    assert str(chosen) in entry["tried"]
    monkeypatch.setattr(window, "try_window", lambda *_: pytest.fail("measured twice"))
    assert method.choose_window(*pictures) == chosen
    assert SpeculativeJacobiDecoding(window=3).choose_window(*pictures) == 3


def other_model(cast, sampling):
    model = ToyTokenModel(vocab_size=3, grid=(4, 5), sharpness=2.0)
    return Cast(model, cast.layout), sampling


def other_weights(cast, sampling):
    model = ToyTokenModel(vocab_size=3, grid=(4, 5), sharpness=3.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)
    return Cast(model, cast.layout), sampling


OTHERWISE = {
    "guidance": lambda cast, sampling: (cast, Sampling.create([0, 1], guidance=2.5)),
    "temperature": lambda cast, sampling: (cast, Sampling.create([0, 1], 1.5, temperature=0.5)),
    "top_k": lambda cast, sampling: (cast, Sampling.create([0, 1], 1.5, top_k=2)),
    "top_p": lambda cast, sampling: (cast, Sampling.create([0, 1], 1.5, top_p=0.5)),
    "model": other_model,
    "weights": other_weights,
}


@pytest.mark.parametrize("change", [*OTHERWISE, "threads", "processor", "rows", "method"])
def test_other_circumstances_have_a_window_of_their_own(change, pictures, store, monkeypatch):
    cast, condition, sampling = pictures
    widths = iter([2, 4])
    monkeypatch.setattr(window, "fastest_window", lambda *_: _measured(next(widths)))
    method = SpeculativeJacobiDecoding()
    assert method.choose_window(*pictures) == 2
    assert method.choose_window(cast, condition, Sampling.create([7, 8], guidance=1.5)) == 2
    if change in OTHERWISE:
        cast, sampling = OTHERWISE[change](cast, sampling)
    elif change == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    elif change == "processor":
        monkeypatch.setattr(window_store, "processor_name", lambda: "another")
    elif change == "rows":
        condition = cast.model.condition([0, 1], False)
    else:
        method = ExactMatchJacobiDecoding()
    assert method.choose_window(cast, condition, sampling) == 4


def _measured(width):
    return Measured(width, {width: Trial(1.0, 1.0)})


def test_windows_of_one_model_are_forgotten_and_measured_again(pictures, store, monkeypatch):
    cast, condition, sampling = pictures
    other, _ = other_model(cast, sampling)
    widths = iter([2, 4, 8])
    monkeypatch.setattr(window, "fastest_window", lambda *_: _measured(next(widths)))
    method = SpeculativeJacobiDecoding()
    assert method.choose_window(*pictures) == 2
    assert method.choose_window(other, condition, sampling) == 4
    assert window_store.forget_windows(cast.model) == 1
    assert method.choose_window(other, condition, sampling) == 4
    assert method.choose_window(*pictures) == 8


def test_a_window_that_another_program_kept_meanwhile_is_used(pictures, store, monkeypatch):
    wanted = window_store.circumstances(SpeculativeJacobiDecoding(), *pictures)

    def slow(*_):
        window_store.keep(wanted, window.CANDIDATES, _measured(16))
        return _measured(2)

    monkeypatch.setattr(window, "fastest_window", slow)
    assert SpeculativeJacobiDecoding().choose_window(*pictures) == 16


@pytest.mark.parametrize(
    "content", ["", "{broken", "[1]", '{"a": "wide"}', '{"a": -3}', '{"a": 1}', "[" * 100_000]
)
def test_a_broken_store_is_measured_anew(pictures, store, content):
    store.parent.mkdir(parents=True)
    store.write_text(content)
    assert SpeculativeJacobiDecoding().choose_window(*pictures) in window.CANDIDATES
    assert len(window_store.read_windows()) == 1


@pytest.mark.parametrize("damage", [{"window": 1}, {"window": 10**9}, {"tried": []}, {"rows": 3}])
def test_an_entry_that_was_changed_is_measured_anew(pictures, store, damage):
    method = SpeculativeJacobiDecoding()
    chosen = method.choose_window(*pictures)
    ((key, entry),) = json.loads(store.read_text()).items()
    store.write_text(json.dumps({key: {**entry, **damage}}))
    assert window_store.read_windows() == {}
    assert method.choose_window(*pictures) in window.CANDIDATES
    assert json.loads(store.read_text())[key]["method"] == entry["method"]
    assert chosen in window.CANDIDATES


def test_a_store_that_cannot_be_written_is_no_error(pictures, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("VISUAL_AR_CACHE", str(tmp_path / "file"))
    assert SpeculativeJacobiDecoding().choose_window(*pictures) in window.CANDIDATES


@pytest.mark.parametrize("name", ["jacobi", "exact-match", "draft-head", "hybrid", "denoising"])
def test_a_window_is_never_wider_than_the_picture(name, pictures):
    method = constructor(name)(window=10_000)
    assert method.choose_window(*pictures) == 20


@pytest.mark.parametrize("wrong", [0, -1, 65_537, 10**9, 10**30, 2.0, True, "wide", "8", None])
def test_a_window_out_of_bounds_is_refused_at_once(wrong):
    with pytest.raises(ValueError, match="window must be 'auto' or a whole number from 1 to 65536"):
        SpeculativeJacobiDecoding(window=wrong)


def test_a_window_may_be_a_number_of_numpy_and_is_kept_as_pythons():
    method = SpeculativeJacobiDecoding(window=np.int64(4))
    assert type(method.config.window) is int


def test_the_window_never_changes_an_exact_match_picture(pictures, store):
    expected, _ = decode_all(ExactMatchJacobiDecoding(window=1), *pictures)
    for width in (2, 7, 16, "auto"):
        tokens, _ = decode_all(ExactMatchJacobiDecoding(window=width), *pictures)
        assert torch.equal(tokens, expected)
