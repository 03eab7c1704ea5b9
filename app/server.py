"""The HTTP service: `build(engine, name)` makes an application that speaks OpenAI's images API.

Knows the slot engine and the wire format; knows nothing about decoding, sockets or processes.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import secrets
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from visual_ar.app.api import (
    SAMPLING,
    SIDES,
    ApiError,
    Limits,
    Order,
    error_event,
    parse,
    picture_event,
    response,
)
from visual_ar.app.closing import closing
from visual_ar.app.guard import Entrance, Guard
from visual_ar.app.metrics import CountAnswers, exposition
from visual_ar.app.paths import WithoutSlash
from visual_ar.engine import Engine, EngineClosed, QueueFull
from visual_ar.job import Job, Picture
from visual_ar.png import png_bytes

BODY_SECONDS = 30.0
"""A client that has not sent its body by then is sent away."""
_GONE = 499  # nginx's status for a client that left; nobody reads it but the metrics
_SEEDS = 2**31
_LINGER = 16
"""Of a body that is too long so many times the limit is read and forgotten, because a client that
is still sending when the connection closes does not get to see the answer."""

_log = logging.getLogger(__name__)


class ClientGone(Exception):
    """The client left before its pictures were complete."""


class Service:
    """What the routes share.

    Args:
        engine: draws.
        name: of the model, as clients call it.
        limits: how much one request may ask for.

    Raises:
        ValueError: a request may ask for more pictures than the engine can ever hold.
    """

    def __init__(self, engine: Engine, name: str, limits: Limits) -> None:
        if limits.pictures > engine.capacity:
            raise ValueError(
                f"limits.pictures must be at most slots + queue, {engine.capacity}, "
                f"got {limits.pictures}"
            )
        self.engine, self.name, self.limits = engine, name, limits
        self.created = int(time.time())
        self.answers: Counter[int] = Counter()
        # One at a time: drawing shares the device with the passes, and memory stays bounded. With
        # one CPU thread, since a second team of them would slow down the passes' (device_thread).
        self.drawer = ThreadPoolExecutor(
            1, "visual_ar drawer", initializer=torch.set_num_threads, initargs=(1,)
        )

    def card(self) -> dict[str, Any]:
        """The model as `GET /v1/models` lists it."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "visual_ar",
        }

    def submit(self, order: Order) -> list[Job]:
        """Hands an order to the engine.

        Raises:
            ApiError: the pipeline refuses it, or there is no room.
        """
        pipe = self.engine.pipe
        seed = secrets.randbelow(_SEEDS) if order.seed is None else order.seed
        call: dict[str, Any] = pipe.conditioner.asks(order.prompt)
        call |= {"num_images_per_prompt": order.n, "seeds": seed, **order.sampling, **order.size}
        try:
            request = pipe.check_inputs(**call)
            return self.engine.submit(request, order.previews)
        except ValueError as error:
            raise _refused(error) from None
        except QueueFull as error:
            headers = {"Retry-After": str(error.retry_after)}
            raise ApiError(429, str(error), None, "rate_limit_exceeded", headers) from None
        except EngineClosed as error:
            raise ApiError(503, str(error), None, "closing") from None

    async def draw(self, picture: Picture) -> dict[str, Any]:
        """A picture as JSON: a PNG in base 64, and its seed."""
        loop = asyncio.get_running_loop()
        return {
            "b64_json": await loop.run_in_executor(self.drawer, _png, picture),
            "seed": picture.seed,
        }


def build(
    engine: Engine, name: str, limits: Limits | None = None, entrance: Entrance | None = None
) -> FastAPI:
    """Makes the application. The engine stays the caller's, who closes it after the server ended.

    Args:
        engine: draws the pictures.
        name: of the model, as clients call it.
        limits: how much one request may ask for; None is `Limits()`.
        entrance: who may come in; None is everybody.

    Raises:
        ValueError: a request may ask for more pictures than the engine can ever hold.
    """
    service = Service(engine, name, limits or Limits())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.drawer.shutdown(cancel_futures=True)

    app = FastAPI(
        title="visual_ar",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.add_middleware(WithoutSlash)
    app.add_middleware(Guard, entrance=entrance or Entrance())
    app.add_middleware(CountAnswers, answers=service.answers)
    _add_error_handlers(app)
    _add_routes(app, service)
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    @app.post("/v1/images/generations")
    async def generate(request: Request) -> Response:
        try:
            body = await read_body(request, service.limits.body_bytes)
        except ClientDisconnect:
            return Response(status_code=_GONE)
        order = parse(body, service.name, service.limits)
        jobs = service.submit(order)
        if order.stream:
            return EventStream(service, jobs)
        return await _answer(service, jobs, request.receive)

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [service.card()]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        if name != service.name:
            message = f"model must be {service.name}, got {name[:80]!a}"
            raise ApiError(404, message, "model", "model_not_found")
        return JSONResponse(service.card())

    @app.get("/health")
    async def health() -> Response:
        if not service.engine.accepting:
            return JSONResponse({"status": "closing"}, 503)
        return JSONResponse({"status": "ok"})

    @app.get("/metrics")
    async def metrics() -> Response:
        text = exposition(service.engine.stats, service.answers)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return JSONResponse(error.body(), error.status, headers=error.headers)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        where = f"{request.method} {request.url.path[:80]}"
        told = ApiError(error.status_code, f"{error.detail}: {where}", headers=error.headers)
        return JSONResponse(told.body(), told.status, headers=told.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return JSONResponse(_failure(error).body(), 500)


async def read_body(request: Request, limit: int) -> bytes:
    """Reads a JSON body, no further than it may be long.

    Args:
        request: not read from yet.
        limit: bytes.

    Raises:
        ApiError: 415 when it is not declared as JSON (which also keeps pages of other sites from
            sending it unasked), 413 when it is too long, 408 when it does not come.
        ClientDisconnect: the client left.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"content-type must be application/json, got {kind[:80]!a}")
    body, length = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                length += len(chunk)
                if length <= limit:
                    body += chunk
                elif length > _LINGER * limit:
                    break
    except TimeoutError:
        raise ApiError(408, f"body must be sent within {BODY_SECONDS:g} s, got less") from None
    if length > limit:
        got = request.headers.get("content-length", "more")[:20]
        raise ApiError(413, f"body must have at most {limit} bytes, got {got}")
    return bytes(body)


async def events(jobs: list[Job], receive: Receive) -> AsyncGenerator[tuple[int, Picture], None]:
    """Yields (index of the job, picture) as previews and pictures come, until all are complete.

    Cancels what is not complete when it is left early, by an error or because the client left.

    Args:
        jobs: at least one.
        receive: of the HTTP request whose body has been read.

    Raises:
        ClientGone: the client left.
        Exception: what went wrong with one of the pictures.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[int, Picture | BaseException]] = asyncio.Queue()

    def tell(index: int, event: Picture | BaseException) -> None:
        with suppress(RuntimeError):  # the loop was closed
            loop.call_soon_threadsafe(queue.put_nowait, (index, event))

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        queue.put_nowait((0, ClientGone()))

    watching = asyncio.create_task(watch())
    try:
        for index, job in enumerate(jobs):
            job.listen(partial(tell, index))
        missing = len(jobs)
        while missing:
            index, event = await queue.get()
            if isinstance(event, BaseException):
                raise event
            missing -= event.fraction == 1
            yield index, event
    finally:
        watching.cancel()
        _cancel(jobs)


async def _answer(service: Service, jobs: list[Job], receive: Receive) -> Response:
    """All pictures in one JSON document."""
    drawn: dict[int, dict[str, Any]] = {}
    try:
        async with aclosing(events(jobs, receive)) as coming:
            async for index, picture in coming:
                drawn[index] = await service.draw(picture)
    except ClientGone:
        return Response(status_code=_GONE)
    except Exception as error:
        raise _failure(error) from error
    created = int(time.time())
    pictures = [drawn[index] for index in range(len(jobs))]
    return JSONResponse(response(created, jobs[0].request.size.named, pictures))


class EventStream(Response):
    """Pictures as server-sent events; whatever ends it, no job is left behind.

    Args:
        service: draws.
        jobs: whose pictures are sent.
    """

    media_type = "text/event-stream"

    def __init__(self, service: Service, jobs: list[Job]) -> None:
        super().__init__(headers={"Cache-Control": "no-store"})
        del self.headers["content-length"]  # of the body that `Response` believes to be empty
        self._service, self._jobs = service, jobs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the stream, as ASGI asks for."""
        try:
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
            async with aclosing(self._chunks(receive)) as chunks:
                async for chunk in chunks:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (ClientGone, OSError):
            return
        finally:
            _cancel(self._jobs)

    async def _chunks(self, receive: Receive) -> AsyncGenerator[bytes, None]:
        size, shown = self._jobs[0].request.size.named, Counter[int]()
        try:
            async with aclosing(events(self._jobs, receive)) as coming:
                async for index, picture in coming:
                    entry = {**await self._service.draw(picture), "index": index}
                    kind = "completed" if picture.fraction == 1 else "partial_image"
                    if kind == "partial_image":
                        entry["partial_image_index"] = shown[index]
                        shown[index] += 1
                    yield picture_event(kind, int(time.time()), size, entry)
        except ClientGone:
            raise
        except asyncio.CancelledError:
            yield error_event(closing())
        except Exception as error:
            yield error_event(_failure(error))


def _png(picture: Picture) -> str:
    return base64.b64encode(png_bytes(picture.image())).decode()


def _cancel(jobs: list[Job]) -> None:
    for job in jobs:
        job.cancel()


def _refused(error: ValueError) -> ApiError:
    """What the pipeline says about an order; it calls the prompt of a class model a label."""
    message = " ".join(str(error).split())
    option = message.partition(" ")[0]
    if option in SAMPLING or option in SIDES:
        return ApiError(400, message, SIDES.get(option, option), "invalid_value")
    if message.startswith("class_labels"):
        message = f"prompt must name a class of this model: {message}"
    return ApiError(400, message, "prompt", "invalid_value")


def _failure(error: BaseException) -> ApiError:
    """What a client is told of a picture that was not drawn; details are for the log."""
    if isinstance(error, CancelledError | EngineClosed):
        return closing()
    _log.error("a picture could not be drawn", exc_info=error)
    kind = type(error).__name__
    return ApiError(500, f"the picture could not be drawn because of {kind}", code="failed")
