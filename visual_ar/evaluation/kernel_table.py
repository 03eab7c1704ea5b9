"""Draws the documents of `kernel_speed` and `loop_speed` as tables; knows no measurement."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table


def render_kernels(document: dict[str, Any]) -> RenderableType:
    """A table of windows with everyone's microseconds, and what they mean.

    Args:
        document: as `bench_kernels` returns it.
    """
    table = _table("verification of a window", "B", "W", "V", "rule", "MB", "by")
    for name in ("us", "GB/s", "x floor", "run"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in document["rows"]:
        shape = (row["pictures"], row["window"], row["vocabulary"], row["rule"])
        cells = [*map(str, shape), f"{row['bytes'] / 1e6:.1f}"]
        table.add_row(*cells, "floor", _us(row["floor_seconds"]), "", "1.0", "")
        for name, result in row["results"].items():
            table.add_row(*[""] * len(cells), name, *_result(result))
    notes = [
        f"floor: logits read once and laws written once at {_gb(document)} GB/s, the bandwidth of "
        f"a copy, and a launch of {_us(document['launch_seconds'])} us.",
        "run: graph, a captured graph, which leaves out what the host costs; eager, with it.",
        *(f"{name} is left out: {reason}." for name, reason in document["missing"].items()),
    ]
    return Group(_where(document), table, *notes)


def render_loop(document: dict[str, Any]) -> RenderableType:
    """A table of methods with the parts of a pass, and the limit.

    Args:
        document: as `bench_loop` returns it.
    """
    names = ("pass", "forward", "verify", "rest", "rest+verify", "tokens/pass", "tokens/s", "limit")
    table = _table(f"a pass of {document['model']}, batch {document['batch']}, ms", "method")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in document["rows"]:
        outside = 1 - row["forward_seconds"] / row["seconds"]
        parts = ("seconds", "forward_seconds", "verify_seconds", "rest_seconds")
        table.add_row(
            row["method"].replace(":", " ").replace(",", " "),
            *("" if row[part] is None else f"{1000 * row[part]:.3f}" for part in parts),
            f"{outside:.0%}",
            f"{row['tokens_per_pass']:.2f}",
            f"{row['tokens_per_second']:.1f}",
            f"{row['share_of_limit']:.0%}",
        )
    captured = all(row["captured"] for row in document["rows"])
    notes = [
        f"limit: share of {document['limit_tokens_per_second']:.1f} tokens a second, which reading "
        f"{document['weight_bytes'] / 1e6:.1f} MB of weights once a token allows at "
        f"{_gb(document)} GB/s, the bandwidth of a copy.",
        "A pass is a captured graph."
        if captured
        else "A pass is run one operation at a time; without the kernel, verifying is in the rest.",
    ]
    return Group(_where(document), table, *notes)


def _result(result: dict[str, Any]) -> list[str]:
    if "error" in result:
        return [result["error"], "", "", ""]
    rate, ratio = result["bytes_per_second"] / 1e9, result["floor_ratio"]
    run = "graph" if result["captured"] else "eager"
    return [_us(result["seconds"]), f"{rate:.0f}", f"{ratio:.1f}", run]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _where(document: dict[str, Any]) -> str:
    where = document["machine"]
    return (
        f"{where['device']}, {where['device_name']}, {where['dtype']}, torch {where['torch']}, "
        f"{where['threads']} threads"
    )


def _us(seconds: float) -> str:
    return f"{1e6 * seconds:.1f}"


def _gb(document: dict[str, Any]) -> str:
    return f"{document['copy_bytes_per_second'] / 1e9:.0f}"
