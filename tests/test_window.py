"""The choice of a window: its arithmetic, its measurement on a real engine, and its store."""

import json
from itertools import chain, count

import pytest
import torch

from visual_ar.accel.exact_match import ExactMatchJacobiDecoding
from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.accel.loop import window
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


@pytest.mark.parametrize(
    ("rates", "best"),
    [
        ([1, 2, 3, 4, 5], 16),
        ([5, 4, 3, 2, 1], 1),
        ([1, 2, 3, 4, 3], 8),
        ([2, 3, 1.6, 4, 1], 8),
        ([2, 3, 1.4, 4, 1], 2),
        ([1, 1, 1, 1, 1], 1),
    ],
)
def test_the_window_with_the_most_tokens_a_second_wins(rates, best):
    by_window = dict(zip((1, 2, 4, 8, 16), rates, strict=True))
    assert window.fastest_window(list(by_window), by_window.__getitem__) == best


def test_rates_are_of_passes_with_the_window_itself(pictures, monkeypatch):
    """With a clock that ticks once a reading, tokens a second are tokens a pass."""
    ticks = iter(range(10_000))
    monkeypatch.setattr(window.time, "perf_counter", lambda: next(ticks))
    rates = {
        width: window.tokens_a_second(SpeculativeJacobiDecoding(), *pictures, width)
        for width in (1, 2, 16)
    }
    assert rates[1] == 2  # one token of each of two pictures
    assert rates[1] < rates[2] < rates[16]
    stats = decode_all(SpeculativeJacobiDecoding(window=16), *pictures)[1]
    assert rates[16] == pytest.approx(2 * 20 / len(stats))


def test_a_pass_that_was_interrupted_does_no_harm(pictures, monkeypatch):
    readings = chain([0, 1, 1, 2, 2, 3, 3, 400], count(400))  # the fourth pass takes 397
    monkeypatch.setattr(window.time, "perf_counter", lambda: next(readings))
    assert window.tokens_a_second(SpeculativeJacobiDecoding(), *pictures, 1) == 2


def test_a_measured_window_is_kept_and_used(pictures, store, monkeypatch):
    method = SpeculativeJacobiDecoding()
    chosen = method.choose_window(*pictures)
    assert list(json.loads(store.read_text()).values()) == [chosen]
    monkeypatch.setattr(window, "tokens_a_second", lambda *_: pytest.fail("measured twice"))
    assert method.choose_window(*pictures) == chosen
    assert SpeculativeJacobiDecoding(window=3).choose_window(*pictures) == 3


def test_methods_and_batches_have_windows_of_their_own(pictures, store, monkeypatch):
    cast, _, sampling = pictures
    widths = iter([2, 4, 8])
    monkeypatch.setattr(window, "fastest_window", lambda *_: next(widths))
    assert SpeculativeJacobiDecoding().choose_window(*pictures) == 2
    assert ExactMatchJacobiDecoding().choose_window(*pictures) == 4
    unguided = cast.model.condition([0, 1], False)
    method = SpeculativeJacobiDecoding()
    assert method.choose_window(cast, unguided, sampling) == 8
    assert method.choose_window(*pictures) == 2


@pytest.mark.parametrize("content", ["", "{broken", "[1]", '{"a": "wide"}', '{"a": -3}'])
def test_a_broken_store_is_measured_anew(pictures, store, content):
    store.parent.mkdir(parents=True)
    store.write_text(content)
    assert SpeculativeJacobiDecoding().choose_window(*pictures) in window.CANDIDATES
    assert all(isinstance(width, int) for width in json.loads(store.read_text()).values())


def test_a_store_that_cannot_be_written_is_no_error(pictures, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("VISUAL_AR_CACHE", str(tmp_path / "file"))
    assert SpeculativeJacobiDecoding().choose_window(*pictures) in window.CANDIDATES


def test_the_window_never_changes_an_exact_match_picture(pictures, store):
    expected, _ = decode_all(ExactMatchJacobiDecoding(window=1), *pictures)
    for width in (2, 7, 16, "auto"):
        tokens, _ = decode_all(ExactMatchJacobiDecoding(window=width), *pictures)
        assert torch.equal(tokens, expected)
