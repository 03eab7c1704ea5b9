"""Draws the documents of `speed` and `families` as tables; knows no measurement."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table


def heading(document: dict[str, Any]) -> str:
    """What was drawn, how and on what, in one line. document: as `bench_pipeline` returns it."""
    machine, sampling = document["machine"], document["sampling"]
    options = ", ".join(
        f"{name} {value if isinstance(value, str) else format(value, 'g')}"
        for name, value in sampling.items()
    )
    return (
        f"{document['model']} ({options}) on {machine['device']}, {machine['device_name']}, "
        f"{machine['threads']} threads, {machine['dtype']}, torch {machine['torch']}"
    )


def render(document: dict[str, Any]) -> RenderableType:
    """A table of counts, a table of times for every batch size, and what they mean.

    Args:
        document: as `bench` returns it.
    """
    times = [_times(document, index) for index in range(len(document["batches"]))]
    return Group(_counts(document), *times, *_notes(document))


def render_families(document: dict[str, Any]) -> RenderableType:
    """A table for every set of comparable models. document: as `bench_families` returns it."""
    sizes = [f"/s at {batch}" for batch in document["batches"]]
    names = ("M", "passes", "heads", "ms", *sizes, "speedup", "quality")
    tables: list[RenderableType] = []
    for rows in document["families"]:
        table = _table("families", *names)
        for row in rows:
            first = row["batches"][0]
            quality = ", ".join(f"{v:.3g}" for _, v in sorted((row["quality"] or {}).items()))
            table.add_row(
                f"{row['model']} {row['method'].removesuffix('Decoding')}",
                f"{row['parameters'] / 1e6:.2f}",
                f"{first['passes_per_picture']:.1f}",
                f"{first['head_evaluations_per_picture']:.0f}",
                f"{1000 * first['seconds']['total']['median']:.0f}",
                *(f"{some['pictures_per_second']:.2f}" for some in row["batches"]),
                f"{first['speedup']['median']:.2f}x",
                quality,
            )
        tables.append(table)
    measured = {
        key for rows in document["families"] for row in rows for key in row["quality"] or {}
    }
    note = (
        f"{document['rounds']} rounds of {document['pictures']} pictures; M: million parameters; "
        f"passes, heads and ms: of a picture at batch {document['batches'][0]}, all stages; /s: "
        "pictures a second at a batch size; speedup: against the first row. A drafter's heads are "
        "counted, its passes are not. "
        f"Quality: {', '.join(sorted(measured)) or 'not measured (--data)'}."
    )
    return Group(*tables, note)


def _counts(document: dict[str, Any]) -> Table:
    lossy = any(not method["lossless"] for method in document["methods"])
    names = ["window", "passes", "fewer", "accepted", "heads", "outside"]
    drafted = _drafted(document)
    extra = [*(["drafts"] if drafted else []), *(["TV"] if lossy else [])]
    table = _table("passes", *names, *extra)
    for method in document["methods"]:
        row = method["batches"][0]
        windows = dict.fromkeys(str(row["window"]) for row in method["batches"])
        share, spent = method["outside_model_share"], row["total_variation"]
        cells = [
            "/".join(windows),
            f"{row['passes_per_picture']:.1f}",
            f"{row['step_compression']:.2f}x",
            f"{row['accepted_length']['mean']:.2f}",
            f"{row['head_evaluations_per_picture']:.0f}",
            "" if share is None else f"{share:.0%}",
        ]
        if drafted:
            cells.append(f"{row['draft_evaluations_per_picture']:.0f}")
        if lossy:
            cells.append("" if spent is None else f"{spent:.3f}")
        table.add_row(_name(method), *cells)
    return table


def _drafted(document: dict[str, Any]) -> bool:
    rows = [method["batches"][0] for method in document["methods"]]
    return any(row["draft_evaluations_per_picture"] for row in rows)


def _times(document: dict[str, Any], index: int) -> Table:
    """Times at one of the batch sizes, with the memory where the device tells it."""
    rows = [method["batches"][index] for method in document["methods"]]
    memory = any(row["peak_memory_bytes"] is not None for row in rows)
    names = ["cond.", "decode", "detok.", "total", "p10-p90", "pict./s", "speedup"]
    title = f"batch {document['batches'][index]}, ms"
    table = _table(title, *names, *(["MiB"] if memory else []))
    for method, row in zip(document["methods"], rows, strict=True):
        seconds = row["seconds"]
        total = seconds["total"]
        cells = [
            *(
                f"{1000 * seconds[stage]['median']:.1f}"
                for stage in ("condition", "decode", "detokenise", "total")
            ),
            f"{1000 * total['p10']:.0f}-{1000 * total['p90']:.0f}",
            f"{row['pictures_per_second']:.2f}",
            f"{row['speedup']['median']:.2f}x",
        ]
        if memory:
            cells.append(f"{row['peak_memory_bytes'] / 2**20:.0f}")
        table.add_row(_name(method), *cells)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("method", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _name(method: dict[str, Any]) -> str:
    """The specification with blanks, where a narrow table can break the line."""
    name = method["name"].replace(":", " ").replace(",", " ")
    return name if method["lossless"] else f"{name} (lossy)"


def _notes(document: dict[str, Any]) -> list[str]:
    batches = " and ".join(map(str, document["batches"]))
    notes = [
        f"{document['rounds']} rounds of {document['pictures']} pictures at batch {batches}; "
        f"{document['tokens']} tokens of {document['vocabulary']} codes, laws of "
        f"{document['entropy_bits_per_token']:.2f} bits a token on average.",
        f"passes: of a picture, without {document['prefill_passes']} for the prefix; heads: head "
        "evaluations of a picture; outside: share of a pass that is not the model; times: median "
        "of a batch; fewer, speedup: against sequential decoding in the same rounds, all stages.",
    ]
    if _drafted(document):
        notes.append(
            "drafts: steps of a draft head for a picture, each with one more head evaluation."
        )
    if any(not method["lossless"] for method in document["methods"]):
        notes.append(
            "TV: total variation between a token's law and the model's, spent by a lossy rule on "
            "a token on average; an upper bound estimated from the drafts, exact with "
            "measure_tv=true."
        )
    for method in document["methods"]:
        for row in method["batches"]:
            same = row["identical"]
            if same is not None:
                notes.append(
                    f"{_name(method)}, batch {row['batch']}: {same['pictures']:.1%} of pictures "
                    f"and {same['tokens']:.2%} of tokens are those of sequential decoding."
                )
    return notes
