"""`visual-ar serve`: an HTTP service for a model; knows its process and nothing of pictures."""

import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from visual_ar.cli.common import Device, Dtype, Threads, aside, set_threads
from visual_ar.cli.drawing import load
from visual_ar.cli.method import build, parse_window

if TYPE_CHECKING:
    from fastapi import FastAPI

    from visual_ar.engine import Engine


def serve(
    model: Annotated[
        str, typer.Option("--model", "-m", help="Bundled name, model folder or Hugging Face id.")
    ] = "emoji",
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8000,
    slots: Annotated[
        int, typer.Option(min=1, help="Pictures drawn at once; every pass has their shape.")
    ] = 4,
    queue: Annotated[
        int, typer.Option(min=8, help="Pictures that may wait; more are refused with 429.")
    ] = 64,
    drain: Annotated[
        int,
        typer.Option(min=1, help="Seconds that requests have to finish after SIGTERM or Ctrl-C."),
    ] = 60,
    method: Annotated[
        str | None,
        typer.Option(
            help="sequential, jacobi, jacobi-published, exact-match, tree, tree-spatial, "
            "tree-adaptive, or what some models can: draft-head, denoising, groups. "
            "[dim]Default: the model's own.[/dim]"
        ),
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(
            metavar="auto|N",
            help="Tokens predicted by a pass, from 1; auto measures the fastest once a device.",
        ),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
) -> None:
    """Serve a model over HTTP, as OpenAI's images API.

    Pictures of all requests share the passes: each is admitted as soon as
    a slot is free, and keeps its own length, options and seed.
    POST /v1/images/generations, GET /v1/models, /health and /metrics.
    There is no authentication; keep it behind something that has.

    [bold]Examples[/bold]

    [cyan]visual-ar serve[/cyan]
    The bundled emoji model on http://127.0.0.1:8000.

    [cyan]visual-ar serve --model cifar10 --port 8001 --slots 16[/cyan]
    Sixteen pictures at once; a prompt is the name of a class.
    """
    listener = listen(host, port)
    with listener:
        set_threads(threads)
        from visual_ar.app.server import build as build_application
        from visual_ar.engine import Engine

        def start() -> "Engine":
            pipe = load(model, device, dtype)
            pipe.scheduler = build(method, {"window": parse_window(window)}, pipe.scheduler)
            return Engine(pipe, slots, queue)

        # A link to a folder keeps its own name, so the path is not resolved.
        name = Path(os.path.abspath(model)).name if Path(model).is_dir() else model
        engine = aside(start)
        try:
            app = build_application(engine, name)
            address = f"[{host}]" if ":" in host else host
            url = f"http://{address}:{listener.getsockname()[1]}"
            typer.echo(f"Serving {name} on {url} (Ctrl-C ends).")
            run(app, listener, drain)
        finally:
            engine.close(0)  # requests have been waited for


def listen(host: str, port: int) -> socket.socket:
    """Returns a listening socket, so that an occupied port is known before a model is loaded.

    Raises:
        OSError: the address is not of this machine or the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            f"host and port must be free to listen on, got {host} and {port}: {reason}"
        ) from None


def run(app: "FastAPI", listener: socket.socket, drain: int) -> None:
    """Serves until SIGTERM or SIGINT, then finishes the requests in progress.

    Args:
        app: what answers.
        listener: a listening socket.
        drain: seconds that the requests in progress have.
    """
    import uvicorn

    # uvicorn raises the signal again when it is done, and a drained service has ended well.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    config = uvicorn.Config(
        app,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=drain,
    )
    uvicorn.Server(config).run(sockets=[listener])
