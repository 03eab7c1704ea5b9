"""The table of a speed report shows every number of it."""

import copy
import io

import pytest
from bench_workloads import METHODS, SCHEDULE, CountingToy, make_workload
from rich.console import Console

from visual_ar.evaluation.speed import bench
from visual_ar.evaluation.speed_table import render


@pytest.fixture(scope="module")
def document():
    """A report whose seconds are passes of the trunk, prefill included."""
    return bench(make_workload(), METHODS, SCHEDULE, clock=lambda: float(CountingToy.passes))


def printed(document, width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(render(document))
    return console.export_text()


def test_the_table_shows_every_method_at_every_batch_size(document):
    text = printed(document, 160)
    for method in document["methods"]:
        name = method["name"].replace(":", " ").replace(",", " ")
        rows = [line.strip() for line in text.splitlines() if line.strip().startswith(f"{name} ")]
        counts, single, batched = (row.removeprefix(name).split() for row in rows[:3])
        row = method["batches"][0]
        assert counts[:2] == [str(row["window"]), f"{row['passes_per_picture']:.1f}"]
        assert single[-1] == f"{row['speedup']['median']:.2f}x"
        assert batched[-1] == f"{method['batches'][1]['speedup']['median']:.2f}x"
    assert f"{document['entropy_bits_per_token']:.2f} bits a token" in text
    assert "100.0% of pictures" in text


def test_a_narrow_table_cuts_no_number(document):
    assert "…" not in printed(document, 80)


def test_the_table_shows_memory_where_it_is_known(document):
    known = copy.deepcopy(document)
    for method in known["methods"]:
        method["batches"][0]["peak_memory_bytes"] = 123 * 2**20
    assert "MiB" not in printed(document, 100)
    last = [line.split()[-1] for line in printed(known, 100).splitlines() if line.split()]
    assert last.count("MiB") == 1
    assert last.count("123") == len(known["methods"])
