"""The web demo: `build(pipe)` assembles the page from its tabs; importing it loads nothing.

Knows which tabs there are; knows nothing about what is on them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gradio as gr
    from fastapi import FastAPI

    from visual_ar.app.device_thread import DeviceThread
    from visual_ar.pipeline import VisualARPipeline

WAITING = 20
"""So many jobs may wait in the queue; more are told to come back."""
LARGEST_UPLOAD = "20mb"
_HOUR = 3600


def build(
    pipe: VisualARPipeline, name: str | None = None, thread: DeviceThread | None = None
) -> gr.Blocks:
    """Makes the page for a pipeline. Drawing starts when a visitor asks for it.

    Args:
        pipe: any pipeline; visitors may turn to bundled models and load others.
        name: of the model, as recipes tell it; by default what the pipeline was loaded from.
        thread: in which the page computes, best the one that has loaded the pipeline; by default
            a new one.
    """
    import gradio as gr

    from visual_ar.app.benchmark_tab import add_benchmark_tab
    from visual_ar.app.compare_tab import add_compare_tab
    from visual_ar.app.controls import subject_of
    from visual_ar.app.device_thread import DeviceThread
    from visual_ar.app.generate_tab import add_generate_tab
    from visual_ar.app.models_tab import add_models_tab
    from visual_ar.app.page import SCRIPT, STYLE, name_list
    from visual_ar.app.shelf import Shelf
    from visual_ar.app.tokens_tab import add_tokens_tab

    shelf = Shelf(pipe, name or _name(pipe), thread or DeviceThread())
    # Pictures that were shown are deleted after a day.
    with gr.Blocks(
        title="visual_ar", analytics_enabled=False, delete_cache=(_HOUR, 24 * _HOUR)
    ) as page:
        names = gr.HTML(name_list(subject_of(pipe, shelf.first).known), render=False)
        gr.Markdown("# visual_ar\nPictures form many tokens at a time; grey is not decided yet.")
        model = gr.Dropdown(shelf.names(), value=shelf.first, label="Model")
        with gr.Tab("Generate"):
            controls = add_generate_tab(shelf, model, names)
        with gr.Tab("Compare"):
            add_compare_tab(shelf, controls)
        with gr.Tab("Tokens"):
            add_tokens_tab(shelf)
        with gr.Tab("Benchmark"):
            add_benchmark_tab(shelf, model)
        with gr.Tab("Models"):
            add_models_tab(shelf, controls)
        gr.HTML(STYLE)
        names.render()  # neither is seen, so they stand where their margins do no harm

        def list_models() -> dict[str, Any]:
            """The models of the page, those included that others have loaded."""
            return gr.update(choices=shelf.names())

        page.load(list_models, None, model, js=SCRIPT, api_name="models", queue=False)
    return page.queue(max_size=WAITING, default_concurrency_limit=1)


def application(page: gr.Blocks) -> FastAPI:
    """The page as a web application for a server, with uploads limited in size."""
    import gradio as gr
    from fastapi import FastAPI

    return gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        page,
        path="/",
        app_kwargs={"openapi_url": None},
        footer_links=["api", "settings"],
        run_history=False,
        max_file_size=LARGEST_UPLOAD,
        show_error=False,
        enable_monitoring=False,
        ssr_mode=False,
    )


def _name(pipe: VisualARPipeline) -> str:
    return Path(str(pipe.config.get("_name_or_path") or "model")).name
