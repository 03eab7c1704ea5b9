"""Draws pictures while they form, and writes the complete ones with their recipes.

Knows the pipeline and recipes; knows nothing about pages.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from visual_ar.accel.loop.contract import Decoding
from visual_ar.app.files import as_file
from visual_ar.app.methods import with_method
from visual_ar.app.settings import Settings
from visual_ar.output import Preview, Stats
from visual_ar.pipeline import VisualARPipeline
from visual_ar.png import Drawn, write_png
from visual_ar.provenance import SAMPLING, Order, recipe

PREVIEW_SECONDS = 0.2
"""Least time between two previews; drawing one costs a pass of the tokenizer."""


class Shown(NamedTuple):
    """What a page shows of a drawing.

    Attributes:
        images: PNG files, which live until the next value is asked for; in the end those of the
            complete pictures with their recipes.
        status: a line about them.
    """

    images: list[str]
    status: str


def drawing(
    pipe: VisualARPipeline, model: str, method: Decoding, settings: Settings
) -> Iterator[Shown]:
    """Yields pictures while they form; in the end files that carry their recipes.

    Args:
        pipe: draws them.
        model: its name, for the recipe.
        method: how to decode.
        settings: what to draw.

    Raises:
        ValueError: the pipeline refuses an option, before anything is yielded.
    """
    drawer = with_method(pipe, method)
    previews = drawer.stream(**settings.call(pipe))
    yield Shown([], opening(method))
    shown = -float("inf")
    with TemporaryDirectory() as folder:
        for preview in previews:
            if time.monotonic() - shown >= PREVIEW_SECONDS:
                files = [as_file(image, Path(folder)) for image in preview.images()]
                yield Shown(files, progress(preview))
                shown = time.monotonic()
        stats = preview.stats
        files = write(preview.images(), drawer, model, settings, stats, Path(folder))
        yield Shown(files, summary(stats))


def opening(method: Decoding) -> str:
    """What is done before the first pass."""
    if method.config.get("window") == "auto":
        return "Reading the prompt; the first time, measuring which window is fastest here."
    return "Reading the prompt."


def progress(preview: Preview) -> str:
    """How far a drawing is, and how fast."""
    total = preview.tally.known.numel()
    pictures, passes = len(preview.tally.known), preview.step + 1
    return (
        f"**{preview.committed} of {total} tokens**, {_rate(preview.committed, preview.seconds)}; "
        f"{_passes(passes)}, sequential decoding needs {preview.committed / pictures:.0f} for as "
        "many."
    )


def summary(stats: Stats) -> str:
    """What a complete drawing took."""
    passes, tokens = max(stats.passes), stats.committed_tokens
    window = f" with window {stats.window}" if stats.window > 1 else ""
    spent = stats.total_variation
    law = "lossless=True" if stats.lossless else "lossless=False"
    if spent is not None:
        law += f", total variation {spent:.3f} a token"
    return (
        f"**{_passes(passes)} instead of {tokens // len(stats.seeds)}**, "
        f"{stats.mean_accepted_length:.2f} tokens a pass, {_rate(tokens, stats.seconds)}. "
        f"{stats.method}{window}, {law}."
    )


def write(
    images: Sequence[Drawn],
    pipe: VisualARPipeline,
    model: str,
    settings: Settings,
    stats: Stats,
    folder: Path,
) -> list[str]:
    """Writes complete pictures with the recipes that `visual-ar info` reads.

    Args:
        images: one a seed, of clips its frames.
        pipe: drew them.
        model: its name.
        settings: what was drawn.
        stats: how.
        folder: where the files go.

    Returns:
        their paths.
    """
    order = Order(
        kind=pipe.conditioner.key,
        subjects=[settings.subject] * len(images),
        seed=settings.seed,
        settings={name: getattr(settings, name) for name in SAMPLING},
        asked={"model": model},
    )
    paths = []
    for index, image in enumerate(images):
        path = folder / f"{_file_name(settings.subject)}-{stats.seeds[index]}.png"
        write_png(image, path, recipe(pipe, order, stats, 0, index))
        paths.append(str(path))
    return paths


def _file_name(subject: str) -> str:
    kept = "".join(letter if letter.isalnum() else "-" for letter in subject)
    return kept.strip("-")[:40] or "picture"


def _passes(count: int) -> str:
    return "1 pass" if count == 1 else f"{count} passes"


def _rate(tokens: int, seconds: dict[str, float]) -> str:
    return f"{tokens / max(seconds.get('decode', 0.0), 1e-9):.0f} tokens a second"
