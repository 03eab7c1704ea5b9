"""Puts results side by side, and refuses to compare what is not comparable; measures nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Report(NamedTuple):
    """Results side by side.

    Attributes:
        evaluation: which one they all are of.
        names: of the results, one a column.
        rows: name of a figure, and its value in every result, None where there is none.
        protocol: what they agree in.
    """

    evaluation: str
    names: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Any, ...]], ...]
    protocol: dict[str, Any]


def compare(results: Mapping[str, Mapping[str, Any]]) -> Report:
    """Puts results of one evaluation side by side.

    Args:
        results: name of a result -> the result, at least two; see `evaluation.result`.

    Returns:
        every figure that any of them has.

    Raises:
        ValueError: fewer than two, or they differ in anything their protocol says: the feature
            network, the reference, counts, clip lengths, preprocessing, and so on.
    """
    if len(results) < 2:
        raise ValueError(f"results must be at least two to compare, got {len(results)}")
    names = tuple(results)
    first = results[names[0]]
    for name in names[1:]:
        other = results[name]
        _agree("evaluation", first["evaluation"], other["evaluation"], names[0], name)
        _agree("", first["protocol"], other["protocol"], names[0], name)
    figures = dict.fromkeys(figure for result in results.values() for figure in result["results"])
    rows = tuple(
        (figure, tuple(result["results"].get(figure) for result in results.values()))
        for figure in figures
    )
    return Report(first["evaluation"], names, rows, dict(first["protocol"]))


def render(report: Report) -> str:
    """The report as a table of aligned text."""
    cells = [["", *report.names]]
    cells += [[figure, *map(_text, values)] for figure, values in report.rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [_line(row, widths) for row in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _agree(path: str, first: Any, second: Any, first_name: str, second_name: str) -> None:
    """Raises ValueError, naming the innermost difference, unless both are equal."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for key in dict.fromkeys((*first, *second)):
            inner = f"{path} {key}".strip()
            _agree(inner, first.get(key), second.get(key), first_name, second_name)
    elif first != second:
        raise ValueError(
            f"{path} must agree to compare results, got {_text(first)} in {first_name} "
            f"and {_text(second)} in {second_name}"
        )


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    left, *rest = (
        cell.rjust(width) if index else cell.ljust(width)
        for index, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return "  ".join([left, *rest]).rstrip()


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
