"""Everything that only a GPU can show, in one short run and one table; knows no test and no kernel.

`python -m visual_ar.evaluation.gpu_report --minutes 3` times the verification of drafts and the
decoding loop, runs the GPU tests of a checkout, and sets what was measured beside what is aimed at.
A stage that would start after the time is up is left out, and its rows say so. Each stage is told,
and written, as it ends, so that a run that is cut off loses nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from visual_ar.evaluation import kernel_table
from visual_ar.evaluation.kernel_speed import Grid, bench_kernels
from visual_ar.evaluation.loop_speed import bench_loop, random_model
from visual_ar.evaluation.machine import ROOT
from visual_ar.write_beside import written_beside

MINUTES = 7.5
LEAST = 0.5  # minutes; less is over before the first stage
TESTS = ("cuda", "kernel_gpu", "kernel_dispatch", "graphs")
JACOBI, SEQUENTIAL = "jacobi:window=32", "sequential"
LOOPS = {"jacobi": ("GPT-L", JACOBI), "sequential": ("GPT-XL", SEQUENTIAL)}
GRID = Grid(pictures=(1, 64), windows=(32,), vocabularies=(16_384,))


class Bar(NamedTuple):
    """One row of the table.

    Attributes:
        what: is measured.
        aim: what is aimed at, with the stretch in brackets.
        measured: None where it was not.
        met: whether the aim is reached, None where it was not measured.
    """

    what: str
    aim: str
    measured: str | None
    met: bool | None


def run(
    device: torch.device,
    clock: Callable[[], float] = time.monotonic,
    minutes: float = MINUTES,
    tell: Callable[[str, dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Runs all stages that fit into the time.

    Args:
        device: a CUDA GPU.
        clock: seconds from any origin.
        minutes: in all.
        tell: called after each stage with its name and the document so far.

    Returns:
        a JSON-able document: "tests", {"summary": last line of the test run, "status": exit status
        or None}; "kernels" and "loops" as `bench_kernels` and `bench_loop` return them; and the
        seconds of every stage. A stage that was left out is None; one that failed is
        {"error": why}.

    Raises:
        ValueError: the device is no CUDA GPU, or the minutes are too few.
    """
    if not minutes >= LEAST:
        raise ValueError(f"minutes must be at least {LEAST:g}, got {minutes:g}")
    if device.type != "cuda":
        raise ValueError(f"device must be a CUDA GPU for this report, got {device}")
    stages: dict[str, Callable[[float], Any]] = {
        "kernels": lambda left: bench_kernels(GRID, device),
        **{name: _loop(size, method, device) for name, (size, method) in LOOPS.items()},
        "tests": _tests,
    }
    return run_stages(stages, 60 * minutes, clock, tell)


def run_stages(
    stages: dict[str, Callable[[float], Any]],
    budget: float,
    clock: Callable[[], float],
    tell: Callable[[str, dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Runs stages one after the other until the time is up; each is given what is left of it."""
    start = clock()
    document: dict[str, Any] = {**dict.fromkeys(stages), "seconds": {}}
    for name, stage in stages.items():
        begun = clock()
        left = budget - (begun - start)
        if left <= 0:
            continue
        try:
            document[name] = stage(left)
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            document[name] = {"error": " ".join(str(error).split())[:300]}
        document["seconds"][name] = clock() - begun
        if tell is not None:
            tell(name, document)
    return document


def _loop(size: str, method: str, device: torch.device) -> Callable[[float], Any]:
    def measure(left: float) -> dict[str, Any]:
        model = random_model(size, device, torch.bfloat16)
        return bench_loop(model, size, [method])

    return measure


def _tests(left: float) -> dict[str, Any]:
    files = [ROOT / "tests" / f"test_{name}.py" for name in TESTS]
    if not all(map(Path.exists, files)):
        return {"summary": "skipped: this is no checkout", "status": None}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-k", "gpu or cuda or captured"]
    try:
        result = subprocess.run(
            [*command, *map(str, files)], cwd=ROOT, capture_output=True, text=True, timeout=left
        )
    except subprocess.TimeoutExpired:
        return {"summary": "not finished in time", "status": None}
    lines = result.stdout.strip().splitlines() or [result.stderr[-300:]]
    return {"summary": lines[-1], "status": result.returncode}


def bars(document: dict[str, Any]) -> list[Bar]:
    """What was measured beside what is aimed at. document: as `run` returns it."""
    one, many = (_verified(document, pictures) for pictures in (1, 64))
    kernel, eager = _seconds(one, "kernel"), _seconds(one, "torch")
    other = _seconds(one, "flashinfer")
    ratio = many["kernel"].get("floor_ratio") if many and "kernel" in many else None
    jacobi, sequential = (_row(document, name) for name in LOOPS)
    outside = 1 - jacobi["forward_seconds"] / jacobi["seconds"] if jacobi else None
    share = sequential["share_of_limit"] if sequential else None
    faster = eager / kernel if eager and kernel else None
    against = other / kernel if other and kernel else None
    tests = document.get("tests")
    told = tests and str(tests.get("summary", tests.get("error")))
    return [
        _bar("verify, B=1, W=32, V=16,384", "at most 15 us", kernel, "{:.1f} us", 15e-6, scale=1e6),
        _bar("the same against torch eager", "at least 10x", faster, "{:.1f}x", 10, least=True),
        _bar("verify, B=64, W=32, V=16,384", "at most 2x the floor", ratio, "{:.2f}x", 2),
        _bar("against FlashInfer with softmax, top-k", "above 1x", against, "{:.1f}x", 1, True),
        _bar("Jacobi, GPT-L, W=32: not forward", "at most 10% (5%)", outside, "{:.1%}", 0.1),
        _bar("sequential, GPT-XL: of the limit", "at least 40% (60%)", share, "{:.0%}", 0.4, True),
        # A line that counts passed tests may count errors behind them.
        Bar("GPU tests", "all pass", told, None if tests is None else tests.get("status") == 0),
    ]


def _bar(
    what: str,
    aim: str,
    value: float | None,
    form: str,
    bound: float,
    least: bool = False,
    scale: float = 1.0,
) -> Bar:
    if value is None:
        return Bar(what, aim, None, None)
    return Bar(what, aim, form.format(value * scale), value >= bound if least else value <= bound)


def _verified(document: dict[str, Any], pictures: int) -> dict[str, Any] | None:
    rows = (document.get("kernels") or {}).get("rows", [])
    return next((row["results"] for row in rows if row["pictures"] == pictures), None)


def _seconds(results: dict[str, Any] | None, name: str) -> float | None:
    return (results or {}).get(name, {}).get("seconds")


def _row(document: dict[str, Any], name: str) -> dict[str, Any] | None:
    rows = (document.get(name) or {}).get("rows", [])
    return rows[0] if rows else None


def render(found: list[Bar]) -> Table:
    """The one table."""
    table = Table(title="what a GPU shows", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("what", "aim", "measured", "met"):
        table.add_column(column)
    for bar in found:
        met = {True: "yes", False: "no", None: ""}[bar.met]
        table.add_row(bar.what, bar.aim, bar.measured or "not measured", met)
    return table


def main(arguments: list[str] | None = None) -> None:
    """Runs the report; with a path, keeps the whole document there as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=MINUTES, help="in all")
    parser.add_argument("path", nargs="?", type=Path, help="JSON file to write")
    given = parser.parse_args(arguments)
    console = Console(width=100)

    def tell(name: str, document: dict[str, Any]) -> None:
        if "rows" in (document[name] or {}):
            show = kernel_table.render_kernels if name == "kernels" else kernel_table.render_loop
            console.print(show(document[name]))
        else:
            console.print(f"{name}: {document[name]}", markup=False)
        if given.path is not None:
            with written_beside(given.path) as part:
                part.write_text(json.dumps(document, indent=1))

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        document = run(device, minutes=given.minutes, tell=tell)
    except ValueError as error:
        sys.exit(f"Error: {error}")
    console.print(render(bars(document)))


if __name__ == "__main__":
    main()
