"""`visual-ar demo`: opens the web demo for a model; knows its process and nothing of the page."""

from typing import TYPE_CHECKING, Any

from visual_ar.cli.common import set_threads
from visual_ar.cli.drawing import load
from visual_ar.cli.option_groups import Machine, Model, Retune, grouped
from visual_ar.cli.serve import AllowHost, Host, Port, listen, run, url
from visual_ar.cli.terminal import say

if TYPE_CHECKING:
    from visual_ar.pipeline import VisualARPipeline

CONNECTIONS = 512
"""Open at once; a browser holds up to six."""
DRAIN = 1
"""Seconds that drawings have to finish when the page is closed; nobody waits for them."""


@grouped
def demo(
    *,
    model: Model = "emoji",
    host: Host = "127.0.0.1",
    port: Port = 7860,
    allow_host: AllowHost = None,
    retune: Retune = False,
    machine: Machine,
) -> None:
    """Open a page on which pictures form.

    Draw pictures and watch them form, let two methods race, look at tokens,
    measure, and load other models. One job runs at a time, others queue.
    Anyone who reaches the page may use it; on a network keep it behind
    something that asks who they are.

    [bold]Examples[/bold]

    [cyan]visual-ar demo[/cyan]
    The bundled emoji model on http://127.0.0.1:7860.

    [cyan]visual-ar demo --model cifar10 --port 7861[/cyan]
    Classes of photographs instead of prompts.
    """
    from visual_ar.app.guard import Guard, entrance

    let_in = entrance(host, allow_host or ())
    with listen(host, port) as listener:  # an occupied port is known before a model is loaded
        say(f"Loading {model}; {url(host, listener)} opens when it is ready.", err=True)
        set_threads(machine.threads)
        from visual_ar.app.device_thread import DeviceThread
        from visual_ar.app.web_demo import application, build

        thread = DeviceThread()
        pipe = thread.call(lambda: load(model, machine.device, machine.dtype, retune=retune))
        app = application(build(pipe, model, thread))
        app.add_middleware(Guard, entrance=let_in)
        thread.call(lambda: warm_up(pipe))
        say(f"Opening {model} on {url(host, listener)} (Ctrl-C ends).")
        run(app, listener, DRAIN, CONNECTIONS)


def warm_up(pipe: "VisualARPipeline") -> None:
    """Makes one pass as the page asks at first, so that the window is measured before a visitor
    waits for it; the measurement is kept for later starts."""
    from visual_ar.app.settings import PICTURES

    call: dict[str, Any] = pipe.conditioner.asks(pipe.conditioner.anything)
    passes = pipe.stream(**call, num_images_per_prompt=PICTURES, seeds=0)
    next(iter(passes))
