"""`visual-ar bench --suite`: benches that also need data; knows files, measures nothing."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from visual_ar.cli.common import check_output_folder
from visual_ar.cli.terminal import echo_json, progress, say, show_table
from visual_ar.write_beside import written_beside

if TYPE_CHECKING:
    from visual_ar.data import Dataset
    from visual_ar.evaluation.speed import Schedule
    from visual_ar.evaluation.workload import Options
    from visual_ar.pipeline import VisualARPipeline

REFUSED: dict[str | None, tuple[str, ...]] = {
    None: ("data", "output", "asked"),
    "pareto": (),
    "families": ("model", "draft_model", "methods", "output"),
}
"""Suite, or None for a bench without -> options that it has no use for."""
ASKED = 100
"""Prompts that the quality is measured on, if no other number is asked for."""
RESOLUTION, BATCH = 128, 20  # of the feature network


class Suite(NamedTuple):
    """What the suite pareto is asked for beside a bench.

    Attributes:
        data: prepared dataset of the model, a folder or a pack.
        output: folder for the document and the chart.
        asked: prompts that the quality is measured on.
        resolution: side to which the feature network sees pictures.
        batch: pictures drawn at once for the quality.
    """

    data: Path
    output: Path
    asked: int
    resolution: int = RESOLUTION
    batch: int = BATCH

    def open(self) -> "Dataset":
        """Reads the dataset, once the output is known to be writable.

        Raises:
            ValueError: the folder is not a dataset.
            FileNotFoundError: there is no dataset.
            OSError: the output cannot be written.
        """
        from visual_ar.data import load

        check_output_folder(self.output)
        if not self.data.exists():
            raise FileNotFoundError(
                f"data must be a prepared dataset, got {str(self.data)!r}, which does not exist; "
                f"visual-ar data emoji --output {self.data} prepares it"
            )
        return load(self.data)


def check_options(
    suite: str | None, data: Sequence[Path] | None, others: Mapping[str, Any]
) -> None:
    """Makes sure, before any work, that nothing was asked for that would be passed over.

    Args:
        suite: its name, None for a bench without.
        data: the option of that name.
        others: option -> value, None where it was left out.

    Raises:
        ValueError: there is no such suite, or it has no use for an option or for a second dataset.
    """
    if suite not in REFUSED:
        names = ", ".join(filter(None, REFUSED))
        raise ValueError(f"suite must be one of {names}, got {suite!r}")
    where = "without --suite" if suite is None else f"with --suite {suite}"
    for name, value in {"data": data, **others}.items():
        if name in REFUSED[suite] and value is not None:
            raise ValueError(f"{name} must be left out {where}, got {_told(value)}")
    if suite == "pareto" and data is not None and len(data) > 1:
        raise ValueError(f"data must be given once {where}, got {_told(data)}")
    if suite == "families" and data is None and others["asked"] is not None:
        raise ValueError(
            f"asked must be left out without --data, which tells the quality, got {others['asked']}"
        )


def pareto(
    suite: Suite,
    dataset: "Dataset",
    pipe: "VisualARPipeline",
    model: str,
    subjects: Sequence[str],
    methods: Sequence[str],
    options: "Options",
    schedule: "Schedule",
    as_json: bool,
) -> None:
    """Runs the suite, writes pareto.json and pareto.png, prints the table or the document.

    Features of drawn pictures are kept in the output folder: a suite that was killed measures the
    speeds again, which belong into one run, and draws only what is missing for the quality.
    """
    from visual_ar.cli.feature_network import feature_network, tracker
    from visual_ar.evaluation.pareto import Asked
    from visual_ar.evaluation.pareto import pareto as measure
    from visual_ar.evaluation.pareto_chart import save_chart, table
    from visual_ar.evaluation.speed_table import heading

    with progress(as_json) as bar:
        show = tracker(bar)
        keep = suite.output / "features"
        features = feature_network(pipe, suite.resolution, suite.batch, keep, show)
        document = measure(
            pipe,
            model,
            dataset,
            features,
            subjects,
            methods or None,
            options,
            schedule,
            Asked(suite.asked, schedule.seed),
            show,
        )
    document["quality"]["resolution"] = suite.resolution
    suite.output.mkdir(parents=True, exist_ok=True)
    _write(suite.output / "pareto.json", document)
    save_chart(document, suite.output / "pareto.png")
    if as_json:
        echo_json(document)
        return
    say(heading(document))
    show_table(table(document))
    say(f"Written: {suite.output / 'pareto.json'} and {suite.output / 'pareto.png'}")


def families(
    pipes: "Mapping[str, VisualARPipeline]",
    data: Sequence[Path],
    subjects: "Callable[[VisualARPipeline], Sequence[str]]",
    options: "Options",
    schedule: "Schedule",
    asked: int,
    as_json: bool,
) -> None:
    """Measures models side by side; prints the table or the document.

    Args:
        pipes: by name.
        data: prepared datasets that tell the quality of the models that draw them.
        subjects: what each model draws.
        options: of sampling.
        schedule: how much is measured.
        asked: pictures that the quality is measured on.
        as_json: print the document.
    """
    from visual_ar.cli.feature_network import feature_network, tracker
    from visual_ar.data import load
    from visual_ar.evaluation.families import bench_families, measured_quality
    from visual_ar.evaluation.speed_table import render_families

    datasets = [load(path) for path in data]
    with progress(as_json) as bar:
        show = tracker(bar)

        def quality(pipe: "VisualARPipeline") -> dict[str, float] | None:
            features = feature_network(pipe, RESOLUTION, BATCH, None, show)
            return measured_quality(pipe, datasets, features, asked, schedule.seed)

        document = bench_families(
            pipes,
            subjects,
            options,
            schedule,
            quality if datasets else None,
            progress=lambda done, total: show("drawing", done, total),
        )
    if as_json:
        echo_json(document)
    else:
        show_table(render_families(document))


def _told(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _write(path: Path, document: dict[str, Any]) -> None:
    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    with written_beside(path) as part:
        part.write_bytes(text.encode("utf-8", "backslashreplace"))  # as JSON escapes it
