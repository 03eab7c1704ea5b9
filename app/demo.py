"""The web demo: `build(pipe)` makes a page that shows pictures form; knows only the pipeline.

python -m visual_ar.app.demo [MODEL]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import gradio as gr
from PIL import Image

from visual_ar.pipeline import VisualARPipeline

PREVIEW_SECONDS = 0.2
"""Least time between two previews; drawing one costs a pass of the tokenizer."""


def build(pipe: VisualARPipeline) -> gr.Blocks:
    """Makes the page for a pipeline. Drawing starts when a visitor asks for it."""

    def draw(
        subject: str, pictures: int, guidance: float, temperature: float, seed: int
    ) -> Iterator[tuple[list[Image.Image], str]]:
        """Yields the pictures so far and how far they are."""
        try:
            yield from previews(pipe, subject, pictures, guidance, temperature, seed)
        except ValueError as error:
            raise gr.Error(str(error)) from error

    config = pipe.config
    with gr.Blocks(title="visual_ar", analytics_enabled=False) as page:
        gr.Markdown("# visual_ar\nPictures form many tokens at a time; grey cells are not decided.")
        with gr.Row():
            with gr.Column():
                if config.class_names:
                    names = list(config.class_names)
                    subject = gr.Dropdown(names, value=names[0], label="Class")
                else:
                    subject = gr.Textbox("strawberry", label="Prompt")
                pictures = gr.Slider(1, 16, 4, step=1, label="Pictures")
                guidance = gr.Slider(0, 10, config.guidance_scale, label="Guidance")
                temperature = gr.Slider(0.05, 2, config.temperature, label="Temperature")
                seed = gr.Number(0, precision=0, minimum=0, label="Seed")
                start, stop = gr.Button("Draw", variant="primary"), gr.Button("Stop")
            with gr.Column():
                gallery = gr.Gallery(label="Pictures", columns=4, format="png")
                status = gr.Markdown()
        inputs = [subject, pictures, guidance, temperature, seed]
        drawing = start.click(draw, inputs, [gallery, status], api_name="draw")
        stop.click(None, cancels=[drawing])
    return page.queue(max_size=20, default_concurrency_limit=1)


def previews(
    pipe: VisualARPipeline,
    subject: str,
    pictures: int,
    guidance: float,
    temperature: float,
    seed: int,
) -> Iterator[tuple[list[Image.Image], str]]:
    """Yields pictures while they form and a line about them; in the end the complete ones.

    Args:
        pipe: draws them.
        subject: prompt, or name or number of a class.
        pictures: how many, at least 1.
        guidance: guidance scale.
        temperature: above 0.
        seed: of the first picture; the others follow.

    Raises:
        ValueError: the pipeline refuses an option.
    """
    prompt, label = (subject, None) if pipe.text_encoder is not None else (None, subject)
    shown = -float("inf")
    for preview in pipe.stream(
        prompt, label, pictures, guidance, temperature=temperature, seeds=int(seed)
    ):
        if time.monotonic() - shown >= PREVIEW_SECONDS:
            yield preview.images(), f"{preview.fraction:.0%} of the tokens"
            shown = time.monotonic()
    yield preview.images(), f"{preview.step + 1} passes"


if __name__ == "__main__":
    model = sys.argv[1] if len(sys.argv) > 1 else "emoji"
    build(VisualARPipeline.from_pretrained(model)).launch()
