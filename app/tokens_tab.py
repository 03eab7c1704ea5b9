"""The tab Tokens: a picture through every tokenizer; knows gradio, leaves codes to others."""

from __future__ import annotations

from typing import Any

import gradio as gr

from visual_ar.app.code_view import DIFFERENCE_GAIN, View, see, swapped
from visual_ar.app.errors import sentences
from visual_ar.app.page import DEVICE, main_button
from visual_ar.app.shelf import Shelf
from visual_ar.app.uploads import open_picture

HEADERS = ("model", "tokens", "bits", "PSNR", "SSIM")
WIDTHS = ("22%", "30%", "14%", "19%", "15%")
Views = dict[str, View]


def look(shelf: Shelf, upload: str | None) -> Views:
    """An upload through the tokenizer of every model of pictures, at the size of its own.

    Raises:
        ValueError: there is no upload, or it is no picture.
    """
    if not upload:
        raise ValueError("upload must be a picture, got none")
    image = open_picture(upload)
    views = {}
    for name in shelf.names():
        pipe = shelf.get(name)
        if len(pipe.image_tokenizer.grid(pipe.size)) == 2:
            size = (pipe.size.height, pipe.size.width)
            views[name] = see(pipe.image_tokenizer, image, size)
    return views


def add_tokens_tab(shelf: Shelf) -> None:
    """Puts the tab's content where it is called, and its handlers."""
    views = gr.State({})
    upload = gr.File(
        label="A picture",
        file_types=["image"],
        type="filepath",
        height=140,
        elem_classes="upload-zone",
    )
    start = main_button("Look")
    table = gr.Dataframe(
        headers=list(HEADERS),
        column_widths=list(WIDTHS),
        label="The picture through the tokenizer of every model",
        interactive=False,
        wrap=True,
    )
    gr.Markdown(
        f"The original, its reconstruction and {DIFFERENCE_GAIN} times their difference; a row a "
        "tokenizer, in the order of the table:"
    )
    gallery = gr.Gallery(
        label="Reconstructions",
        show_label=False,
        columns=3,
        format="png",
        object_fit="contain",
        height="auto",
        buttons=["download", "fullscreen"],
        elem_classes="pictures",
        interactive=False,
    )
    which = gr.Radio([], label="Swap codes of", visible=False)
    gr.Markdown("Click a cell to swap its code for a neighbour, or name the cell:")
    with gr.Row():
        edited = gr.Image(
            label="Reconstruction with swapped codes",
            show_label=False,
            format="png",
            interactive=False,
            buttons=["fullscreen"],
            elem_classes=["pictures", "edited"],
        )
        with gr.Column():
            row = gr.Number(0, precision=0, minimum=0, label="Row")
            column = gr.Number(0, precision=0, minimum=0, label="Column")
            rank = gr.Number(
                1, precision=0, minimum=1, label="Neighbour", info="1 is the nearest code."
            )
            swap = gr.Button("Swap")
            told = gr.Markdown(elem_classes="stats")
    _connect(
        shelf,
        (views, upload, start, table, gallery),
        (which, edited, row, column, rank),
        swap,
        told,
    )


def _connect(
    shelf: Shelf,
    above: tuple[gr.State, gr.File, gr.Button, gr.Dataframe, gr.Gallery],
    below: tuple[gr.Radio, gr.Image, gr.Number, gr.Number, gr.Number],
    swap: gr.Button,
    told: gr.Markdown,
) -> None:
    views, upload, start, table, gallery = above
    which, edited, row, column, rank = below

    def show(upload: str) -> tuple[Any, ...]:
        """Sends a picture through the tokenizer of every model."""
        seen = look(shelf, upload)
        names = list(seen)
        pictures = [picture for view in seen.values() for picture in view.pictures()]
        rows = [[name, *view.row()] for name, view in seen.items()]
        choice = gr.update(choices=names, value=names[0], visible=True)
        return seen, rows, pictures, choice, seen[names[0]].marked(), ""

    def turn_to(views: Views, tokenizer: str) -> Any:
        """Shows the reconstruction of another tokenizer."""
        return _view(views, tokenizer).marked()

    def find_cell(views: Views, tokenizer: str, event: gr.SelectData) -> tuple[int, int]:
        """Turns a click into the row and the column of a cell."""
        x, y = event.index
        return _view(views, tokenizer).cell_at(x, y)

    def swap_code(
        views: Views, tokenizer: str, row: int, column: int, neighbour: int
    ) -> tuple[Views, Any, str]:
        """Replaces the code of a cell by one of its neighbours in the code book."""
        view = _view(views, tokenizer)
        for name, value in (("row", row), ("column", column), ("neighbour", neighbour)):
            if not isinstance(value, int):
                raise ValueError(f"{name} must be a whole number, got {value!r}")
        coder = shelf.get(tokenizer).image_tokenizer
        changed, sentence = swapped(coder, view, (row, column), neighbour)
        return {**views, tokenizer: changed}, changed.marked((row, column)), sentence

    heavy: dict[str, Any] = {"concurrency_id": DEVICE, "concurrency_limit": 1}
    start.click(
        sentences(shelf.thread.handler(show)),
        upload,
        [views, table, gallery, which, edited, told],
        api_name="look",
        **heavy,
    )
    which.input(sentences(turn_to), [views, which], edited, api_name="turn_to")
    swapping: list[Any] = [
        sentences(shelf.thread.handler(swap_code)),
        [views, which, row, column, rank],
        [views, edited, told],
    ]
    swap.click(*swapping, api_name="swap", **heavy)
    clicked = edited.select(
        sentences(find_cell),
        [views, which],
        [row, column],
        api_name="find_cell",
        show_progress="hidden",
    )
    clicked.success(*swapping, api_name="swap_clicked", **heavy)


def _view(views: Views, tokenizer: str | None) -> View:
    if tokenizer is None or tokenizer not in views:
        raise ValueError("a picture must be looked at first, got none")
    return views[tokenizer]
