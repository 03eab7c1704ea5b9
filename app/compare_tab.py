"""The tab Compare: two methods race to one picture; knows gradio, leaves the race to others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr

from visual_ar import accel
from visual_ar.app.acceptance_map import acceptance_map, legend
from visual_ar.app.comparison import Lane, conclusion, faster, lanes, race, table
from visual_ar.app.controls import Controls
from visual_ar.app.enlarge import enlarged_drawn
from visual_ar.app.errors import sentences
from visual_ar.app.files import as_file
from visual_ar.app.live_drawing import PREVIEW_SECONDS, progress
from visual_ar.app.page import DEVICE, main_button
from visual_ar.app.settings import LONGEST_PROMPT, settings
from visual_ar.app.shelf import Shelf
from visual_ar.evaluation.speed import DEFAULT_METHODS
from visual_ar.method_options import parse_method

FIRST, SECOND = "sequential", "jacobi:window=16"
METHOD_INFO = "A name, or one with options, such as jacobi:window=16."


def choices() -> list[str]:
    """Methods to pick from: every name, and the variants that `bench` measures."""
    return list(dict.fromkeys((*accel.METHODS, SECOND, *DEFAULT_METHODS)))


def compare(
    shelf: Shelf, model: str, subject: str, seed: str, names: tuple[str, str], *sampling: Any
) -> Iterator[tuple[Any, ...]]:
    """Yields the first picture, the second, their maps, legend, table, conclusion and slider.

    Pictures are files that live until the next value is asked for.

    Args:
        shelf: holds the model.
        model: its name.
        subject: prompt or class.
        seed: of both pictures.
        names: the two methods, as `method_options.parse_method` reads them.
        *sampling: guidance, its schedule, temperature, top-k and top-p.

    Raises:
        ValueError: an option is refused, or a method named twice.
    """
    first, second = (name.strip() for name in names)
    if first == second:
        raise ValueError(f"methods must be two different ones, got {first!r} twice")
    pipe = shelf.get(model)
    methods = {name: parse_method(name, pipe.scheduler) for name in (first, second)}
    field = lanes(pipe, methods, settings(subject, 1, seed, *sampling))
    yield (*[None] * 4, "", None, "Reading the prompt; measuring windows that are not known.", None)
    with TemporaryDirectory() as folder:
        for _ in race(field, PREVIEW_SECONDS):
            yield (*_board(field, Path(folder)), gr.skip(), _standing(field), gr.skip())
        told = f"**{conclusion(*field)}** {faster(*field)}"
        board = _board(field, Path(folder))
        yield (*board, table(*field), told, board[:2])


def _board(field: list[Lane], folder: Path) -> tuple[str, ...]:
    """Both pictures, both maps in one scale of colours, and its legend."""
    shown = [lane.latest for lane in field if lane.latest is not None]
    stats = [preview.stats for preview in shown]
    passes = max(preview.step + 1 for preview in shown)
    return (
        *[as_file(enlarged_drawn(preview.images()[0]), folder) for preview in shown],
        *[as_file(acceptance_map(one.acceptance_map[0], passes), folder) for one in stats],
        legend(passes),
    )


def _standing(field: list[Lane]) -> str:
    """How far the lanes are."""
    lines = [
        f"{lane.name} after {lane.seconds:.2f} s: {progress(lane.latest)}"
        for lane in field
        if lane.latest is not None
    ]
    return "\n\n".join(lines)


def add_compare_tab(shelf: Shelf, controls: Controls) -> None:
    """Puts the tab's content where it is called, and its handlers.

    Args:
        shelf: the models.
        controls: of the tab Generate, whose sampling options count here too.
    """
    with gr.Row():
        subject = gr.Textbox(
            controls.subject.value,
            label="Prompt or class",
            lines=1,
            max_lines=1,
            max_length=LONGEST_PROMPT,
            elem_classes="subject",
        )
        seed = gr.Textbox("0", label="Seed", max_lines=1)
    with gr.Row():
        first, second = (
            gr.Dropdown(
                choices(),
                value=value,
                label=label,
                info=METHOD_INFO,
                allow_custom_value=True,
                min_width=280,
            )
            for label, value in (("First method", FIRST), ("Second method", SECOND))
        )
    with gr.Row():
        start, stop = main_button("Compare"), gr.Button("Stop", min_width=100)
    told = gr.Markdown(
        "Both draw from one seed, in turns on one device; each clock runs only during the passes "
        "of its own method. Sampling is set on the tab Generate.",
        elem_classes="stats",
    )
    outputs = [*_pictures(), told, _slider()]

    def run(
        model: str,
        subject: str,
        seed: str,
        first: str,
        second: str,
        guidance: float,
        guidance_schedule: str,
        temperature: float,
        top_k: float,
        top_p: float,
    ) -> Iterator[tuple[Any, ...]]:
        """Draws one picture with two methods at the same time."""
        sampling = (guidance, guidance_schedule, temperature, top_k, top_p)
        yield from compare(shelf, model, subject, seed, (first or "", second or ""), *sampling)

    def stopped() -> str:
        """Ends the race."""
        return "Stopped."

    event = gr.on(
        [start.click, subject.submit],
        sentences(shelf.thread.handler(run)),
        [controls.model, subject, seed, first, second, *controls.sampling],
        outputs,
        api_name="compare",
        concurrency_id=DEVICE,
        concurrency_limit=1,
        show_progress_on=[outputs[0], outputs[1]],
    )
    stop.click(stopped, None, told, cancels=[event], api_name="stop_comparison", queue=False)


def _pictures() -> list[Any]:
    """Two pictures, two maps, the legend and the table."""
    shown: list[Any] = []
    for kind, caption in (
        ("picture", "The first picture and the second:"),
        ("acceptance map", "The pass in which each of their tokens was accepted:"),
    ):
        gr.Markdown(caption)
        with gr.Row():
            shown += [_image(f"{which} {kind}") for which in ("First", "Second")]
    shown.append(gr.HTML(label="Colours of the passes"))
    shown.append(
        gr.Dataframe(
            headers=["", "first", "second"],
            column_widths=["50%", "25%", "25%"],
            label="Measured",
            interactive=False,
            wrap=True,
        )
    )
    return shown


def _image(label: str) -> gr.Image:
    """A picture without its label on it, which would hide a corner on a phone."""
    return gr.Image(
        label=label,
        show_label=False,
        format="png",
        interactive=False,
        min_width=140,
        buttons=["fullscreen"],
        elem_classes="pictures",
    )


def _slider() -> gr.ImageSlider:
    return gr.ImageSlider(
        label="First against second", format="png", interactive=False, elem_classes="pictures"
    )
