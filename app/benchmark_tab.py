"""The tab Benchmark: a small bench and its plot; knows gradio, leaves measuring to others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
import pandas as pd

from visual_ar.app.background import Finished, watched
from visual_ar.app.compare_tab import METHOD_INFO, choices
from visual_ar.app.errors import sentences
from visual_ar.app.page import DEVICE, main_button
from visual_ar.app.shelf import Shelf
from visual_ar.evaluation.speed import Schedule, bench_pipeline
from visual_ar.evaluation.speed_table import heading
from visual_ar.evaluation.workload import usual_subjects

METHODS = (
    "sequential",
    "jacobi:window=16",
    "exact-match:window=16",
    "jacobi:window=16,rule=omega/omega=1.2",
)
HEADERS = ("method", "lossless", "passes", "tokens a pass", "ms a picture", "speed")
SPEED, SPENT, METHOD = "times as fast as sequential", "total variation a token", "method"
MOST_PICTURES, MOST_ROUNDS = 8, 5
Shown = tuple[str, list[list[str]] | None, pd.DataFrame | None]


def measure(
    shelf: Shelf, model: str, methods: list[str], pictures: float, rounds: float
) -> Iterator[Shown]:
    """Yields a line on how far the bench is; in the end also its table and the plot's points.

    Args:
        shelf: holds the model.
        model: its name.
        methods: as `method_options.parse_method` reads them.
        pictures: of a round, 1 to `MOST_PICTURES`.
        rounds: 1 to `MOST_ROUNDS`.

    Raises:
        ValueError: a method or a number is refused.
    """
    if not methods:
        raise ValueError("methods must name at least one, got none")
    for name, value, most in (
        ("pictures", pictures, MOST_PICTURES),
        ("rounds", rounds, MOST_ROUNDS),
    ):
        if not isinstance(value, int | float) or not 1 <= value <= most:
            raise ValueError(f"{name} must be from 1 to {most}, got {value!r}")
    schedule = Schedule(int(pictures), (1,), int(rounds))
    pipe = shelf.thread.call(lambda: shelf.get(model))
    yield "Measuring windows that are not known.", None, None
    for event in watched(
        lambda report: bench_pipeline(
            pipe, model, usual_subjects(pipe), methods=methods, schedule=schedule, progress=report
        ),
        shelf.thread.start,
    ):
        if isinstance(event, Finished):
            yield heading(event.result), rows(event.result), points(event.result)
        else:
            yield f"{event.done} of {event.total} pictures drawn.", None, None


def rows(document: dict[str, Any]) -> list[list[str]]:
    """The rows below `HEADERS`. document: as `bench_pipeline` returns it."""
    found = []
    for method in document["methods"]:
        of_one = method["batches"][0]
        found.append(
            [
                method["name"],
                str(method["lossless"]),
                f"{of_one['passes_per_picture']:.1f}",
                f"{of_one['accepted_length']['mean']:.2f}",
                f"{1000 * of_one['seconds']['total']['median']:.0f}",
                f"{of_one['speedup']['median']:.2f}x",
            ]
        )
    return found


def points(document: dict[str, Any]) -> pd.DataFrame:
    """Speed against what is spent of the law: one point a method, 0 for lossless ones."""
    batches = [(method["name"], method["batches"][0]) for method in document["methods"]]
    return pd.DataFrame(
        {
            SPEED: [of_one["speedup"]["median"] for _, of_one in batches],
            SPENT: [of_one["total_variation"] or 0.0 for _, of_one in batches],
            METHOD: [name for name, _ in batches],
        }
    )


def add_benchmark_tab(shelf: Shelf, model: gr.Dropdown) -> None:
    """Puts the tab's content where it is called, and its handlers."""
    methods = gr.Dropdown(
        choices(),
        value=list(METHODS),
        multiselect=True,
        allow_custom_value=True,
        label="Methods",
        info=f"{METHOD_INFO} Sequential decoding is always measured.",
    )
    with gr.Row():
        pictures = gr.Slider(1, MOST_PICTURES, 1, step=1, label="Pictures of a round")
        rounds = gr.Slider(1, MOST_ROUNDS, 1, step=1, label="Rounds")
    with gr.Row():
        start, stop = main_button("Measure"), gr.Button("Stop", min_width=100)
    told = gr.Markdown("At batch size 1 and the model's own sampling.", elem_classes="stats")
    plot = gr.ScatterPlot(
        x=SPEED,
        y=SPENT,
        color=METHOD,
        title="Speed against quality",
        tooltip="all",
        height=320,
        label="0 keeps the model's law; right is faster",
    )
    table = gr.Dataframe(headers=list(HEADERS), label="Measured", interactive=False, wrap=True)

    def bench(
        model: str, methods: list[str], pictures: float, rounds: float
    ) -> Iterator[tuple[Any, ...]]:
        """Measures methods side by side, at batch size 1."""
        for line, rows_, points_ in measure(shelf, model, methods, pictures, rounds):
            yield (
                line,
                gr.skip() if rows_ is None else rows_,
                gr.skip() if rows_ is None else points_,
            )

    def stopped() -> str:
        """Ends the bench after the picture that is being drawn."""
        return "Stopped."

    event = start.click(
        sentences(bench),
        [model, methods, pictures, rounds],
        [told, table, plot],
        api_name="bench",
        concurrency_id=DEVICE,
        concurrency_limit=1,
    )
    stop.click(stopped, None, told, cancels=[event], api_name="stop_bench", queue=False)
