"""Runs work that reports progress as a generator that can be left at any time; knows no work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Generic, NamedTuple, TypeVar

Result = TypeVar("Result")


class Progress(NamedTuple):
    """So much is done of so much."""

    done: int
    total: int


class Finished(NamedTuple, Generic[Result]):
    """The work's result."""

    result: Result


class _Left(Exception):
    """Nobody waits for the work any more."""


def watched(
    work: Callable[[Callable[[int, int], None]], Result],
) -> Iterator[Progress | Finished[Result]]:
    """Yields progress as work reports it, and its result.

    The work runs in a thread of its own. When the generator is closed early, the work's next report
    ends it.

    Args:
        work: called with a function (done, total) that it calls from time to time.

    Raises:
        Exception: what the work raised.
    """
    events: SimpleQueue[Progress | Finished[Result] | BaseException] = SimpleQueue()
    left = threading.Event()

    def report(done: int, total: int) -> None:
        if left.is_set():
            raise _Left
        events.put(Progress(done, total))

    def run() -> None:
        try:
            events.put(Finished(work(report)))
        except BaseException as error:
            events.put(error)

    threading.Thread(target=run, name="visual_ar page", daemon=True).start()
    try:
        while True:
            event = events.get()
            if isinstance(event, BaseException):
                raise event
            yield event
            if isinstance(event, Finished):
                return
    finally:
        left.set()
