"""The tab Generate: what its buttons do; knows gradio, leaves drawing to others."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import gradio as gr

from visual_ar.app.controls import (
    ARGUMENTS,
    Controls,
    about_method,
    make_controls,
    make_prompt,
    model_updates,
    option_updates,
    shipped_method,
    shown_options,
)
from visual_ar.app.errors import name_arguments, sentences
from visual_ar.app.live_drawing import drawing
from visual_ar.app.methods import make
from visual_ar.app.page import DEVICE
from visual_ar.app.restore import read
from visual_ar.app.settings import Settings, settings
from visual_ar.app.shelf import Shelf

SEED_BITS = 31


def add_generate_tab(shelf: Shelf, model: gr.Dropdown, names: gr.HTML) -> Controls:
    """Puts the tab's content where it is called, and its handlers. Returns its controls."""
    pipe = shelf.get(shelf.first)
    subject, examples, start, stop = make_prompt(pipe, shelf.first)
    with gr.Row():  # the pictures first, which a phone shows one below the other
        with gr.Column(scale=3, min_width=300):
            gallery = gr.Gallery(
                label="Pictures",
                columns=2,
                format="png",
                object_fit="contain",
                height="auto",
                buttons=["download", "fullscreen"],
                elem_classes="pictures",
                interactive=False,
            )
            status = gr.Markdown("", elem_classes="stats")
        with gr.Column(scale=2, min_width=300):
            controls, dice, recipe_file = make_controls(pipe, model, names, subject, examples)
    _on_draw(shelf, controls, start, stop, gallery, status)
    _on_change(shelf, controls, dice)
    _on_restore(shelf, controls, recipe_file)
    return controls


def _on_draw(
    shelf: Shelf,
    controls: Controls,
    start: gr.Button,
    stop: gr.Button,
    gallery: gr.Gallery,
    status: gr.Markdown,
) -> None:
    names = list(controls.options)

    def generate(*values: Any) -> Iterator[tuple[Any, str, str]]:
        """Draws pictures, yielding them while they form: pictures, a line about them, the seed."""
        model, subject, pictures, seed, lock, method, *rest = values
        if not lock:
            seed = str(secrets.randbits(SEED_BITS))
        wanted = settings(subject, pictures, seed, *rest[:5])
        pipe = shelf.get(model)
        chosen = make(method, dict(zip(names, rest[5:], strict=True)), pipe.scheduler)
        for shown in drawing(pipe, model, chosen, wanted):
            yield shown.images, shown.status, str(wanted.seed)

    def stopped() -> str:
        """Ends the drawing."""
        return "Stopped."

    handler = name_arguments(sentences(shelf.thread.handler(generate)), [*ARGUMENTS, *names])
    outputs = [gallery, status, controls.seed]
    shared: dict[str, Any] = {"concurrency_id": DEVICE, "concurrency_limit": 1}
    drawing_event = gr.on(
        [start.click, controls.subject.submit],
        handler,
        controls.inputs,
        outputs,
        api_name="generate",
        show_progress_on=[gallery],
        **shared,
    )
    stop.click(stopped, None, status, cancels=[drawing_event], api_name="stop", queue=False)


def _on_change(shelf: Shelf, controls: Controls, dice: gr.Button) -> None:
    names = list(controls.options)

    def choose_model(model: str) -> list[Any]:
        """Shows what a model draws and its own settings."""
        pipe = shelf.get(model)
        own = shipped_method(pipe)
        values = shown_options(pipe, own)
        updates = [about_method(pipe, own, values), *option_updates(own, values)]
        return [*model_updates(pipe, model), *updates]

    def choose_method(model: str, method: str) -> list[Any]:
        """Shows the options of a method."""
        pipe = shelf.get(model)
        values = shown_options(pipe, method)
        return [about_method(pipe, method, values), *option_updates(method, values)]

    def describe_method(*values: Any) -> str:
        """Says in a sentence what a method with its options does to the model's law."""
        model, method, *rest = values
        return about_method(shelf.get(model), method, dict(zip(names, rest, strict=True)))

    def randomise() -> tuple[str, bool]:
        """Draws a seed and locks it."""
        return str(secrets.randbits(SEED_BITS)), True

    def pick(sample: list[str]) -> str:
        """Takes an example as the prompt."""
        return sample[0]

    followers = [*controls.of_model, *controls.of_method]
    controls.model.input(
        sentences(shelf.thread.handler(choose_model)),
        controls.model,
        followers,
        api_name="choose_model",
        concurrency_id=DEVICE,
        show_progress_on=[controls.about],
    )
    controls.method.input(
        sentences(choose_method),
        [controls.model, controls.method],
        controls.of_method,
        api_name="choose_method",
        show_progress="hidden",
    )
    gr.on(
        [control.input for control in controls.options.values()],
        name_arguments(sentences(describe_method), ["model", "method", *names]),
        [controls.model, controls.method, *controls.options.values()],
        controls.about,
        api_name="describe_method",
        show_progress="hidden",
    )
    dice.click(randomise, None, [controls.seed, controls.lock], api_name="randomise", queue=False)
    controls.examples.click(
        pick, controls.examples, controls.subject, api_name="pick_example", queue=False
    )


def _on_restore(shelf: Shelf, controls: Controls, file: gr.UploadButton) -> None:
    def restore_picture(picture: str) -> list[Any]:
        """Sets every control to what the recipe of a PNG says."""
        if not picture:
            raise ValueError("picture must be a PNG file, got none")
        found = read(picture, shelf.names())
        pipe, drawn = shelf.get(found.model), found.settings
        for note in found.notes_for(pipe.size):
            gr.Warning(note)
        updates = model_updates(pipe, found.model)
        about = about_method(pipe, found.method, found.values)
        return [
            found.model,
            *_restored(updates, drawn),
            drawn.pictures,
            str(drawn.seed),
            True,
            found.method,
            about,
            *option_updates(found.method, found.values),
        ]

    outputs = [
        controls.model,
        *controls.of_model[:-1],
        controls.pictures,
        controls.seed,
        controls.lock,
        controls.method,
        *controls.of_method,
    ]
    file.upload(
        sentences(shelf.thread.handler(restore_picture)),
        file,
        outputs,
        api_name="restore",
        concurrency_id=DEVICE,
        show_progress_on=[controls.about],  # an error must not cover every control
    )


def _restored(updates: list[Any], drawn: Settings) -> list[Any]:
    """The updates of a model with the settings of a drawing in place of its own."""
    subject, names, examples = updates[:3]
    sampling = (
        drawn.guidance,
        drawn.guidance_schedule,
        drawn.temperature,
        drawn.top_k,
        drawn.top_p,
    )
    return [{**subject, "value": drawn.subject}, names, examples, *sampling]
