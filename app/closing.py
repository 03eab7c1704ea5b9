"""Requests that a server gives up at its end are answered; knows ASGI and no route.

uvicorn cancels what still runs when the time to finish is over, and prints a traceback of each.
"""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from visual_ar.app.api import ApiError


def closing() -> ApiError:
    """What a client is told whose request is not done by then."""
    return ApiError(503, "the service is closing, the picture was given up", code="closing")


class AnswerCancelled:
    """Ends the answer of a request that is cancelled, or says why there is none.

    Args:
        app: what answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes everything on, as ASGI asks for."""
        start: Message | None = None

        async def noting(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except asyncio.CancelledError:
            if scope["type"] != "http":
                raise
            if start is None:
                error = closing()
                await JSONResponse(error.body(), error.status)(scope, receive, send)
            elif "content-length" not in Headers(raw=start.get("headers", [])):
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            # An answer of a known length is cut: uvicorn then closes its connection.
