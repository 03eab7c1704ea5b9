"""The choice of a window: its arithmetic, its measurement on a real engine, and its store."""

import json

import pytest
import torch

from visual_ar.accel import window
from visual_ar.accel.exact_match import ExactMatchJacobiDecoding
from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.sampling import Sampling
from visual_ar.testing import ToyTokenModel, decode_all


@pytest.fixture
def pictures():
    model = ToyTokenModel(vocab_size=3, grid=(4, 5), sharpness=3.0)
    sampling = Sampling.create([0, 1], guidance=1.5)
    return model, model.layout((4, 5)), model.condition([0, 1], True), sampling


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("VISUAL_AR_CACHE", str(tmp_path))
    return tmp_path / "visual_ar" / "windows.json"


def test_the_window_with_the_most_tokens_per_second_wins():
    runs = [1, 2, 4, 8, 5]
    assert window.fastest_window({1: 1.0, 4: 1.0, 8: 1.0}, runs) == 8
    assert window.fastest_window({1: 1.0, 4: 2.0, 8: 4.0}, runs) == 4  # 1, 3/2 and 4/4 tokens
    assert window.fastest_window({1: 1.0, 4: 3.5, 8: 9.0}, runs) == 1
    assert window.fastest_window({2: 1.0, 8: 1.0}, [1, 1, 1]) == 2  # a tie takes the narrower


def test_measuring_times_every_candidate_and_counts_real_runs(pictures):
    costs, runs = window.measure(SpeculativeJacobiDecoding(), *pictures)
    assert list(costs) == [1, 2, 4, 8, 12, 16]  # no wider than the 20 tokens of the picture
    assert all(cost > 0 for cost in costs.values())
    assert sum(runs) == 2 * 20 and max(runs) > 1


def test_a_measured_window_is_kept_and_used(pictures, store, monkeypatch):
    method = SpeculativeJacobiDecoding()
    chosen = method.choose_window(*pictures)
    assert list(json.loads(store.read_text()).values()) == [chosen]
    monkeypatch.setattr(window, "measure", lambda *_: pytest.fail("measured twice"))
    assert method.choose_window(*pictures) == chosen
    assert SpeculativeJacobiDecoding(window=3).choose_window(*pictures) == 3


def test_methods_and_batches_have_windows_of_their_own(pictures, store, monkeypatch):
    model, layout, _, sampling = pictures
    widths = iter([2, 4, 8])
    monkeypatch.setattr(window, "measure", lambda *_: ({next(widths): 1.0}, [1]))
    assert SpeculativeJacobiDecoding().choose_window(*pictures) == 2
    assert ExactMatchJacobiDecoding().choose_window(*pictures) == 4
    unguided = model.condition([0, 1], False)
    method = SpeculativeJacobiDecoding()
    assert method.choose_window(model, layout, unguided, sampling) == 8
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
