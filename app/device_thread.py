"""One thread in which a page computes; knows no page, no model and no work.

A thread that has run an operation in parallel keeps its OpenMP workers. With more of them than the
machine has cores, libgomp lets all of them sleep where they waited awake, and a pass of a small
model takes twice as long (2.1 against 1.1 seconds a picture on two cores). Web servers move work
from thread to thread; what computes goes through this one.
"""

from __future__ import annotations

import contextvars
import inspect
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import wraps
from queue import SimpleQueue
from typing import Any, TypeVar

Result = TypeVar("Result")
_END = object()


class DeviceThread:
    """Runs work one after the other, in a thread that begins with the first."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="visual_ar device", daemon=True)
        self._lock = threading.Lock()

    def start(self, work: Callable[[], None]) -> None:
        """Puts work into the queue, without waiting for it. It must not raise."""
        with self._lock:
            if self._thread.ident is None:
                self._thread.start()
        self._waiting.put(work)

    def call(self, work: Callable[[], Result]) -> Result:
        """Runs work and returns its result, or raises its error. Not to be called by work."""
        future: Future[Result] = Future()

        def settle() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        self.start(settle)
        return future.result()

    def handler(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        """Decorates a function or a generator so that all of it runs here, in the caller's context.

        A generator leaves the thread to others between two of its values.
        """
        if inspect.isgeneratorfunction(handler):

            @wraps(handler)
            def generate(*values: Any) -> Iterator[Any]:
                context, steps = contextvars.copy_context(), handler(*values)
                try:
                    while (value := self.call(lambda: context.run(next, steps, _END))) is not _END:
                        yield value
                finally:
                    steps.close()

            return generate

        @wraps(handler)
        def call(*values: Any) -> Any:
            context = contextvars.copy_context()
            return self.call(lambda: context.run(handler, *values))

        return call

    def _run(self) -> None:
        while True:
            self._waiting.get()()
