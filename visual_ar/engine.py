"""Draws pictures of many requests through the slots of one decoding state, admitted between passes.

Iteration-level scheduling (Yu et al. 2022, Orca, OSDI, section 4.1) for pictures: a slot that falls
idle is filled before the next pass, so that passes stay full while pictures come and go. Knows
pipelines and decoding methods; knows nothing about who asks, over which protocol, or about files.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, NamedTuple

import torch

from visual_ar.accel.loop.host_copy import HostCopy
from visual_ar.accel.loop.state import DecodeState, Step
from visual_ar.job import Job, Picture
from visual_ar.layout import Layout
from visual_ar.pipeline import VisualARPipeline
from visual_ar.request import Request, check_whole
from visual_ar.sampling import Sampling, Warps

_PACE_MEMORY = 0.8  # weight of the past in the running mean of seconds a picture


class QueueFull(RuntimeError):
    """There is no room for the pictures now. retry_after: seconds, at least 1, to wait."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineClosed(RuntimeError):
    """The engine takes no more pictures."""


@dataclass
class _Slot:
    """A job in a slot. `since` is when it came there, on the monotonic clock."""

    job: Job
    since: float
    passes: int = 0
    shown: int = 0


class _Flight(NamedTuple):
    """A pass whose counts the host has not read yet, and who was in the slots then."""

    step: Step
    slots: tuple[_Slot | None, ...]


@dataclass(frozen=True)
class EngineStats:
    """What an engine has done so far.

    Attributes:
        slots: pictures decoded at a time.
        busy: slots that hold a picture.
        waiting: pictures that wait for a slot.
        finished: complete pictures.
        failed: pictures that ended in an error.
        cancelled: pictures that were given up.
        refused: pictures that found no room.
        passes: of all slots together.
        tokens: of the complete pictures.
        slot_seconds: time that complete pictures spent in a slot, summed.
    """

    slots: int
    busy: int = 0
    waiting: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    refused: int = 0
    passes: int = 0
    tokens: int = 0
    slot_seconds: float = 0.0


class Engine:
    """B slots over a pipeline and its decoding method, and a thread that runs the passes.

    A picture is the same whatever else is drawn beside it: its prefix is encoded alone, and every
    pass has the shape of B slots with guidance and of the whole cache. In fp32 it therefore equals,
    token for token, the same request served alone by an engine of as many slots.

    Args:
        pipe: draws; its size, its method and its device are those of the engine. It must not be
            changed while the engine lives.
        slots: pictures decoded at a time B, at least 1.
        queue: pictures that may wait for a slot, at least 0.

    Raises:
        ValueError: slots or queue is too small, the method cannot serve the model, or components
            of the pipeline are offloaded.
    """

    def __init__(self, pipe: VisualARPipeline, slots: int = 8, queue: int = 64) -> None:
        check_whole("slots", slots, least=1)
        check_whole("queue", queue, least=0)
        if any(hasattr(part, "_hf_hook") for part in pipe.components.values()):
            raise ValueError("pipe must be without offloading to serve from slots, got hooks on it")
        self._pipe, self._method = pipe, pipe.scheduler
        self._capacity = slots + queue
        self._window, self._layout = self._prepare(slots)
        self._slots: list[_Slot | None] = [None] * slots
        self._state = self._fresh_state()
        self._waiting: deque[Job] = deque()
        self._flights: deque[_Flight] = deque()
        self._known = HostCopy(pipe.model.device, 0, (slots,))
        self._totals = EngineStats(slots)
        self._pace = 1.0
        self._threads = torch.get_num_threads()
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="visual_ar engine", daemon=True)
        self._thread.start()

    @property
    def pipe(self) -> VisualARPipeline:
        """The pipeline that is served."""
        return self._pipe

    @property
    def capacity(self) -> int:
        """Pictures that may be in slots and wait, together."""
        return self._capacity

    @property
    def accepting(self) -> bool:
        """Whether the engine is alive and was not told to close."""
        return not self._closing

    @property
    def stats(self) -> EngineStats:
        """What was done so far."""
        with self._changed:
            return replace(
                self._totals,
                busy=sum(slot is not None and not slot.job.over for slot in self._slots),
                waiting=sum(not job.over for job in self._waiting),
            )

    def submit(self, request: Request, previews: int = 0) -> list[Job]:
        """Asks for pictures; all of them are accepted or none.

        Args:
            request: from `check_inputs` of the pipeline.
            previews: incomplete pictures wanted of each, evenly spaced over its tokens; a pass that
                commits many tokens may leave some out.

        Returns:
            one job a picture, in order.

        Raises:
            ValueError: the request completes a picture or has another size, which slots cannot do,
                or previews is below 0.
            QueueFull: there is no room for all of them.
            EngineClosed: the engine takes no more.
        """
        check_whole("previews", previews, least=0)
        if request.completion is not None:
            raise ValueError("image must be left out, slots complete no pictures, got one")
        if request.layout.grid != self._layout.grid:
            raise ValueError(
                f"height and width must be those of the engine, {self._layout.grid} cells, "
                f"got {request.layout.grid}"
            )
        jobs = [Job(part, previews) for part in _parts(request)]
        with self._changed:
            if self._closing:
                raise EngineClosed("the engine is closing and takes no more pictures")
            self._make_room(len(jobs))
            self._waiting.extend(jobs)
            self._changed.notify_all()
        return jobs

    def close(self, timeout: float | None = None) -> None:
        """Takes no more pictures, finishes those accepted, and ends.

        Args:
            timeout: seconds after which pictures still unfinished are cancelled; None waits for
                all.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout)
        if self._thread.is_alive():
            with self._changed:
                open_jobs = [*self._waiting, *(slot.job for slot in self._slots if slot)]
            for job in open_jobs:
                job.cancel()
            self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # What follows runs in the engine's thread, except where it says otherwise.

    @torch.inference_mode()
    def _prepare(self, slots: int) -> tuple[int, Layout]:
        """The window and the layout, found with a batch of any pictures. In the caller's thread."""
        classes = self._pipe.text_encoder is None
        anything = {"class_labels": 0} if classes else {"prompt": "picture"}
        call: dict[str, Any] = {**anything, "num_images_per_prompt": slots, "seeds": 0}
        request = self._pipe.check_inputs(**call)
        condition = self._pipe.encode_condition(request, guided=True)
        window = self._method.choose_window(
            self._pipe.model,
            request.layout,
            condition,
            request.sampling,
            self._pipe.image_tokenizer,
        )
        return window, request.layout

    @torch.inference_mode()
    def _fresh_state(self) -> DecodeState:
        pipe, slots = self._pipe, len(self._slots)
        return self._method.init(
            pipe.model, self._layout, slots, True, self._window, pipe.image_tokenizer
        )

    def _make_room(self, pictures: int) -> None:
        """Raises QueueFull unless so many pictures fit. In the caller's thread, under the lock."""
        held = [*self._waiting, *(slot.job for slot in self._slots if slot)]
        open_jobs = sum(not job.over for job in held)
        if open_jobs + pictures > self._capacity:
            self._count(refused=pictures)
            raise QueueFull(
                f"the queue must have room for {pictures} more pictures, "
                f"got {open_jobs} of {self._capacity} places taken",
                retry_after=max(math.ceil(self._pace * pictures / len(self._slots)), 1),
            )

    def _count(self, **more: float) -> None:
        """Adds to the totals, under the lock."""
        totals = {name: getattr(self._totals, name) + value for name, value in more.items()}
        self._totals = replace(self._totals, **totals)

    @torch.inference_mode()
    def _work(self) -> None:
        error: BaseException = EngineClosed("the engine has ended")
        try:
            torch.set_num_threads(self._threads)  # others may have limited theirs since
            while self._next_work():
                for index, slot in enumerate(self._slots):
                    if slot is None:
                        self._fill(index)
                if any(self._slots):
                    self._pass()
        except BaseException as caught:
            error = caught
            raise
        finally:  # nobody waits for a thread that is gone
            with self._changed:
                self._closing = True
                rest = [*self._waiting, *(slot.job for slot in self._slots if slot)]
            for job in rest:
                job.post(error)

    def _next_work(self) -> bool:
        """Frees what was cancelled and waits for work; False when there will be none."""
        with self._changed:
            while True:
                self._sweep()
                if self._waiting or any(self._slots):
                    return True
                if self._closing:
                    return False
                self._changed.wait()

    def _sweep(self) -> None:
        """Forgets cancelled jobs, under the lock. Their slots decode on, unseen, until refilled."""
        kept = [job for job in self._waiting if not job.over]
        gone = len(self._waiting) - len(kept)
        self._waiting = deque(kept)
        for index, slot in enumerate(self._slots):
            if slot is not None and slot.job.over:
                self._slots[index] = None
                gone += 1
        self._count(cancelled=gone)

    def _fill(self, index: int) -> None:
        """Admits the next waiting picture to an idle slot."""
        with self._changed:
            if not self._waiting:
                return
            job = self._waiting.popleft()
            self._slots[index] = _Slot(job, time.monotonic())
        try:
            self._admit(index, job.request)
        except Exception as error:
            self._fail(index, error)

    def _admit(self, index: int, request: Request) -> None:
        state = self._state
        # Every different top-k costs a selection a pass, so warps of pictures that left must go.
        others = (s.job.request.sampling for i, s in enumerate(self._slots) if s and i != index)
        state.warps = reduce(Warps.union, map(Warps.of, others), Warps())
        condition = self._pipe.encode_condition(request, guided=True)
        slots = torch.tensor([index], device=state.tokens.device)
        self._method.admit(state, slots, condition, request.sampling)

    def _pass(self) -> None:
        try:
            # Not `advance`, which lets attention read as far as the longest picture: sums over
            # another number of slots round differently, and a picture would feel its neighbours.
            step = self._method.run(self._state)
            self._known.push(step.known.sum(1))
        except Exception as error:
            for index, slot in enumerate(self._slots):
                if slot is not None:
                    self._fail(index, error)
            self._state = self._fresh_state()
            return
        with self._changed:
            self._count(passes=1)
        self._flights.append(_Flight(step, tuple(self._slots)))
        if len(self._flights) > self._state.open_length.lag:
            self._report(self._flights.popleft(), self._known.read_list())

    def _report(self, flight: _Flight, known: list[int]) -> None:
        """Tells the jobs what a pass did. known: tokens known, one number a slot."""
        for index, slot in enumerate(flight.slots):
            if slot is None or slot is not self._slots[index]:
                continue
            slot.passes += 1
            due = known[index] * (slot.job.previews + 1) // self._layout.length
            if due == slot.shown:
                continue
            slot.shown = due
            picture = self._picture(flight.step, index, known[index] / self._layout.length)
            if picture.fraction == 1:
                self._finish(index, slot, picture)
            else:
                slot.job.post(picture)

    def _picture(self, step: Step, index: int, fraction: float) -> Picture:
        slot = self._slots[index]
        assert slot is not None
        row, grid = slice(index, index + 1), self._layout.grid
        return Picture(
            tokens=self._layout.cells(step.tokens[row]),
            known=self._layout.cells(step.known[row]),
            fraction=fraction,
            passes=slot.passes,
            seed=slot.job.request.seeds[0],
            draw=lambda tokens, known: self._pipe.render(tokens, known, grid, "pil"),
        )

    def _finish(self, index: int, slot: _Slot, picture: Picture) -> None:
        seconds = time.monotonic() - slot.since
        with self._changed:
            self._slots[index] = None
            self._pace = _PACE_MEMORY * self._pace + (1 - _PACE_MEMORY) * seconds
            if slot.job.over:
                self._count(cancelled=1)
            else:
                self._count(finished=1, tokens=self._layout.length, slot_seconds=seconds)
        slot.job.post(picture)

    def _fail(self, index: int, error: Exception) -> None:
        with self._changed:
            slot, self._slots[index] = self._slots[index], None
            self._count(failed=1)
        assert slot is not None
        slot.job.post(error)


def _parts(request: Request) -> Iterator[Request]:
    """One request a picture."""
    for index in range(len(request.conditions)):
        sampling = Sampling(*(option[index : index + 1] for option in request.sampling))
        conditions = request.conditions[index : index + 1]
        yield replace(request, conditions=conditions, sampling=sampling)
