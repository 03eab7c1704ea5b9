"""Draws the document of `pareto`: a chart as a picture, and a table; knows no measurement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from visual_ar.evaluation.quality import TOP
from visual_ar.write_beside import written_beside

HIT_RATE = f"hit_rate_top_{TOP}"
SPEEDS = {
    "compression": "tokens a pass (sequential = 1)",
    "speedup": "speedup in wall time, batch 1",
}
QUALITIES = {
    "distance_to_sequential": "distance to sequential samples",
    HIT_RATE: f"prompts found in the top {TOP}",
}
_LOSSLESS, _LOSSY = "#1f6feb", "#d1570b"


def values(method: dict[str, Any]) -> dict[str, float]:
    """What the chart shows of one method. method: of the document of `pareto`."""
    row = method["batches"][0]
    return {
        "compression": row["step_compression"],
        "speedup": row["speedup"]["median"],
        **method["quality"],
    }


def table(document: dict[str, Any]) -> Table:
    """The numbers of the chart, a method a row. document: as `pareto` returns it."""
    result = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    result.add_column("method", overflow="fold")
    for column in ("fewer", "speedup", "to seq.", "to data", f"top {TOP}", "TV"):
        result.add_column(column, justify="right", no_wrap=True)
    for method in document["methods"]:
        shown, spent = values(method), method["batches"][0]["total_variation"]
        lossless = "" if method["lossless"] else " (lossy)"
        result.add_row(
            method["name"].replace(":", " ").replace(",", " ") + lossless,
            f"{shown['compression']:.2f}x",
            f"{shown['speedup']:.2f}x",
            f"{shown['distance_to_sequential']:.2f}",
            f"{shown['distance_to_data']:.2f}",
            f"{shown[HIT_RATE]:.0%}",
            "" if spent is None else f"{spent:.3f}",
        )
    return result


def save_chart(document: dict[str, Any], path: Path) -> None:
    """Writes the chart as a PNG: both speeds against both qualities, the methods numbered.

    Args:
        document: as `pareto` returns it.
        path: where to.
    """
    figure = Figure(figsize=(11, 9), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col", sharey="row")
    for row, (quality, upward) in zip(axes, QUALITIES.items(), strict=True):
        for axis, (speed, across) in zip(row, SPEEDS.items(), strict=True):
            _scatter(axis, document["methods"], speed, quality)
            axis.set_ylabel(upward if axis is row[0] else "")
            axis.set_xlabel(across if row is axes[-1] else "")
    names = [
        f"{number}  {method['name']}{'' if method['lossless'] else ' (lossy)'}"
        for number, method in enumerate(document["methods"], 1)
    ]
    asked = document["quality"]
    figure.suptitle(
        f"{document['model']}: blue lossless, orange lossy; {asked['prompts']} prompts, "
        f"{document['machine']['device']} with {document['machine']['threads']} threads"
    )
    half = -(-len(names) // 2)
    for column, some in enumerate((names[:half], names[half:])):
        figure.text(0.04 + 0.5 * column, -0.01, "\n".join(some), va="top", fontsize=9)
    with written_beside(path) as part:
        figure.savefig(part, format="png", dpi=100, bbox_inches="tight")


def _scatter(axis: Axes, methods: list[dict[str, Any]], speed: str, quality: str) -> None:
    for number, method in enumerate(methods, 1):
        shown = values(method)
        colour = _LOSSLESS if method["lossless"] else _LOSSY
        axis.plot(shown[speed], shown[quality], "o", color=colour, markersize=7)
        axis.annotate(
            str(number),
            (shown[speed], shown[quality]),
            xytext=(5, 4),
            textcoords="offset points",
            fontsize=9,
        )
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
