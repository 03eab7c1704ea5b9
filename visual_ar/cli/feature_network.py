"""The feature network of the commands that compare pictures, and a bar that follows it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

    from visual_ar.evaluation.quality import Features
    from visual_ar.pipeline import VisualARPipeline

Track = Callable[[str, int, int], None]


def feature_network(
    pipe: "VisualARPipeline", resolution: int, batch: int, keep: Path | None, track: Track
) -> "Features":
    """EfficientNet-Lite0 on the pipeline's device.

    Args:
        pipe: whose device is used.
        resolution: side to which the network sees pictures.
        batch: pictures at a time.
        keep: folder for finished batches.
        track: told of every batch.
    """
    from visual_ar.evaluation.features import SHA256, EfficientNetLite0Features
    from visual_ar.evaluation.quality import Features

    network = EfficientNetLite0Features(resolution).to(pipe.device)
    identity = f"{SHA256[:16]} {resolution} {pipe.device.type}"
    return Features(lambda pixels: network(pixels.to(pipe.device)), identity, batch, keep, track)


def tracker(bar: "Progress") -> Track:
    """Returns a function (what, done, total) that keeps one line of the bar for everything told."""
    tasks = {}

    def track(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(what)
        bar.update(tasks[what], completed=done, total=total)

    return track
