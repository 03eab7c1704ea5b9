"""A speed measurement in the form of every other evaluation's result; measures nothing itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from visual_ar.evaluation.result import document
from visual_ar.evaluation.speed import DEFAULT_METHODS, Progress, Schedule, bench_pipeline
from visual_ar.evaluation.workload import DEFAULTS, Options, fingerprint

if TYPE_CHECKING:
    from visual_ar.pipeline import VisualARPipeline

# What two measurements must share for their times to be comparable; the model and the commit may
# be what is compared.
MACHINE = ("device", "device_name", "dtype", "threads", "platform", "torch", "cuda")
WORK = ("baseline", "batches", "pictures", "rounds", "warmup", "tokens", "subjects", "sampling")


def speed(
    pipe: VisualARPipeline,
    name: str,
    subjects: Sequence[str],
    options: Options = DEFAULTS,
    methods: Sequence[str] = DEFAULT_METHODS,
    schedule: Schedule | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measures decoding methods side by side, as `visual-ar bench` does.

    Args:
        pipe: see `bench_pipeline`, like all others.
        name: of the model.
        subjects: prompts or class names.
        options: of sampling.
        methods: sequential decoding is always among them.
        schedule: how much is measured.
        progress: called after every batch drawn.

    Returns:
        a result, see `evaluation.result`; the whole report of `bench_pipeline` is its input.

    Raises:
        ValueError: as `bench_pipeline`.
    """
    report = bench_pipeline(pipe, name, subjects, options, methods, schedule, progress)
    protocol = {key: report["machine"][key] for key in MACHINE}
    protocol |= {key: report[key] for key in WORK}
    protocol |= {"stages": "condition, decode with prefill, detokenise"}
    results: dict[str, Any] = {}
    for method in report["methods"]:
        for row in method["batches"]:
            label = f"{method['name']}, batch {row['batch']}"
            results[f"{label}, passes"] = row["passes_per_picture"]
            results[f"{label}, tokens a pass"] = row["accepted_length"]["mean"]
            results[f"{label}, head evaluations"] = row["head_evaluations_per_picture"]
            results[f"{label}, seconds a batch"] = row["seconds"]["total"]["median"]
            results[f"{label}, pictures a second"] = row["pictures_per_second"]
            results[f"{label}, speedup"] = row["speedup"]["median"]
    inputs = {"weights": fingerprint(pipe), "report": report}
    return document("speed", protocol, inputs, results, {"first": report["seed"]})
