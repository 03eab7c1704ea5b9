"""`visual-ar serve`: an HTTP service for a model; knows its process and nothing of pictures."""

import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from visual_ar.cli.common import aside, set_threads
from visual_ar.cli.drawing import load
from visual_ar.cli.method_flags import method_asked
from visual_ar.cli.option_groups import Machine, Model, Retune, grouped
from visual_ar.cli.terminal import say

if TYPE_CHECKING:
    from fastapi import FastAPI

    from visual_ar.engine import Engine

Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")]
AllowHost = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-host",
        metavar="NAME",
        help="Further name under which requests may ask for this machine, such as a proxy's; "
        "repeatable. [dim]On 127.0.0.1 only its own names are let in.[/dim]",
    ),
]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")]

SPARE_CONNECTIONS = 256
"""Connections besides one for every picture that is drawn or waits."""


@grouped
def serve(
    context: typer.Context,
    *,
    model: Model = "emoji",
    host: Host = "127.0.0.1",
    port: Port = 8000,
    allow_host: AllowHost = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            envvar="VISUAL_AR_API_KEY",
            metavar="KEY",
            help="What every request must carry as a Bearer token, but for /health.",
            show_default=False,
        ),
    ] = None,
    slots: Annotated[
        int,
        typer.Option(min=1, max=1024, help="Pictures drawn at once; every pass has their shape."),
    ] = 4,
    queue: Annotated[
        int,
        typer.Option(min=8, max=65_536, help="Pictures that may wait; more are refused with 429."),
    ] = 64,
    drain: Annotated[
        int,
        typer.Option(
            min=1, max=86_400, help="Seconds that requests have to finish after SIGTERM or Ctrl-C."
        ),
    ] = 60,
    retune: Retune = False,
    machine: Machine,
) -> None:
    """Serve a model over HTTP, as OpenAI's images API.

    Pictures of all requests share the passes: each is admitted as soon as
    a slot is free, and keeps its own length, options and seed.
    POST /v1/images/generations, GET /v1/models, /health and /metrics.
    On a network give it a key, best as VISUAL_AR_API_KEY, which other users
    of the machine cannot see, and encryption by a proxy in front.

    [bold]Examples[/bold]

    [cyan]visual-ar serve[/cyan]
    The bundled emoji model on http://127.0.0.1:8000.

    [cyan]visual-ar serve --model cifar10 --port 8001 --slots 16[/cyan]
    Sixteen pictures at once; a prompt is the name of a class.

    [cyan]VISUAL_AR_API_KEY=... visual-ar serve --host 0.0.0.0[/cyan]
    For other machines, whose requests must know the key.
    """
    from visual_ar.app.guard import entrance

    method = method_asked(context)
    let_in = entrance(host, allow_host or (), api_key)
    with listen(host, port) as listener:
        say(f"Loading {model}; {url(host, listener)} answers when it is ready.", err=True)
        set_threads(machine.threads)
        from visual_ar.app.server import build as build_application
        from visual_ar.engine import Engine

        def start() -> "Engine":
            pipe = load(model, machine.device, machine.dtype, retune=retune, method=method)
            return Engine(pipe, slots, queue)

        # A link to a folder keeps its own name, so the path is not resolved.
        name = Path(os.path.abspath(model)).name if Path(model).is_dir() else model
        engine = aside(start)
        try:
            app = build_application(engine, name, entrance=let_in)
            if let_in.hosts is None and api_key is None:
                say(f"Anyone who reaches {host} may draw: no --api-key is given.", err=True)
            say(f"Serving {name} on {url(host, listener)} (Ctrl-C ends).")
            run(app, listener, drain, engine.capacity + SPARE_CONNECTIONS)
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
    except (OSError, TypeError, UnicodeError) as error:  # the last two of what is no name at all
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise OSError(
            f"host and port must be free to listen on, got {host} and {port}: {reason}"
        ) from None


def url(host: str, listener: socket.socket) -> str:
    """Returns where a browser finds what listens there."""
    address = f"[{host}]" if ":" in host else host
    return f"http://{address}:{listener.getsockname()[1]}"


def run(app: "FastAPI", listener: socket.socket, drain: int, connections: int) -> None:
    """Serves until SIGTERM or SIGINT, then finishes the requests in progress.

    Args:
        app: what answers.
        listener: a listening socket.
        drain: seconds that the requests in progress have.
        connections: that may be open at once.
    """
    import uvicorn

    from visual_ar.app.closing import AnswerCancelled
    from visual_ar.app.connections import bounded

    # uvicorn raises the signal again when it is done, and a drained service has ended well.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    config = uvicorn.Config(
        AnswerCancelled(app),
        http=bounded(connections),
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=drain,
    )
    uvicorn.Server(config).run(sockets=[listener])
