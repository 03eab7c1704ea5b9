"""What `visual-ar generate` asks of a pipeline: loading, completion, batches; prints nothing."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from visual_ar.cli.common import resolve_device, resolve_dtype
from visual_ar.cli.lean_imports import import_pipeline, without_compiler
from visual_ar.method_options import build
from visual_ar.provenance import PARAMETERS, Order, recipe

if TYPE_CHECKING:
    import numpy as np

    from visual_ar.cli.method_flags import MethodAsked
    from visual_ar.output import Stats, VisualAROutput
    from visual_ar.pipeline import VisualARPipeline
    from visual_ar.png import Drawn
    from visual_ar.size import Size


class Drawing(NamedTuple):
    """One picture or clip.

    Attributes:
        drawn: The picture, or its frames.
        recipe: How it was made, see `visual_ar.provenance.command`.
        stats: Of the batch it belongs to.
    """

    drawn: "Drawn"
    recipe: dict[str, Any]
    stats: "Stats"


def load(
    model: str,
    device: str,
    dtype: str,
    draft_model: str | None = None,
    retune: bool = False,
    method: "MethodAsked | None" = None,
) -> "VisualARPipeline":
    """Returns the pipeline on a device.

    Args:
        model: Bundled name, folder or hub id.
        device: See `resolve_device`.
        dtype: See `resolve_dtype`.
        draft_model: Another such model that drafts for this one.
        retune: Whether windows that were measured for the model are forgotten.
        method: That decodes; None is the model's own.

    Raises:
        ValueError: no such device or method, a model's files are damaged, or the draft model does
            not fit.
        OSError: no such model, or the hub cannot be reached.
    """
    place = resolve_device(device)
    import_pipeline()
    from diffusers.utils import logging

    from visual_ar.pipeline import VisualARPipeline

    logging.disable_progress_bar()  # three files load at once; the bar that matters is the tokens'
    number = resolve_dtype(dtype, place)
    with without_compiler():
        pipe = VisualARPipeline.from_pretrained(model, dtype=number).to(place)
        if draft_model is not None:
            pipe.draft_with(VisualARPipeline.from_pretrained(draft_model, dtype=number).to(place))
        if method is not None:
            pipe.scheduler = build(method.name, method.options, pipe.scheduler)
    if retune:
        from visual_ar.accel.loop.window_store import forget_windows

        forget_windows(pipe.model)
    return pipe


def completion(
    pipe: "VisualARPipeline",
    picture: Path | None,
    keep_rows: str | None,
    mask: Path | None,
    size: "Size",
) -> dict[str, Any]:
    """Returns the call's options for completing a picture; none when none is given.

    Args:
        pipe: Its tokenizer says how many cells there are.
        picture: The picture to complete; where it is transparent, it is put on white.
        keep_rows: "FROM:TO" in rows of cells.
        mask: A picture that is white where to keep; what is transparent is not white.
        size: Of what is drawn.

    Raises:
        ValueError: not exactly one way to say what is kept, a range outside the rows, no grid of
            rows and columns, or a file is no picture or a damaged one.
        OSError: a file cannot be read.
    """
    if picture is None:
        if keep_rows is not None or mask is not None:
            raise ValueError("complete must be given with keep_rows or mask, got no picture")
        return {}
    if (keep_rows is None) == (mask is None):
        raise ValueError(
            f"complete must be given with one of keep_rows and mask, got {keep_rows} and {mask}"
        )
    grid = pipe.image_tokenizer.grid(size)
    if len(grid) != 2:
        raise ValueError(
            f"complete must be left out for a model without rows of cells, got {picture}"
        )
    from visual_ar.picture_file import read_picture

    kept = _cells(mask, grid) if mask is not None else _rows(str(keep_rows), grid)
    return {"image": read_picture(picture), "mask": kept}


def draw(pipe: "VisualARPipeline", order: Order, batch: int) -> Iterator[Drawing]:
    """Draws the pictures in order, `batch` at once."""
    call: dict[str, Any] = {
        PARAMETERS.get(key, key): value for key, value in order.settings.items()
    }
    for start in range(0, len(order.subjects), batch):
        subjects = order.subjects[start : start + batch]
        call[PARAMETERS.get(order.kind, order.kind)] = subjects
        output = cast("VisualAROutput", pipe(seeds=order.seed + start, **call, **order.kept))
        pictures = output.images if output.frames is None else output.frames
        for index, drawn in enumerate(pictures):
            yield Drawing(drawn, recipe(pipe, order, output.stats, start, index), output.stats)


def _rows(keep_rows: str, grid: tuple[int, ...]) -> "np.ndarray":
    import numpy as np

    first, _, last = keep_rows.partition(":")
    if not (first.isdecimal() and last.isdecimal() and int(first) < int(last) <= grid[0]):
        raise ValueError(
            f"keep_rows must be FROM:TO with 0 <= FROM < TO <= {grid[0]}, got {keep_rows!r}"
        )
    kept = np.zeros(grid, dtype=bool)
    kept[int(first) : int(last)] = True
    return kept


def _cells(mask: Path, grid: tuple[int, ...]) -> "np.ndarray":
    """A cell is kept when its part of the mask is mostly white."""
    import numpy as np
    from PIL import Image

    from visual_ar.picture_file import read_picture

    grey = read_picture(mask, ground="black").convert("L")
    small = grey.resize((grid[1], grid[0]), Image.Resampling.BOX)
    return np.asarray(small) > 127
