"""Every field that OpenAI's own client can send: taken and drawn, or refused by its name."""

import base64
import inspect
import io
import json

import numpy as np
import pytest
from PIL import Image

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


def pixels(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))


@pytest.mark.parametrize("stream", [False, True])
def test_the_client_generates_and_streams_with_every_field(tiny_pipeline, serve, stream):
    url, engine = serve(tiny_pipeline)
    seed = {"seed": 5}
    expected = tiny_pipeline(class_labels="dog", seeds=5).images[0]
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        draw = client.images.generate
        for field, values in ACCEPTED.items():
            for value in values:
                if field == "stream" or (field, value) == ("prompt", "a dog\nthat sleeps"):
                    continue  # this model draws classes, of which that is none
                given = {"prompt": "dog", field: value, "stream": stream}
                answer = draw(**given, extra_body=seed)
                data = list(answer) if stream else answer.data
                assert len(data) == (value or 1 if field == "n" else 1), (field, value)
                assert np.allclose(pixels(data[0].b64_json), np.asarray(expected), rtol=0, atol=1)
        drawn = engine.stats.finished
        for field, value in REFUSED.items():
            if stream and field == "partial_images":
                continue  # which a stream has
            with pytest.raises(openai.APIStatusError, match=f"{field} must ") as refusal:
                draw(**{"prompt": "dog", field: value, "stream": stream})
            assert refusal.value.param == field and refusal.value.status_code in (400, 404)
            assert refusal.value.message.count("\n") == 0
        previews = [0, 1, 2, 3] if stream else []
        for count in previews:
            events = list(draw(prompt="dog", stream=True, partial_images=count, extra_body=seed))
            kinds = [event.type.rpartition(".")[2] for event in events]
            assert kinds == ["partial_image"] * count + ["completed"]
        assert engine.stats.finished == drawn + len(previews)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", 3),
        ("prompt", ["dog"]),
        ("n", "two"),
        ("n", 0),
        ("n", -1),
        ("n", 1.5),
        ("size", 512),
        ("size", "8"),
        ("stream", "yes"),
        ("partial_images", True),
        ("user", ["me"]),
        ("model", 7),
        ("output_compression", "100"),
        ("seed", "three"),
        ("negative_prompt", "cat"),
        ("steps", 30),
    ],
)
def test_what_a_client_can_send_besides_is_refused_by_its_name(tiny_pipeline, serve, field, value):
    url, engine = serve(tiny_pipeline)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.APIStatusError, match=f"{field}") as refusal:
            client.images.generate(prompt="dog", extra_body={field: value})
        assert refusal.value.param == field and "must " in refusal.value.message
        with pytest.raises(openai.APIStatusError) as no_edit:
            client.images.edit(image=b"x", prompt="dog")
        assert no_edit.value.status_code == 404 and "Not Found" in no_edit.value.message
    assert engine.stats.finished == 0
