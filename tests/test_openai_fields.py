"""Every field that OpenAI's own client can send: taken and drawn, or refused by its name."""

import inspect
import json

import pytest

from visual_ar.app.api import ApiError, Limits, parse

openai = pytest.importorskip("openai")

OF_THE_CALL = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
ACCEPTED = {  # what asks for what is delivered anyway
    "prompt": ["dog", "a dog\nthat sleeps"],
    "background": ["auto", "opaque", None],
    "model": ["tiny", None],
    "moderation": ["auto", "low", None],
    "n": [1, 8, None],
    "output_compression": [100, None],
    "output_format": ["png", None],
    "partial_images": [0, None],
    "quality": ["auto", "standard", None],
    "response_format": ["b64_json", None],
    "safety_identifier": ["a1b2", "", None],
    "size": ["auto", "8x8", None],
    "stream": [False, None],
    "user": ["user-1234", ""],
    "style": [None],
    "complexity": [None],
    "frame_count": [None],
    "frame_duration_ms": [None],
    "svg": [None],
}
REFUSED = {
    "background": "transparent",
    "model": "gpt-image-2",
    "n": 9,
    "output_compression": 50,
    "output_format": "webp",
    "partial_images": 2,
    "quality": "high",
    "response_format": "url",
    "size": "1792x",
    "style": "vivid",
    "complexity": "low",
    "frame_count": 9,
    "frame_duration_ms": 200,
    "svg": {"model": "x"},
}


def test_the_client_sends_no_field_that_is_not_considered_here():
    sent = set(inspect.signature(openai.resources.images.Images.generate).parameters)
    assert sent - OF_THE_CALL <= set(ACCEPTED)


@pytest.mark.parametrize(("field", "value"), [(k, v) for k, some in ACCEPTED.items() for v in some])
def test_what_asks_for_what_is_delivered_is_taken(field, value):
    order = parse(json.dumps({"prompt": "dog", field: value}).encode(), "tiny", Limits())
    assert order.prompt == (value if field == "prompt" else "dog")


@pytest.mark.parametrize(("field", "value"), REFUSED.items())
def test_what_is_not_delivered_is_refused_by_its_name(field, value):
    with pytest.raises(ApiError, match=f"{field} must ") as refusal:
        parse(json.dumps({"prompt": "dog", field: value}).encode(), "tiny", Limits())
    assert refusal.value.param == field
