"""Slots of one decoding state each, one state a size, under one bound of memory.

Knows pipelines, decoding methods and the jobs in slots; knows nothing about queues or threads.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from visual_ar.accel.loop.host_copy import HostCopy
from visual_ar.accel.loop.state import DecodeState, Step
from visual_ar.job import Job, Picture
from visual_ar.pipeline import VisualARPipeline
from visual_ar.request import Request
from visual_ar.sampling import Warps


@dataclass
class Slot:
    """A job in a slot. `since` is when it came there, on the monotonic clock."""

    job: Job
    since: float
    passes: int = 0
    shown: int = 0


class Flight(NamedTuple):
    """A pass whose counts have arrived, and who was in the slots then. settled: one a slot."""

    step: Step
    slots: tuple[Slot | None, ...]
    settled: list[int]


class Lane:
    """B slots of one decoding state.

    Args:
        pipe: draws.
        request: of B pictures of the size, whatever they show.
    """

    def __init__(self, pipe: VisualARPipeline, request: Request) -> None:
        self.layout = request.layout
        self.slots: list[Slot | None] = [None] * len(request.conditions)
        self._pipe, self._method = pipe, pipe.scheduler
        self._cast = pipe.cast(request.layout)
        condition = pipe.encode_condition(request, guided=True)
        self._window = self._method.choose_window(self._cast, condition, request.sampling)
        self._flying: deque[tuple[Step, tuple[Slot | None, ...]]] = deque()
        self._settled = HostCopy(pipe.model.device, 0, (len(self.slots),))
        self.state = self._fresh()

    @property
    def busy(self) -> bool:
        """Whether some slot holds a picture."""
        return any(self.slots)

    @property
    def memory(self) -> int:
        """Bytes of the state's buffers."""
        return sum(_bytes(part) for part in (self.state, self.state.cache, self.state.method))

    def idle(self) -> int | None:
        """An idle slot, if there is one."""
        return next((index for index, slot in enumerate(self.slots) if slot is None), None)

    def renew(self) -> None:
        """Takes a fresh state after an error."""
        self._flying.clear()
        self.state = self._fresh()

    def admit(self, index: int, request: Request) -> None:
        """Puts a picture into a slot."""
        state = self.state
        # Every different top-k costs a selection a pass, so warps of pictures that left must go.
        others = (s.job.request.sampling for i, s in enumerate(self.slots) if s and i != index)
        state.warps = reduce(Warps.union, map(Warps.of, others), Warps())
        condition = self._pipe.encode_condition(request, guided=True)
        slots = torch.tensor([index], device=state.tokens.device)
        self._method.admit(state, slots, condition, request.sampling)

    def run(self) -> Flight | None:
        """One pass of all slots; what is known of a pass by now."""
        # Not `advance`, which lets attention read as far as the longest picture: sums over another
        # number of slots round differently, and a picture would feel its neighbours.
        step = self._method.run(self.state)
        self._settled.push(step.settled.sum(1))
        self._flying.append((step, tuple(self.slots)))
        if len(self._flying) <= self.state.open_length.lag:
            return None
        return Flight(*self._flying.popleft(), self._settled.read_list())

    def picture(self, step: Step, index: int, fraction: float) -> Picture:
        """The picture in a slot after a pass."""
        slot = self.slots[index]
        assert slot is not None
        row, grid, seed = slice(index, index + 1), self.layout.grid, slot.job.request.sampling.seed

        def draw(tokens: Tensor, known: Tensor) -> Any:
            return self._pipe.render(tokens, known, grid, "pil", seed)

        return Picture(
            tokens=self.layout.cells(step.tokens[row]),
            known=self.layout.cells(step.known[row]),
            fraction=fraction,
            passes=slot.passes,
            seed=slot.job.request.seeds[0],
            draw=draw,
        )

    def _fresh(self) -> DecodeState:
        return self._method.init(self._cast, len(self.slots), True, self._window)


class Lanes:
    """The lanes of all sizes, made when they are needed.

    Args:
        pipe: draws.
        slots: of each lane B.
        memory: bytes that all lanes may take together; there is always one.
    """

    def __init__(self, pipe: VisualARPipeline, slots: int, memory: int) -> None:
        self._pipe, self._slots, self._memory = pipe, slots, memory
        self._lanes: OrderedDict[object, Lane] = OrderedDict()  # those used last come last

    def jobs(self) -> list[Job]:
        """The jobs in all slots."""
        lanes = list(self._lanes.values())
        return [slot.job for lane in lanes for slot in lane.slots if slot is not None]

    def busy(self) -> list[Lane]:
        """The lanes that have something to do."""
        return [lane for lane in list(self._lanes.values()) if lane.busy]

    def sweep(self) -> int:
        """Frees slots whose job is over, and says how many."""
        gone = 0
        for lane in self.busy():
            for index, slot in enumerate(lane.slots):
                if slot is not None and slot.job.over:
                    lane.slots[index] = None
                    gone += 1
        return gone

    @torch.inference_mode()
    def of(self, request: Request) -> Lane | None:
        """The lane of a request's size, None while others leave it no memory."""
        key = key_of(request)
        if key not in self._lanes:
            if not self._make_room():
                return None
            self._lanes[key] = self._new(request)
        self._lanes.move_to_end(key)
        return self._lanes[key]

    def _new(self, request: Request) -> Lane:
        """A lane for pictures like a request's, found with some that are never refused."""
        conditioner = self._pipe.conditioner
        asks = conditioner.asks(conditioner.anything)
        anything = self._pipe.check_inputs(
            **asks, **request.size.named, num_images_per_prompt=self._slots, seeds=0
        )
        return Lane(self._pipe, anything)

    def _make_room(self) -> bool:
        """Gives up idle lanes, those used longest ago first, until another one fits."""
        while self._lanes and self._taken() >= self._memory:
            idle = next((key for key, lane in self._lanes.items() if not lane.busy), None)
            if idle is None:
                return False
            del self._lanes[idle]
        return True

    def _taken(self) -> int:
        """Bytes of all lanes, and of one more of the largest size."""
        sizes = [lane.memory for lane in self._lanes.values()]
        return sum(sizes) + max(sizes)


def key_of(request: Request) -> object:
    """What requests have in common that one lane can serve."""
    return request.layout.grid, request.layout.length


def _bytes(owner: Any) -> int:
    """Of the tensors that an object holds."""
    if isinstance(owner, Tensor):
        return owner.numel() * owner.element_size()
    values = vars(owner).values() if hasattr(owner, "__dict__") else ()
    return sum(_bytes(value) for value in values if isinstance(value, Tensor))
