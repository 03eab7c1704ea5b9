"""Connections that send too little, too slowly, nonsense, or come in crowds."""

import json
import socket
import time
from contextlib import ExitStack

import httpx
import pytest
from fastapi import FastAPI

SECONDS = 0.5
REQUEST = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def application():
    app = FastAPI(openapi_url=None)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/read")
    async def read(body: dict[str, int]) -> dict[str, int]:
        return body

    return app


@pytest.fixture
def address(serving):
    with serving(application(), connections=4, seconds=SECONDS) as url:
        yield "127.0.0.1", int(url.rpartition(":")[2])


def everything(client):
    """What a server sends until it closes."""
    client.settimeout(20)
    received = b""
    while part := client.recv(65536):
        received += part
    return received


def answer(client):
    """Status and document of the last answer before a server closes."""
    head, _, body = everything(client).rpartition(b"\r\n\r\n")
    status = int(head.rpartition(b"HTTP/1.1 ")[2].split()[0])
    assert b"content-type: application/json" in head.lower()
    return status, json.loads(body)


def is_answered(client):
    """Sends a request on a connection that stays open, and reads its answer."""
    client.sendall(REQUEST)
    client.settimeout(20)
    received = b""
    while not received.endswith(b'{"status":"ok"}'):
        part = client.recv(65536)
        if not part:
            return False
        received += part
    return received.startswith(b"HTTP/1.1 200 ")


def is_alive(address):
    host, port = address
    return httpx.get(f"http://{host}:{port}/health", timeout=20).status_code == 200


def test_headers_that_never_end_are_ended(address):
    for begin in (b"G", REQUEST[:-2], b"POST /read HTTP/1.1\r\nHost: x\r\nX: "):
        with socket.create_connection(address) as client:
            start = time.monotonic()
            client.sendall(begin)
            status, document = answer(client)
            assert time.monotonic() - start >= 0.9 * SECONDS
        assert status == 408
        assert document["error"].keys() == {"message", "type", "param", "code"}
        assert "headers must be sent within 0.5 s" in document["error"]["message"]
    assert is_alive(address)


def test_headers_that_trickle_are_ended(address):
    with socket.create_connection(address) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX: ")
        client.settimeout(0.05)
        received, start = b"", time.monotonic()
        while not received:
            assert time.monotonic() - start < 20
            client.sendall(b"a")
            try:
                received = client.recv(65536)
            except TimeoutError:
                continue
    assert received.startswith(b"HTTP/1.1 408 ")


def test_a_connection_that_says_nothing_is_closed(address):
    with socket.create_connection(address) as client:
        assert everything(client) == b""


def test_a_second_request_has_its_own_time(address):
    with socket.create_connection(address) as client:
        for _ in range(4):  # longer than the time of one in all
            assert is_answered(client)
            time.sleep(SECONDS / 3)
        client.sendall(REQUEST[:20])
        status, _ = answer(client)
    assert status == 408


def test_a_body_is_no_part_of_the_headers(address):
    content = b'{"a": 1}'
    head = b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection(address) as client:
        client.sendall(head + b"Content-Length: %d\r\n\r\n" % len(content))
        for byte in content:
            client.sendall(bytes([byte]))
            time.sleep(SECONDS / 4)
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_an_answer_that_takes_longer_is_not_cut(serving):
    app = application()

    @app.get("/slow")
    def slow() -> str:
        time.sleep(3 * SECONDS)
        return "done"

    with serving(app, seconds=SECONDS) as url:
        assert httpx.get(f"{url}/slow", timeout=20).json() == "done"


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET  /\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 200_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_no_http_is_told_so(address, nonsense):
    with socket.create_connection(address) as client:
        client.sendall(nonsense)
        status, document = answer(client)
    assert status == 400
    assert document["error"]["message"].startswith("request must be HTTP/1.1")
    assert document["error"].keys() == {"message", "type", "param", "code"}
    assert is_alive(address)


def test_nonsense_behind_a_request_ends_the_connection(address):
    with socket.create_connection(address) as client:
        client.sendall(REQUEST + b"\x00\x01nonsense\r\n\r\n")
        received = everything(client)
    assert received.startswith(b"HTTP/1.1 200 ") and b'{"status":"ok"}' in received
    assert is_alive(address)


def test_more_connections_than_there_may_be_are_told_to_come_back(address):
    with ExitStack() as crowd:
        held = [crowd.enter_context(socket.create_connection(address)) for _ in range(4)]
        for client in held:
            assert is_answered(client)
        for _ in range(3):
            with socket.create_connection(address) as late:
                late.sendall(REQUEST)
                status, document = answer(late)
            assert status == 503 and document["error"]["code"] == "too_many_connections"
            assert "at most 4 at once" in document["error"]["message"]
        assert is_answered(held[0])
    assert is_alive(address)


def test_a_crowd_costs_no_more_than_twice_its_places(address):
    with ExitStack() as crowd:
        clients = [crowd.enter_context(socket.create_connection(address)) for _ in range(12)]
        told = [everything(client) for client in clients[4:]]
        assert [b"503" in answer for answer in told] == [True] * 4 + [False] * 4
        assert set(told[4:]) <= {b""}
    assert is_alive(address)


def test_a_refused_client_reads_why_although_it_goes_on_sending(address):
    with socket.create_connection(address) as client:
        client.sendall(b"nonsense\r\n\r\n" + b"x" * 1_000_000)
        status, _ = answer(client)
    assert status == 400
