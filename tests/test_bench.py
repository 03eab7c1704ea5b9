"""The speed report counts, pairs and orders what it measures as it says; no test reads a clock."""

import json
import math
from dataclasses import replace

import pytest
import torch
from bench_workloads import (
    GRID,
    METHODS,
    SCHEDULE,
    CountingToy,
    make_transformer_workload,
    make_workload,
)

from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.accel.loop.contract import Decoding
from visual_ar.accel.loop.graphs import CapturedSteps
from visual_ar.evaluation import machine, speed
from visual_ar.evaluation.speed import Schedule, bench
from visual_ar.evaluation.speed_summary import Trial, identical, speedup, spread, summarise
from visual_ar.method_options import parse_method
from visual_ar.sampling import Sampling
from visual_ar.testing import decode_all


@pytest.fixture
def workload():
    CountingToy.passes = 0
    return make_workload()


@pytest.fixture(scope="module")
def document():
    """A report whose seconds are passes of the trunk, prefill included."""
    return bench(make_workload(), METHODS, SCHEDULE, clock=lambda: float(CountingToy.passes))


def test_the_document_is_json_with_every_promised_number(document):
    assert json.loads(json.dumps(document, allow_nan=False)) == json.loads(json.dumps(document))
    assert [method["name"] for method in document["methods"]] == ["sequential", *METHODS]
    assert document["tokens"] == math.prod(GRID)
    assert document["prefill_passes"] == 1
    for method in document["methods"]:
        assert method["lossless"] is True
        assert [row["batch"] for row in method["batches"]] == [1, 4]
        for row in method["batches"]:
            assert set(row["seconds"]) == {"condition", "decode", "detokenise", "total"}
            assert set(row["seconds"]["total"]) == {"median", "p10", "p90"}
            assert row["peak_memory_bytes"] is None  # a CPU cannot tell


def test_sequential_takes_a_pass_and_a_head_evaluation_a_token(document):
    for row in document["methods"][0]["batches"]:
        assert row["passes_per_picture"] == row["head_evaluations_per_picture"] == 12
        assert row["accepted_length"] == {"mean": 1.0, "histogram": {"1": 12 * 4 * 2}}
        assert row["step_compression"] == row["speedup"]["median"] == 1
        assert row["window"] == 1


def test_counts_agree_with_a_decode_of_the_same_pictures(document, workload):
    method = SpeculativeJacobiDecoding(window=4, coupling="gumbel")
    passes, lengths = [], []
    for turn in range(SCHEDULE.rounds):
        for number in range(SCHEDULE.pictures):
            sampling = workload.sampling([SCHEDULE.seed + turn * SCHEDULE.pictures + number])
            condition = workload.condition([number])
            _, committed = decode_all(method, workload.cast, condition, sampling)
            passes.append(len(committed))
            lengths += committed.flatten().tolist()
    row = document["methods"][2]["batches"][0]
    assert row["passes_per_picture"] == pytest.approx(sum(passes) / len(passes))
    assert row["passes_per_batch"] == row["passes_per_picture"]
    assert row["step_compression"] == pytest.approx(12 * len(passes) / sum(passes))
    assert row["head_evaluations_per_picture"] == pytest.approx(4 * sum(passes) / len(passes))
    assert row["accepted_length"]["mean"] == pytest.approx(sum(lengths) / len(lengths))
    expected = {str(n): lengths.count(n) for n in sorted(set(lengths))}
    assert row["accepted_length"]["histogram"] == expected
    assert row["window"] == 4


def test_passes_of_a_batch_cover_those_of_its_slowest_picture(document):
    single, batched = document["methods"][2]["batches"]
    assert batched["passes_per_picture"] == pytest.approx(single["passes_per_picture"])
    assert batched["passes_per_batch"] > batched["passes_per_picture"]


def test_seconds_are_the_clock_s(document):
    """With a clock that counts passes, decoding takes its passes and the prefill."""
    row = document["methods"][0]["batches"][0]
    assert row["seconds"]["decode"] == {"median": 13, "p10": 13, "p90": 13}
    assert row["seconds"]["condition"]["median"] == row["seconds"]["detokenise"]["median"] == 0
    assert row["pictures_per_second"] == pytest.approx(1 / 13)
    batched = document["methods"][0]["batches"][1]
    assert batched["pictures_per_second"] == pytest.approx(4 / 13)
    jacobi = document["methods"][2]["batches"][0]
    assert jacobi["speedup"] == jacobi["decode_speedup"]
    assert jacobi["speedup"]["min"] <= jacobi["speedup"]["median"] <= jacobi["speedup"]["max"]
    assert jacobi["speedup"]["median"] > 1


def test_nothing_but_the_model_moves_this_clock(document):
    assert all(method["outside_model_share"] == 0 for method in document["methods"])


def test_exact_match_equals_sequential_and_only_it_is_compared(document):
    for method in document["methods"]:
        for row in method["batches"]:
            if method["name"].startswith("exact-match"):
                assert row["identical"] == {"pictures": 1.0, "tokens": 1.0, "mismatch_rate": 0.0}
            else:
                assert row["identical"] is None


def test_methods_take_turns_in_an_order_that_rotates(workload, monkeypatch):
    drawn = []
    draw = speed.draw

    def spy(contender, workload, numbers, seeds, clock):
        drawn.append((type(contender.method).__name__, list(numbers), seeds))
        return draw(contender, workload, numbers, seeds, clock)

    monkeypatch.setattr(speed, "draw", spy)
    schedule = Schedule(pictures=2, batches=(1, 2), rounds=2, warmup=1, seed=0)
    report = bench(workload, ["exact-match:window=2"], schedule)
    one, other = "SequentialDecoding", "ExactMatchJacobiDecoding"
    assert report["order"] == [
        ["sequential", "exact-match:window=2"],
        ["exact-match:window=2", "sequential"],
    ]
    assert drawn == [
        *((name, [0], [0]) for name in (one, other)),  # warm-up
        *((name, [0], [0]) for name in (one, other)),
        *((name, [1], [1]) for name in (one, other)),
        *((name, [0], [2]) for name in (other, one)),
        *((name, [1], [3]) for name in (other, one)),
        *((name, [0, 1], [0, 1]) for name in (one, other)),  # warm-up
        *((name, [0, 1], [0, 1]) for name in (one, other)),
        *((name, [0, 1], [2, 3]) for name in (other, one)),
    ]


def test_no_state_is_made_in_a_timed_part_where_methods_keep_theirs(workload, monkeypatch):
    """As on CUDA, where a method keeps the state of its last batch size with its graphs."""
    monkeypatch.setattr(CapturedSteps, "serves", staticmethod(lambda device: True))
    monkeypatch.setattr(CapturedSteps, "on", classmethod(lambda cls, device: None))
    made, drawn = [], []
    init, draw = Decoding.init, speed.draw

    def counted(self, *arguments, **named):
        made.append(self)
        return init(self, *arguments, **named)

    def spy(contender, workload, numbers, seeds, clock):
        before = len(made)
        result = draw(contender, workload, numbers, seeds, clock)
        drawn.append(((id(contender.method), len(numbers)), len(made) - before))
        return result

    monkeypatch.setattr(Decoding, "init", counted)
    monkeypatch.setattr(speed, "draw", spy)
    methods = ["exact-match:window=2", "jacobi:window=4"]
    bench(workload, methods, Schedule(pictures=2, batches=(1, 2), rounds=2, warmup=1))
    warmed = set()
    for key, count in drawn:
        assert count == (key not in warmed)
        warmed.add(key)
    assert len(warmed) == 3 * 2


def test_progress_ends_at_the_announced_total(workload):
    seen = []
    schedule = Schedule(pictures=2, batches=(1, 2), rounds=2, warmup=2)
    bench(workload, [], schedule, progress=lambda done, total: seen.append((done, total)))
    total = 2 + 1 + 2 * (2 + 1)
    assert seen == [(done, total) for done in range(1, total + 1)]


def test_an_automatic_window_is_settled_before_anything_is_timed(workload, monkeypatch):
    asked = []

    def choose(self, cast, condition, sampling):
        asked.append(len(sampling.seed))
        return 3

    monkeypatch.setattr(SpeculativeJacobiDecoding, "choose_window", choose)
    report = bench(workload, ["jacobi"], Schedule(pictures=2, batches=(1, 2), rounds=1))
    assert asked == [1, 2]
    method = report["methods"][1]
    assert method["options"]["window"] == "auto"
    assert [row["window"] for row in method["batches"]] == [3, 3]
    row = method["batches"][0]
    assert row["head_evaluations_per_picture"] == 3 * row["passes_per_picture"]


def test_uniform_laws_have_the_entropy_of_the_code_book(workload):
    with torch.no_grad():
        workload.cast.model.head.zero_()
    plain = replace(workload, sampling=Sampling.create)
    report = bench(plain, [], Schedule(pictures=1, batches=(1,), rounds=1))
    assert report["entropy_bits_per_token"] == pytest.approx(math.log2(3), abs=1e-5)


def trial(seconds, runs=(1, 1), tokens=(0, 1)):
    committed = torch.tensor(runs)[:, None]
    return Trial(0.0, seconds, 0.0, committed, len(runs), torch.tensor([tokens]), None)


def test_ratios_are_paired_round_by_round():
    """A machine that slows down threefold between rounds does not touch the ratio."""
    baseline = [[trial(4.0)], [trial(12.0)], [trial(8.0)]]
    method = [[trial(2.0)], [trial(6.0)], [trial(2.0)]]
    assert speedup(method, baseline, "total") == {"median": 2.0, "min": 2.0, "max": 4.0}


def test_passes_after_a_picture_s_end_are_not_its_own():
    rounds = [[trial(1.0, runs=(2, 0))]]
    row = summarise(rounds, [[trial(1.0)]])
    assert row["passes_per_picture"] == 1
    assert row["passes_per_batch"] == 2
    assert row["step_compression"] == 2
    assert row["accepted_length"] == {"mean": 2.0, "histogram": {"2": 1}}


def test_a_token_of_bits_counts_once_however_many_bits_it_has():
    """Two tokens of four bits; one bit of the second is another."""
    bits = torch.zeros(1, 2, 4, dtype=torch.bool)
    other = bits.clone()
    other[0, 1, 2] = True
    ours, theirs = (trial(1.0)._replace(tokens=tokens, spent=0.5) for tokens in (bits, other))
    assert summarise([[ours]], [[theirs]])["total_variation"] == 0.25
    compared = identical([[ours]], [[theirs]])
    assert compared == {"pictures": 0.0, "tokens": 0.5, "mismatch_rate": 0.5}


def test_spread_is_the_median_and_the_outer_tenths():
    assert spread([float(n) for n in range(11)]) == {"median": 5.0, "p10": 1.0, "p90": 9.0}


def test_specifications_name_a_method_and_its_options():
    method = parse_method("jacobi:window=64,coupling=gumbel")
    assert (method.config.window, method.config.coupling) == (64, "gumbel")
    assert parse_method("jacobi-published").config.window == 16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("warp", "method must be one of .*'warp'"),
        ("jacobi:speed=3", "speed must be left out with method jacobi, got 3"),
        ("sequential:window=3", "window must be left out with method sequential, got 3"),
        ("jacobi:window", "must read name=value, got 'window'"),
        ("jacobi:window=0", "window must be 'auto' or a whole number from 1 to 65536, got 0"),
        ("jacobi:coupling=tight", "coupling must be one of .*'tight'"),
    ],
)
def test_wrong_specifications_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_method(text)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (Schedule(pictures=0), "pictures must be at least 1, got 0"),
        (Schedule(rounds=0), "rounds must be at least 1, got 0"),
        (Schedule(warmup=-1), "warmup must be at least 0, got -1"),
        (Schedule(pictures=4, batches=(1, 3)), "divide the 4 pictures, got 3"),
    ],
)
def test_wrong_schedules_are_refused_before_any_work(workload, schedule, message):
    with pytest.raises(ValueError, match=message):
        bench(workload, [], schedule)
    assert CountingToy.passes == 0


def test_exact_match_on_a_transformer_gives_sequential_s_tokens():
    llamagen = make_transformer_workload()
    schedule = Schedule(pictures=2, batches=(1, 2), rounds=1, warmup=0)
    report = bench(llamagen, ["exact-match:window=4"], schedule)
    for row in report["methods"][1]["batches"]:
        assert row["identical"]["mismatch_rate"] == 0
        assert row["passes_per_picture"] < 16


def test_the_machine_is_described_in_plain_data():
    description = machine.describe(torch.device("cpu"), torch.float32)
    assert json.loads(json.dumps(description)) == description
    assert description["dtype"] == "float32"
    assert description["threads"] == torch.get_num_threads()
    assert description["device_name"]
    assert machine.process_peak_memory() > 2**20


def test_a_package_outside_a_checkout_has_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    assert machine.commit() is None
