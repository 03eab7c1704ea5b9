"""The HTTP service over real sockets: pictures, events, refusals, load, lost clients, the end."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from visual_ar.app.api import ApiError, Limits, parse
from visual_ar.app.server import build
from visual_ar.cli.main import app
from visual_ar.engine import Engine

PATH = "/v1/images/generations"
WAIT = 300
VALID = {"prompt": "dog", "seed": 3}


def pixels(entry):
    """The picture of an entry of `data`."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(entry["b64_json"]))))


def same(one, other):
    """Whether two pictures agree, up to the rounding of a batch of another size."""
    return np.allclose(np.asarray(one), np.asarray(other), rtol=0, atol=1)


def send(url, **content):
    return httpx.post(url + PATH, timeout=WAIT, **content)


def post(url, body, **options):
    return send(url, json=body, **options)


def get(url):
    return httpx.get(url, timeout=WAIT)


def read_events(lines):
    """Yields the documents of server-sent events, whose names must agree with their types."""
    name = None
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            document = json.loads(line.removeprefix("data: "))
            assert document.get("type", "error") == name
            yield document


def until(condition):
    """Waits for what another thread is about to bring about."""
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def held(tiny_pipeline, serve, monkeypatch):
    """A service of one slot and a queue of two whose passes wait until `release` is set."""
    url, engine = serve(tiny_pipeline, limits=Limits(pictures=3), slots=1, queue=2)
    release, step = threading.Event(), tiny_pipeline.scheduler.step

    def waiting(state):
        assert release.wait(WAIT)
        return step(state)

    monkeypatch.setattr(tiny_pipeline.scheduler, "step", waiting)
    yield url, engine, release
    release.set()


def test_pictures_are_those_of_the_pipeline(tiny_pipeline, tiny_text_pipeline, serve):
    options = {"guidance_scale": 3.0, "temperature": 0.9, "top_k": 9, "top_p": 0.95}
    for pipe, kind, prompt in (
        (tiny_pipeline, "class_labels", "dog"),
        (tiny_text_pipeline, "prompt", "red apple"),
    ):
        url, _ = serve(pipe)
        body = {"prompt": prompt, "n": 2, "seed": 5, "size": "8x8", "model": "tiny", **options}
        answer = post(url, body | {"response_format": "b64_json", "stream": False, "top_k": 9})
        assert answer.status_code == 200, answer.text
        expected = pipe(**{kind: [prompt, prompt]}, seeds=5, **options).images
        data = answer.json()["data"]
        assert [entry["seed"] for entry in data] == [5, 6]
        for entry, image in zip(data, expected, strict=True):
            assert same(pixels(entry), image)
    first, second = (post(url, {"prompt": "tree"}).json()["data"][0] for _ in range(2))
    assert first["seed"] != second["seed"]
    again = post(url, {"prompt": "tree", "seed": first["seed"], "n": None}).json()["data"][0]
    assert again["b64_json"] == first["b64_json"]


def test_streams_show_the_pictures_forming(tiny_pipeline, serve):
    url, _ = serve(tiny_pipeline)
    body = {**VALID, "n": 2, "stream": True, "partial_images": 3}
    with httpx.stream("POST", url + PATH, json=body, timeout=WAIT) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        documents = list(read_events(answer.iter_lines()))
    expected = post(url, {**VALID, "n": 2}).json()["data"]
    for index in range(2):
        mine = [document for document in documents if document["index"] == index]
        assert [document.get("partial_image_index") for document in mine] == [0, 1, 2, None]
        assert mine[-1]["type"] == "image_generation.completed"
        assert mine[-1]["b64_json"] == expected[index]["b64_json"] != mine[0]["b64_json"]
        assert all(pixels(document).shape == (8, 8, 3) for document in mine)


def test_the_official_client_works(tiny_pipeline, serve):
    openai = pytest.importorskip("openai")
    url, _ = serve(tiny_pipeline)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
        assert client.models.retrieve("tiny").id == "tiny"
        seed = {"seed": 3}
        answer = client.images.generate(model="tiny", prompt="dog", n=2, extra_body=seed)
        expected = tiny_pipeline(class_labels=["dog", "dog"], seeds=3).images
        for entry, image in zip(answer.data, expected, strict=True):
            assert same(pixels(entry.model_dump()), image)
        stream = client.images.generate(
            prompt="dog", stream=True, partial_images=2, extra_body=seed
        )
        events = list(stream)
        assert [event.type.rpartition(".")[2] for event in events] == [
            *["partial_image"] * 2,
            "completed",
        ]
        assert events[-1].b64_json == answer.data[0].b64_json
        with pytest.raises(openai.BadRequestError, match="n must be a whole number") as refusal:
            client.images.generate(prompt="dog", n=1000)
        assert refusal.value.param == "n" and refusal.value.type == "invalid_request_error"
        with pytest.raises(openai.NotFoundError, match="model must be tiny, got 'dall-e-3'"):
            client.images.generate(prompt="dog", model="dall-e-3")
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("other/name")


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"prompt": None}, "prompt", "prompt must be given, got none"),
        ({"prompt": " "}, "prompt", "prompt must not be empty, got ' '"),
        ({"prompt": 3}, "prompt", "prompt must be text, got 3"),
        ({"prompt": ["a"]}, "prompt", "prompt must be text, got a list"),
        ({"prompt": "x" * 1001}, "prompt", "at most 1000 characters, got 1001 characters"),
        ({"prompt": "a\x07b"}, "prompt", r"without control characters, got '\\x07'"),
        ({"prompt": "a\x1b[2Jb"}, "prompt", r"without control characters, got '\\x1b'"),
        ({"prompt": "\ud800"}, "prompt", r"without control characters, got '\\ud800'"),
        ({"n": 0}, "n", "n must be a whole number from 1 to 8, got 0"),
        ({"n": True}, "n", "from 1 to 8, got True"),
        ({"n": 1.0}, "n", "from 1 to 8, got 1.0"),
        ({"n": 10**400}, "n", "from 1 to 8, got a number with too many digits"),
        (
            {"size": "99999999x99999999"},
            "size",
            "size must be auto or WIDTHxHEIGHT, each from 1 to 4096, got '99999999x",
        ),
        ({"size": {"width": 8}}, "size", "size must be auto or WIDTHxHEIGHT, .* got an object"),
        ({"response_format": "url"}, "response_format", "must be b64_json, got 'url'"),
        ({"output_format": "webp"}, "output_format", "must be png, got 'webp'"),
        ({"stream": "yes"}, "stream", "stream must be true or false, got 'yes'"),
        ({"partial_images": 2}, "partial_images", "must be left out without stream, got 2"),
        ({"stream": True, "partial_images": 4}, "partial_images", "from 0 to 3, got 4"),
        ({"seed": -1}, "seed", "seed must be a whole number from 0 to"),
        ({"seed": 2**53}, "seed", "seed must be a whole number from 0 to"),
        ({"guidance_scale": 31}, "guidance_scale", "must be a number from 0 to 30, got 31"),
        ({"temperature": 0}, "temperature", "must be a number from 0.01 to 10, got 0"),
        ({"temperature": "1"}, "temperature", "must be a number from 0.01 to 10, got '1'"),
        ({"temperature": 10**400}, "temperature", "got a number with too many digits"),
        ({"top_k": 70000}, "top_k", "top_k must be a whole number from 0 to 65536, got 70000"),
        ({"top_p": 0}, "top_p", "top_p must be a number from 1e-06 to 1, got 0"),
        ({"quality": "hd"}, "quality", "quality must be auto or standard, got 'hd'"),
        ({"output_compression": 80}, "output_compression", "must be 100, got 80"),
        ({"user": 3}, "user", "user must be text, got 3"),
        ({"user": "x" * 1001}, "user", "at most 1000 characters"),
        ({"steps": 3}, "steps", "field must be one of prompt, model, .* got 'steps'"),
        ({"\ud800": 1}, None, r"field must be one of .* got '\\ud800'"),
    ],
)
def test_every_refused_field_is_named_with_its_rule_and_value(fields, param, message):
    body = json.dumps({"prompt": "dog", **fields}).encode()
    with pytest.raises(ApiError, match=message) as refusal:
        parse(body, "tiny", Limits())
    assert refusal.value.status == 400
    assert refusal.value.body()["error"]["param"] == param
    json.dumps(refusal.value.body(), ensure_ascii=False).encode()  # as the response sends it


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "body must be JSON"),
        (b"{", "body must be JSON"),
        (b"\xff\xfe\x00", "body must be JSON"),
        (b'{"n": NaN}', "NaN is not JSON"),
        (b"[]", "body must be a JSON object, got a list"),
        (b"[" * 60_000, "nested too deeply"),
        (b'{"n": ' + b"9" * 5000 + b"}", "body must be JSON"),
    ],
)
def test_bodies_that_are_no_json_objects_are_refused(body, message):
    with pytest.raises(ApiError, match=message) as refusal:
        parse(body, "tiny", Limits())
    assert refusal.value.status == 400


def test_prompts_of_any_script_are_accepted():
    for prompt in ("a\nb", "a\r\nb\tc", "草莓", "فراولة", "👩‍🚀", "fraise à la crème", "x" * 1000):
        body = json.dumps({"prompt": prompt, "user": None}).encode()
        assert parse(body, "tiny", Limits()).prompt == prompt


def test_refusals_are_errors_in_openais_shape_and_the_service_stays_up(
    tiny_pipeline, tiny_text_pipeline, serve
):
    url, _ = serve(tiny_pipeline)
    other, _ = serve(tiny_text_pipeline)
    json_type = {"content-type": "application/json"}
    long, chunks = b" " * 70_000, iter([b" " * 40_000] * 2)
    for answer, status, message in (
        (post(url, {"prompt": "dig"}), 400, "a class of this model.*did you mean 'dog'"),
        (post(other, {"prompt": "a b c d"}), 400, "prompt must have at most 3 words"),
        (post(url, {**VALID, "guidance_schedule": "up"}), 400, "guidance_schedule must be"),
        (send(url, content=b"{", headers=json_type), 400, "body must be JSON"),
        (send(url, content=b"{}"), 415, "content-type must be application/json"),
        (send(url, content=long, headers=json_type), 413, "got 70000"),
        (send(url, content=chunks, headers=json_type), 413, "got more"),
        (get(url + PATH), 405, "Method Not Allowed: GET /v1/images/generations"),
        (get(url + "/v1/nonesuch"), 404, "Not Found: GET /v1/nonesuch"),
        (get(url + "/v1/models/nonesuch"), 404, "model must be tiny, got 'nonesuch'"),
    ):
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        with pytest.raises(ValueError, match=message):
            raise ValueError(error["message"])
    assert post(url, VALID).status_code == 200


def test_what_the_pipeline_refuses_names_the_field(tiny_pipeline, serve):
    url, _ = serve(tiny_pipeline, limits=Limits(temperature=(0, 10), top_k=2**64))
    for fields, param in (
        ({"temperature": 0}, "temperature"),
        ({"top_k": 2**64}, "top_k"),
        ({"guidance_schedule": "up"}, "guidance_schedule"),
        ({"prompt": "dig"}, "prompt"),
    ):
        error = post(url, {**VALID, **fields}).json()["error"]
        assert error["param"] == param, error
        assert error["message"].startswith(f"{param} must ")


def test_a_full_queue_says_when_to_come_back(held):
    url, engine, release = held
    with ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(post, url, {**VALID, "n": 3})
        until(lambda: engine.stats.busy + engine.stats.waiting == 3)
        refused = post(url, VALID)
        release.set()
        assert len(accepted.result(WAIT).json()["data"]) == 3
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert "room for 1 more pictures, got 3 of 3 places taken" in error["message"]
    assert post(url, VALID).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slots(held, stream):
    url, engine, release = held
    body = json.dumps({**VALID, "n": 3, "stream": stream})
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as client:
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        until(lambda: engine.stats.busy + engine.stats.waiting == 3)
    until(lambda: engine.stats.busy == engine.stats.waiting == 0)
    release.set()
    assert post(url, VALID).status_code == 200
    assert (engine.stats.cancelled, engine.stats.finished) == (3, 1)


def test_errors_of_a_picture_become_an_answer_and_an_event(tiny_pipeline, serve, monkeypatch):
    url, _ = serve(tiny_pipeline)

    def failing(*_):
        raise MemoryError("secrets of the house")

    monkeypatch.setattr(tiny_pipeline, "render", failing)
    answer = post(url, VALID)
    assert answer.status_code == 500
    assert answer.json()["error"]["message"].endswith("because of MemoryError")
    with httpx.stream("POST", url + PATH, json={**VALID, "stream": True}, timeout=WAIT) as answer:
        [document] = read_events(answer.iter_lines())
    assert document["error"]["type"] == "server_error"
    monkeypatch.undo()
    assert post(url, VALID).status_code == 200


def test_health_and_metrics(tiny_pipeline, serve):
    url, engine = serve(tiny_pipeline)
    assert get(url + "/health").json() == {"status": "ok"}
    post(url, {**VALID, "n": 3})
    post(url, {**VALID, "n": 0})
    text = get(url + "/metrics").text
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert samples['visual_ar_pictures_total{outcome="finished"}'] == "3"
    assert samples["visual_ar_tokens_total"] == "48"
    assert samples["visual_ar_slots"] == "2" and samples["visual_ar_slots_busy"] == "0"
    assert samples['visual_ar_responses_total{status="400"}'] == "1"
    assert int(samples["visual_ar_passes_total"]) >= 32
    engine.close()
    assert get(url + "/health").status_code == 503
    assert post(url, VALID).status_code == 503


def test_limits_must_fit_into_the_engine(tiny_pipeline):
    with (
        Engine(tiny_pipeline, slots=1, queue=2) as engine,
        pytest.raises(ValueError, match="at most slots \\+ queue, 3, got 4"),
    ):
        build(engine, "tiny", Limits(pictures=4))


def test_under_load_every_valid_request_is_answered_correctly(tiny_pipeline, serve):
    """40 requests from 8 clients: some leave, some send nonsense, nothing is lost."""
    url, engine = serve(tiny_pipeline, slots=4, queue=64)
    names, settings = ["cat", "dog", "frog"], [{"top_k": 5}, {"temperature": 0.8}]
    expected = [
        tiny_pipeline(class_labels=[names[k % 3] for k in range(40)], seeds=0, **setting).images
        for setting in settings
    ]

    def leave(body):
        with httpx.stream("POST", url + PATH, json=body, timeout=WAIT) as answer:
            next(read_events(answer.iter_lines()))

    def request(index):
        body = {"prompt": names[index % 3], "seed": index, **settings[index % 2]}
        if index % 5 == 1:
            assert post(url, body | {"top_p": 7}).status_code == 400
        elif index % 7 == 2:
            leave(body | {"n": 8, "stream": True, "partial_images": 3})
        else:
            [entry] = post(url, body).json()["data"]
            assert entry["seed"] == index
            assert same(pixels(entry), expected[index % 2][index])
            return 1
        return 0

    with ThreadPoolExecutor(8) as clients:
        answered = sum(clients.map(request, range(40)))
    assert answered == 27
    until(lambda: engine.stats.finished + engine.stats.cancelled == answered + 5 * 8)
    stats = engine.stats
    assert stats.finished >= answered and stats.busy == stats.waiting == 0
    assert stats.failed == stats.refused == 0


def test_sigterm_finishes_requests_and_an_occupied_port_is_named(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path / "tiny")
    words = ["serve", "-m", str(tmp_path / "tiny"), "--slots", "1", "--drain", str(WAIT), "--port"]
    command = [sys.executable, "-m", "visual_ar", *words, "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("Serving tiny on http://127.0.0.1:"), line
            url = line.split()[3]
            port = url.rpartition(":")[2]
            second = CliRunner().invoke(app, [*words, port])
            assert second.exit_code == 1
            assert f"must be free to listen on, got 127.0.0.1 and {port}" in second.stderr
            body = {**VALID, "n": 8, "stream": True, "partial_images": 1}
            with httpx.stream("POST", url + PATH, json=body, timeout=WAIT) as answer:
                documents = read_events(answer.iter_lines())
                next(documents)
                process.send_signal(signal.SIGTERM)
                rest = list(documents)
            assert process.wait(WAIT) == 0
        finally:
            process.kill()
    assert sum(document["type"].endswith("completed") for document in rest) == 8
    with pytest.raises(httpx.ConnectError):
        get(url + "/health")
