"""The tab Models: what is there, cards, loading more; knows gradio, leaves loading to the shelf."""

from __future__ import annotations

from typing import Any

import gradio as gr

from visual_ar.app.controls import (
    Controls,
    about_method,
    model_updates,
    option_updates,
    shipped_method,
    shown_options,
)
from visual_ar.app.errors import sentences
from visual_ar.app.page import DEVICE, main_button
from visual_ar.app.shelf import Shelf, card, describe

HEADERS = ("part", "what")
LONGEST_NAME = 300


def add_models_tab(shelf: Shelf, controls: Controls) -> None:
    """Puts the tab's content where it is called, and its handlers."""
    with gr.Row():
        wanted = gr.Textbox(
            label="Load a model",
            info="A folder where this page runs, or OWNER/NAME on the Hugging Face hub.",
            lines=1,
            max_lines=1,
            max_length=LONGEST_NAME,
            scale=3,
        )
        start = main_button("Load")
    status = gr.Markdown(elem_classes="stats")
    shown = gr.Radio(shelf.names(), value=shelf.first, label="Installed models")
    table = gr.Dataframe(
        _rows(shelf, shelf.first),
        headers=list(HEADERS),
        column_widths=["45%", "55%"],
        label="What it is",
        interactive=False,
        wrap=True,
    )
    text = gr.Markdown(card(shelf.first), container=True)

    def load(name: str) -> list[Any]:
        """Loads a model and makes it the page's model."""
        name = (name or "").strip()
        if not name:
            raise ValueError("model must be a folder or OWNER/NAME, got nothing")
        pipe = shelf.load(name)
        own = shipped_method(pipe)
        values = shown_options(pipe, own)
        picked = gr.update(choices=shelf.names(), value=name)
        updates = [about_method(pipe, own, values), *option_updates(own, values)]
        followers = [*model_updates(pipe, name), *updates]
        loaded = f"{name} is loaded, and all tabs draw with it."
        return [loaded, picked, picked, _rows(shelf, name), card(name), *followers]

    def show_card(model: str) -> tuple[list[list[str]], str]:
        """Shows what a model consists of, and its card."""
        return _rows(shelf, model), card(model)

    followers = [*controls.of_model, *controls.of_method]
    gr.on(
        [start.click, wanted.submit],
        sentences(load),
        wanted,
        [status, controls.model, shown, table, text, *followers],
        api_name="load_model",
        show_progress_on=[status],
        concurrency_id=DEVICE,
        concurrency_limit=1,
    )
    shown.input(
        sentences(show_card), shown, [table, text], api_name="model_card", concurrency_id=DEVICE
    )


def _rows(shelf: Shelf, name: str) -> list[list[str]]:
    return [[part, str(what)] for part, what in describe(shelf.get(name)).items()]
