"""500 requests to one service with every fault mixed in: none is lost, memory stays flat, and every
picture is the one that its pipeline draws alone."""

import base64
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from visual_ar import accel

REQUESTS, CLIENTS = 500, 12
KEY = "sk-soak"
HEADERS = {"Authorization": f"Bearer {KEY}"}
PATH = "/v1/images/generations"
NAMES = ("cat", "dog", "frog")
SETTINGS = ({"top_k": 5}, {"temperature": 0.8}, {"guidance_scale": 3.0}, {})
WAIT = 300


class Service:
    """`visual-ar serve` in a process of its own, and what its clients do to it."""

    def __init__(self, folder, expected):
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "VISUAL_AR_API_KEY": KEY}
        words = ["serve", "-m", str(folder), "--port", "0", "--slots", "4", "--threads", "1"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "visual_ar", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.process.stderr.readline()
        self.url = self.process.stdout.readline().split()[3]
        self.port = int(self.url.rpartition(":")[2])
        self.expected = expected

    def memory(self):
        """Resident megabytes of the process."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def files(self):
        """Files and connections that the process has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def post(self, body, path=PATH, **options):
        """Sends a request again until there is room for it."""
        for _ in range(1000):
            answer = httpx.post(
                self.url + path, json=body, timeout=WAIT, **{"headers": HEADERS, **options}
            )
            if answer.status_code not in (429, 503):
                return answer
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["message"]
            time.sleep(0.1)
        raise AssertionError("there was never room")

    def rest(self):
        """The metrics, once nothing is drawn any more."""
        deadline = time.monotonic() + WAIT
        while time.monotonic() < deadline:
            text = httpx.get(f"{self.url}/metrics", headers=HEADERS).text
            lines = (line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
            metrics = {name: float(value) for name, value in lines}
            if metrics["visual_ar_slots_busy"] == metrics["visual_ar_pictures_waiting"] == 0:
                return metrics
            time.sleep(0.05)
        raise AssertionError("pictures are drawn for ever")

    def socket(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=WAIT)

    def check(self, index, entries):
        """Every picture of a request is the one drawn alone."""
        for entry, number in zip(entries, range(index, index + len(entries)), strict=True):
            picture = Image.open(io.BytesIO(base64.b64decode(entry["b64_json"])))
            drawn_alone = self.expected[index % len(SETTINGS)][NAMES[index % 3], number]
            assert np.allclose(np.asarray(picture), drawn_alone, rtol=0, atol=1), index


def body_of(index):
    return {"prompt": NAMES[index % 3], "seed": index, **SETTINGS[index % len(SETTINGS)]}


def plain(service, index):
    path = PATH + "/" * (index % 2)
    service.check(index, service.post(body_of(index), path).json()["data"])


def several(service, index):
    service.check(index, service.post({**body_of(index), "n": 3}).json()["data"])


def stream(service, index):
    body = {**body_of(index), "stream": True, "partial_images": index % 4}
    with ExitStack() as stack:
        while True:
            answer = stack.enter_context(
                httpx.stream("POST", service.url + PATH, json=body, headers=HEADERS, timeout=WAIT)
            )
            if answer.status_code == 200:
                break
            assert answer.status_code in (429, 503)
            time.sleep(0.1)
        lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
    documents = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert len(documents) == index % 4 + 1 and documents[-1]["type"].endswith("completed")
    service.check(index, documents[-1:])


def leave(service, index):
    """A client that goes in the middle of its pictures."""
    body = {**body_of(index), "n": 8, "stream": True, "partial_images": 3}
    with httpx.stream(
        "POST", service.url + PATH, json=body, headers=HEADERS, timeout=WAIT
    ) as answer:
        assert answer.status_code in (200, 429, 503)
        next(answer.iter_lines())


def send_half(service, index):
    """A client that goes in the middle of its body."""
    with service.socket() as client:
        head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        client.sendall(
            f"{head}Content-Type: application/json\r\nContent-Length: 999\r\n\r\n{{".encode()
        )


def say_nothing(service, index):
    with service.socket():
        time.sleep(0.05)


def refused(status, **change):
    """A request that is answered with this status, and with an error in OpenAI's form."""

    def send(service, index):
        given = {"json": body_of(index), "headers": HEADERS, **change}
        if "content" in given:
            del given["json"]
        answer = httpx.post(service.url + PATH, timeout=WAIT, **given)
        assert answer.status_code in (status, 503), answer.text
        error = answer.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"} and KEY not in answer.text

    return send


def send_nonsense(service, index):
    with service.socket() as client:
        client.sendall(b"\x16\x03\x01 no http\r\n\r\n" + bytes(index))
        assert b'{"error": ' in client.makefile("rb").read()


JSON = {**HEADERS, "Content-Type": "application/json"}
FAULTS = (
    leave,
    send_half,
    say_nothing,
    send_nonsense,
    refused(400, json={"prompt": "dog", "n": 0}),
    refused(400, json={"prompt": "a\x1b]0;title\x07"}),
    refused(400, json={"prompt": "\ufeffhorse"}),
    refused(400, json={"prompt": "dog", "top_k": 10**400}),
    refused(400, content=b"[" * 60_000, headers=JSON),
    refused(400, content=b"\xff\xfe", headers=JSON),
    refused(413, content=b" " * 200_000, headers=JSON),
    refused(415, content=b"{}"),
    refused(401, headers={}),
    refused(401, headers={"Authorization": "Bearer wrong"}),
    refused(403, headers={**HEADERS, "Host": "evil.example"}),
)


def crowd(service):
    """More connections than there may be; whoever is too many is told so, and all go."""
    with ExitStack() as stack:
        clients = [stack.enter_context(service.socket()) for _ in range(400)]
        time.sleep(0.5)
        clients[-1].settimeout(WAIT)
        assert b"too_many_connections" in clients[-1].recv(65536)


def begin_slowly(service):
    """Headers that never end; read for their answer when the others are done."""
    client = service.socket()
    client.sendall(b"GET /health HTTP/1.1\r\nX: ")
    return client


@pytest.mark.long
def test_500_requests_with_faults_between_them(tiny_pipeline, tmp_path):
    pipe = tiny_pipeline
    pipe.scheduler = accel.method("jacobi")(window=4)
    expected = []
    for setting in SETTINGS:
        drawn = {}
        for name in NAMES:
            seeds = list(range(REQUESTS + 3))
            images = pipe(class_labels=[name] * len(seeds), seeds=seeds, **setting).images
            drawn |= {(name, seed): np.asarray(image) for seed, image in enumerate(images)}
        expected.append(drawn)
    pipe.save_pretrained(tmp_path / "tiny")
    service = Service(tmp_path / "tiny", expected)
    kinds = [plain] * 5 + [several, stream, stream] + [None] * 5
    faults = random.Random(0)
    work = [
        (kinds[index % len(kinds)] or faults.choice(FAULTS), index) for index in range(REQUESTS)
    ]
    try:
        plain(service, 0)
        files = service.files()
        slow = [begin_slowly(service) for _ in range(8)]
        with ThreadPoolExecutor(CLIENTS) as clients:
            warm = list(clients.map(lambda one: one[0](service, one[1]), work[:100]))
            crowd(service)
            memory = service.memory()
            warm += clients.map(lambda one: one[0](service, one[1]), work[100:])
        assert len(warm) == REQUESTS
        crowd(service)
        for client in slow:
            with client:
                assert b" 408 " in client.recv(65536)
        metrics = service.rest()
        valid = sum(kind in (plain, several, stream) for kind, _ in work)
        threes = sum(kind is several for kind, _ in work)
        assert metrics['visual_ar_pictures_total{outcome="finished"}'] >= valid + 2 * threes
        assert metrics['visual_ar_pictures_total{outcome="failed"}'] == 0
        assert metrics.get('visual_ar_responses_total{status="500"}', 0) == 0
        grown = service.memory() - memory
        assert grown < 30
        time.sleep(3)  # those that linger
        assert service.files() <= files
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(WAIT) == 0
        assert "Traceback" not in service.process.stderr.read()
    finally:
        service.process.kill()
        service.process.communicate()
