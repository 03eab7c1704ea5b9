"""A picture that was asked for: its previews, its end, and giving it up, safe between threads.

Knows requests; knows nothing about slots, passes or who draws.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from queue import SimpleQueue

from torch import Tensor

from visual_ar.png import Drawn
from visual_ar.request import Request


@dataclass(frozen=True)
class Picture:
    """One picture after some of its passes.

    Attributes:
        tokens: int64 [1, N] or bool [1, N, d] in raster order of the cells; drafts where not known.
        known: bool [1, N] in raster order.
        fraction: share of the tokens that is known, in [0, 1]; 1 when the picture is complete.
        passes: made for this picture so far.
        seed: of the picture.
        draw: turns tokens and known cells into PIL pictures, or of clips into lists of them.
    """

    tokens: Tensor
    known: Tensor
    fraction: float
    passes: int
    seed: int
    draw: Callable[[Tensor, Tensor], Sequence[Drawn]]

    def image(self) -> Drawn:
        """Draws the picture, or the frames of the clip, in the caller's thread; cells that are not
        known have the mean code.
        """
        return self.draw(self.tokens, self.known)[0]


class Job:
    """A picture that was asked for: its previews, and in the end the picture or an error.

    Attributes:
        request: the one picture, as plain data.
        previews: previews asked for.
    """

    def __init__(self, request: Request, previews: int) -> None:
        self.request = request
        self.previews = previews
        self._events: list[Picture | BaseException] = []
        self._listeners: list[Callable[[Picture | BaseException], None]] = []
        self._changed = threading.Condition()

    @property
    def over(self) -> bool:
        """Whether the picture is complete, failed or cancelled."""
        return bool(self._events) and _ends(self._events[-1])

    def listen(self, listener: Callable[[Picture | BaseException], None]) -> None:
        """Calls `listener` with every event, those that have been first.

        Events are incomplete pictures (previews), and last a complete one or the error. The caller
        is whichever thread brings the event about, so a listener must be quick and never raise.
        """
        with self._changed:
            for event in self._events:
                listener(event)
            self._listeners.append(listener)

    def __iter__(self) -> Iterator[Picture]:
        """Yields the previews, waiting for each; ends when the picture is complete or failed."""
        events: SimpleQueue[Picture | BaseException] = SimpleQueue()
        self.listen(events.put)
        while not _ends(event := events.get()):
            assert isinstance(event, Picture)
            yield event

    def result(self, timeout: float | None = None) -> Picture:
        """Waits for the complete picture.

        Args:
            timeout: seconds to wait at most; None waits as long as it takes.

        Raises:
            TimeoutError: it is not complete by then.
            concurrent.futures.CancelledError: it was cancelled.
            Exception: what went wrong while it was drawn.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.over, timeout):
                raise TimeoutError(f"the picture is not complete after {timeout} s")
            event = self._events[-1]
        if isinstance(event, BaseException):
            raise event
        return event

    def cancel(self) -> None:
        """Gives the picture up; its slot is free before the next pass. Nothing when it is over."""
        self.post(CancelledError("the picture was cancelled"))

    def post(self, event: Picture | BaseException) -> None:
        """Adds an event and tells who listens; nothing is added to a job that is over."""
        with self._changed:
            if self.over:
                return
            self._events.append(event)
            for listener in self._listeners:
                listener(event)
            self._changed.notify_all()


def _ends(event: Picture | BaseException) -> bool:
    return not isinstance(event, Picture) or event.fraction == 1
