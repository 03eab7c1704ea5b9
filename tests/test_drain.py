"""Whoever still waits when a server has ended its time is told so, in the form of other errors."""

import asyncio
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from visual_ar.app.server import build
from visual_ar.engine import Engine

PATH = "/v1/images/generations"
VALID = {"prompt": "dog", "seed": 3}
CLOSING = "the service is closing, the picture was given up"


def send_half(url):
    """A client whose body does not come; gives what it is told."""
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 60) as client:
        client.sendall(f"{head}Content-Length: 99\r\n\r\n{{".encode())
        return client.makefile("rb").read()


def test_the_end_of_a_server_is_an_answer(tiny_pipeline, serving, monkeypatch):
    release, step = threading.Event(), tiny_pipeline.scheduler.step

    def waiting(state):
        assert release.wait(60)
        return step(state)

    monkeypatch.setattr(tiny_pipeline.scheduler, "step", waiting)
    with Engine(tiny_pipeline, slots=2, queue=8) as engine, ThreadPoolExecutor(3) as clients:
        with serving(build(engine, "tiny"), drain=1) as url:
            whole = clients.submit(httpx.post, url + PATH, json=VALID, timeout=60)
            stream = {**VALID, "stream": True}
            events = clients.submit(httpx.post, url + PATH, json=stream, timeout=60)
            half = clients.submit(send_half, url)
            while engine.stats.busy + engine.stats.waiting < 2:
                time.sleep(0.01)
        release.set()
        assert whole.result().status_code == 503
        error = whole.result().json()["error"]
        assert (error["message"], error["code"]) == (CLOSING, "closing")
        told, _, text = events.result().text.partition("\ndata: ")
        assert told == "event: error" and json.loads(text)["error"]["message"] == CLOSING
        assert b" 503 " in half.result() and CLOSING.encode() in half.result()


def test_a_stream_without_end_is_ended(serving):
    app, begun = FastAPI(), threading.Event()

    async def beats():
        while True:
            yield b"beat\n"
            begun.set()
            await asyncio.sleep(0.05)

    @app.get("/announced")
    async def announced() -> StreamingResponse:
        return StreamingResponse(beats(), headers={"Content-Length": "1000000"})

    @app.get("/beats")
    async def stream() -> StreamingResponse:
        return StreamingResponse(beats())

    with ThreadPoolExecutor(2) as clients:
        with serving(app, drain=1) as url:
            whole = clients.submit(httpx.get, f"{url}/beats", timeout=60)
            assert begun.wait(60)
            begun.clear()
            cut = clients.submit(httpx.get, f"{url}/announced", timeout=60)
            assert begun.wait(60)
            time.sleep(0.2)
        assert whole.result().text.startswith("beat\n")  # its end came, or httpx would raise
        with pytest.raises(httpx.RemoteProtocolError):
            cut.result()
