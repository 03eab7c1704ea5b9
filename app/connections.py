"""How a client's connection must behave: requests come in time, and only so many stay open.

A protocol of uvicorn that answers what it refuses itself as OpenAI's error object. Knows bytes and
connections; knows no route.
"""

from __future__ import annotations

import asyncio
import json
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from visual_ar.app.api import ApiError

HEADER_SECONDS = 20.0
"""A connection whose next request has begun, or whose first one has not, has so long to send the
whole of its headers."""
_LINGER_SECONDS = 2.0
"""So long what a refused client still sends is read and forgotten: a connection that is closed
before loses the answer."""


def bounded(connections: int, header_seconds: float = HEADER_SECONDS) -> type[H11Protocol]:
    """The protocol of a server.

    Args:
        connections: that may be open at once; so many further ones are told 503, and others are
            closed without a word.
        header_seconds: see `HEADER_SECONDS`.
    """

    class Bounded(_BoundedProtocol):
        most = connections
        seconds = header_seconds
        refused: ClassVar[set[asyncio.Protocol]] = set()

    return Bounded


class _BoundedProtocol(H11Protocol):
    """A connection of a server; the attributes of the class are what all of its have in common.

    Attributes:
        most: connections that may be open.
        seconds: that the headers of a request may take.
        refused: connections that were told why and close soon.
    """

    most: ClassVar[int]
    seconds: ClassVar[float]
    refused: ClassVar[set[asyncio.Protocol]]

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most:
            self.connections.discard(self)  # the next one may come when another ends
            if len(self.refused) >= self.most:
                transport.abort()
                return
            told = f"connections must be at most {self.most} at once, try again soon"
            again = {"Retry-After": "1"}
            self._refuse(ApiError(503, told, None, "too_many_connections", again))
        else:
            self._expect_request()

    def data_received(self, data: bytes) -> None:
        if self in self.refused:
            return
        super().data_received(data)
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.refused.discard(self)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP ends a connection; in the middle of an answer nothing can be said."""
        if self._is_answering():
            self.transport.close()
        else:
            self._refuse(ApiError(400, f"request must be HTTP/1.1, got another: {msg}"))

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _expect_request(self) -> None:
        """The time of a request ends with its headers; a longer body has its own time."""
        if self in self.refused or self._is_answering():
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.seconds, self._close_late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close_late(self) -> None:
        self._timer = None
        if self.transport.is_closing() or self._is_answering():
            return
        begun = bool(self.conn.trailing_data[0])
        if begun and self.conn.our_state is h11.IDLE:
            told = f"headers must be sent within {self.seconds:g} s, got less"
            self._refuse(ApiError(408, told))
        else:
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        """Answers by itself, reads on for a while and closes."""
        self.refused.add(self)
        self._stop_timer()
        content = json.dumps(error.body()).encode()
        headers = {
            **(error.headers or {}),
            "Content-Type": "application/json",
            "Content-Length": str(len(content)),
            "Connection": "close",
        }
        for event in (
            h11.Response(status_code=error.status, headers=list(headers.items())),
            h11.Data(data=content),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_LINGER_SECONDS, self.transport.close)
