"""Draws the document of `visual_ar.evaluation.speed.bench` as a table; knows no measurement."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

COUNTS = ("window", "passes", "fewer", "accepted", "head evals")
TIMES = ("condition", "decode", "detokenise", "total ms", "p10-p90", "pictures/s", "speedup")


def render(document: dict[str, Any]) -> RenderableType:
    """One table a batch size, with what applies to all of them below.

    Args:
        document: as `bench` returns it.
    """
    tables = [_table(document, index) for index in range(len(document["batches"]))]
    return Group(*tables, *_notes(document))


def heading(document: dict[str, Any]) -> str:
    """What was drawn, how and on what, in one line. document: as `bench_pipeline` returns it."""
    machine, sampling = document["machine"], document["sampling"]
    options = ", ".join(f"{name} {value:g}" for name, value in sampling.items())
    return (
        f"{document['model']} ({options}) on {machine['device']}, {machine['device_name']}, "
        f"{machine['threads']} threads, {machine['dtype']}, torch {machine['torch']}"
    )


def _table(document: dict[str, Any], index: int) -> Table:
    rounds, pictures = document["rounds"], document["pictures"]
    title = f"batch {document['batches'][index]}, {rounds} rounds of {pictures} pictures"
    table = Table(title=title)
    table.add_column("method")
    for name in (*COUNTS, *TIMES, "outside model"):
        table.add_column(name, justify="right")
    for method in document["methods"]:
        row = method["batches"][index]
        share = method["outside_model_share"] if index == 0 else None
        table.add_row(
            method["name"] + ("" if method["lossless"] else " (lossy)"),
            *_counts(row),
            *_times(row),
            "" if share is None else f"{share:.0%}",
        )
    return table


def _counts(row: dict[str, Any]) -> list[str]:
    return [
        str(row["window"]),
        f"{row['passes_per_picture']:.1f}",
        f"{row['step_compression']:.2f}x",
        f"{row['accepted_length']['mean']:.2f}",
        f"{row['head_evaluations_per_picture']:.0f}",
    ]


def _times(row: dict[str, Any]) -> list[str]:
    seconds = row["seconds"]
    total = seconds["total"]
    stages = ("condition", "decode", "detokenise", "total")
    return [
        *(f"{1000 * seconds[stage]['median']:.1f}" for stage in stages),
        f"{1000 * total['p10']:.0f}-{1000 * total['p90']:.0f}",
        f"{row['pictures_per_second']:.2f}",
        f"{row['speedup']['median']:.2f}x",
    ]


def _notes(document: dict[str, Any]) -> list[str]:
    notes = [
        f"{document['tokens']} tokens of {document['vocabulary']} codes; "
        f"mean entropy of the laws {document['entropy_bits_per_token']:.2f} bits a token; "
        f"{document['prefill_passes']} prefill pass a batch not counted in passes.",
        "Times are medians of a batch in ms; fewer and speedup are against sequential decoding "
        "in the same rounds, speedup over all stages.",
    ]
    for method in document["methods"]:
        for row in method["batches"]:
            where, same = f"{method['name']}, batch {row['batch']}", row["identical"]
            if same is not None:
                notes.append(
                    f"{where}: {same['pictures']:.1%} of pictures and {same['tokens']:.2%} of "
                    "tokens are those of sequential decoding with the same seeds."
                )
            if row["peak_memory_bytes"] is not None:
                notes.append(f"{where}: peak memory {row['peak_memory_bytes'] / 2**20:.0f} MiB.")
    return notes
