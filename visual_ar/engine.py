"""Draws pictures of many requests through slots, admitted between passes.

Iteration-level scheduling (Yu et al. 2022, Orca, OSDI, section 4.1) for pictures: a slot that falls
idle is filled before the next pass, so that passes stay full while pictures come and go. Knows
requests and lanes of slots; knows nothing about who asks, over which protocol, or about files.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from visual_ar.job import Job, Picture
from visual_ar.lanes import Flight, Lane, Lanes, Slot, key_of
from visual_ar.pipeline import VisualARPipeline
from visual_ar.plain_numbers import whole
from visual_ar.request import Request
from visual_ar.sampling import Sampling

MEMORY = 4 * 2**30
"""Bytes that the slots of all sizes may take by default."""
_PACE_MEMORY = 0.8  # weight of the past in the running mean of seconds a picture


class QueueFull(RuntimeError):
    """There is no room for the pictures now. retry_after: seconds, at least 1, to wait."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineClosed(RuntimeError):
    """The engine takes no more pictures."""


@dataclass(frozen=True)
class EngineStats:
    """What an engine has done so far.

    Attributes:
        slots: pictures of one size decoded at a time.
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
    """B slots for every size over a pipeline and its decoding method, and a thread of passes.

    A picture is the same whatever else is drawn beside it: its prefix is encoded alone, and every
    pass has the shape of B slots with guidance and of the whole cache. In fp32 it therefore equals,
    token for token, the same request served alone by an engine of as many slots. Slots of a size
    are made when it is first asked for, and given up when others need the memory.

    Args:
        pipe: draws; its method and its device are those of the engine. It must not be changed while
            the engine lives.
        slots: pictures of one size decoded at a time B, at least 1.
        queue: pictures that may wait for a slot, at least 0.
        memory: bytes that the slots of all sizes may take together; one size is always served.

    Raises:
        ValueError: slots or queue is too small, the method cannot serve the model, or components
            of the pipeline are offloaded.
    """

    def __init__(
        self, pipe: VisualARPipeline, slots: int = 8, queue: int = 64, memory: int = MEMORY
    ) -> None:
        slots, queue = whole("slots", slots, least=1), whole("queue", queue, least=0)
        memory = whole("memory", memory, least=1)
        if any(hasattr(part, "_hf_hook") for part in pipe.components.values()):
            raise ValueError("pipe must be without offloading to serve from slots, got hooks on it")
        self._pipe = pipe
        self._lanes = Lanes(pipe, slots, memory)
        self._lanes.of(self._any(slots))  # refuses now what could never be served
        self._capacity = slots + queue
        self._waiting: deque[Job] = deque()
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
                busy=sum(not job.over for job in self._lanes.jobs()),
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
            ValueError: the request completes a picture, which slots cannot do, or previews is below
                0.
            QueueFull: there is no room for all of them.
            EngineClosed: the engine takes no more.
        """
        previews = whole("previews", previews, least=0)
        if request.completion is not None:
            raise ValueError("image must be left out, slots complete no pictures, got one")
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
                open_jobs = [*self._waiting, *self._lanes.jobs()]
            for job in open_jobs:
                job.cancel()
            self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _any(self, pictures: int) -> Request:
        """A request for so many pictures of the pipeline's own size."""
        asks = self._pipe.conditioner.asks(self._pipe.conditioner.anything)
        return self._pipe.check_inputs(**asks, num_images_per_prompt=pictures, seeds=0)

    def _make_room(self, pictures: int) -> None:
        """Raises QueueFull unless so many pictures fit. In the caller's thread, under the lock."""
        open_jobs = sum(not job.over for job in (*self._waiting, *self._lanes.jobs()))
        if open_jobs + pictures > self._capacity:
            self._count(refused=pictures)
            raise QueueFull(
                f"the queue must have room for {pictures} more pictures, "
                f"got {open_jobs} of {self._capacity} places taken",
                retry_after=max(math.ceil(self._pace * pictures / self._totals.slots), 1),
            )

    def _count(self, **more: float) -> None:
        """Adds to the totals, under the lock."""
        totals = {name: getattr(self._totals, name) + value for name, value in more.items()}
        self._totals = replace(self._totals, **totals)

    # What follows runs in the engine's thread.

    @torch.inference_mode()
    def _work(self) -> None:
        error: BaseException = EngineClosed("the engine has ended")
        try:
            torch.set_num_threads(self._threads)  # others may have limited theirs since
            while self._next_work():
                self._fill()
                for lane in self._lanes.busy():
                    self._pass(lane)
        except BaseException as caught:
            error = caught
            raise
        finally:  # nobody waits for a thread that is gone
            with self._changed:
                self._closing = True
                rest = [*self._waiting, *self._lanes.jobs()]
            for job in rest:
                job.post(error)

    def _next_work(self) -> bool:
        """Frees what was cancelled and waits for work; False when there will be none."""
        with self._changed:
            while True:
                self._sweep()
                if self._waiting or self._lanes.busy():
                    return True
                if self._closing:
                    return False
                self._changed.wait()

    def _sweep(self) -> None:
        """Forgets cancelled jobs, under the lock. Their slots decode on, unseen, until refilled."""
        kept = [job for job in self._waiting if not job.over]
        gone = len(self._waiting) - len(kept)
        self._waiting = deque(kept)
        self._count(cancelled=gone + self._lanes.sweep())

    def _fill(self) -> None:
        """Admits waiting pictures to idle slots of their size, in order."""
        with self._changed:
            waiting = list(self._waiting)
        full: set[object] = set()
        for job in waiting:
            key = key_of(job.request)
            if key in full:
                continue
            try:
                lane = self._lanes.of(job.request)
            except Exception as error:
                self._take(job)
                self._fail(job, error)
                continue
            if lane is None:
                break  # those behind it would keep the others busy, and it would wait for ever
            index = lane.idle()
            if index is None:
                full.add(key)  # those behind it of this size wait too
                continue
            with self._changed:
                self._waiting.remove(job)
                lane.slots[index] = Slot(job, time.monotonic())
            try:
                lane.admit(index, job.request)
            except Exception as error:
                self._free(lane, index)
                self._fail(job, error)

    def _take(self, job: Job) -> None:
        with self._changed:
            self._waiting.remove(job)

    def _free(self, lane: Lane, index: int) -> None:
        with self._changed:
            lane.slots[index] = None

    def _pass(self, lane: Lane) -> None:
        try:
            flight = lane.run()
        except Exception as error:
            for index, slot in enumerate(lane.slots):
                if slot is not None:
                    self._free(lane, index)
                    self._fail(slot.job, error)
            lane.renew()
            return
        with self._changed:
            self._count(passes=1)
        if flight is not None:
            self._report(lane, flight)

    def _report(self, lane: Lane, flight: Flight) -> None:
        """Tells the jobs what a pass did."""
        length = lane.layout.length
        for index, slot in enumerate(flight.slots):
            if slot is None or slot is not lane.slots[index]:
                continue
            slot.passes += 1
            settled = flight.settled[index]
            due = settled * (slot.job.previews + 1) // length
            if due == slot.shown:
                continue
            slot.shown = due
            picture = lane.picture(flight.step, index, settled / length)
            if picture.fraction == 1:
                self._finish(lane, index, slot, picture)
            else:
                slot.job.post(picture)

    def _finish(self, lane: Lane, index: int, slot: Slot, picture: Picture) -> None:
        seconds = time.monotonic() - slot.since
        with self._changed:
            lane.slots[index] = None
            self._pace = _PACE_MEMORY * self._pace + (1 - _PACE_MEMORY) * seconds
            if slot.job.over:
                self._count(cancelled=1)
            else:
                self._count(finished=1, tokens=lane.layout.length, slot_seconds=seconds)
        slot.job.post(picture)

    def _fail(self, job: Job, error: Exception) -> None:
        with self._changed:
            self._count(failed=1)
        job.post(error)


def _parts(request: Request) -> Iterator[Request]:
    """One request a picture."""
    for index in range(len(request.conditions)):
        sampling = Sampling(*(option[index : index + 1] for option in request.sampling))
        conditions = request.conditions[index : index + 1]
        yield replace(request, conditions=conditions, sampling=sampling)
