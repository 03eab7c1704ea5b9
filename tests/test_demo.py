"""The page's handler draws what the pipeline draws, showing it before it is complete."""

import gradio as gr
import numpy as np
import pytest

from visual_ar.app.demo import build


def handler(pipe):
    """The function behind the button, as gradio calls it."""
    [function] = [entry for entry in build(pipe).fns.values() if entry.api_name == "draw"]
    return function.fn


def test_button_streams_up_to_the_pipelines_picture(tiny_pipeline, monkeypatch):
    monkeypatch.setattr("visual_ar.app.demo.PREVIEW_SECONDS", 0)
    shown = list(handler(tiny_pipeline)("dog", 2, 3.0, 0.9, 5))
    assert len(shown) == 17
    expected = tiny_pipeline(
        class_labels=["dog", "dog"], guidance_scale=3.0, temperature=0.9, seeds=5
    )
    for image, wanted in zip(shown[-1][0], expected.images, strict=True):
        assert (np.asarray(image) == np.asarray(wanted)).all()
    assert (shown[0][1], shown[-1][1]) == ("6% of the tokens", "16 passes")


def test_refused_options_are_shown_to_the_visitor(tiny_text_pipeline):
    with pytest.raises(gr.Error, match="prompt must be text that is not empty"):
        list(handler(tiny_text_pipeline)(" ", 1, 1.0, 1.0, 0))
