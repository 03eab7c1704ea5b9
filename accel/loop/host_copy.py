"""Numbers that go from the device to the host without a wait; knows no method and no model."""

from __future__ import annotations

import torch
from torch import Tensor


class HostCopy:
    """Whole numbers the host reads without waiting: at once on a CPU, one step late on CUDA.

    Args:
        device: where the numbers are made.
        start: what every number is before the first push.
        shape: of the tensor of numbers; () is one number.
    """

    def __init__(self, device: torch.device, start: int, shape: tuple[int, ...] = ()) -> None:
        self._lags = device.type == "cuda"
        self._copies = [torch.full(shape, start, dtype=torch.int64) for _ in range(2)]
        if self._lags:
            self._copies = [copy.pin_memory() for copy in self._copies]
            self._events = [torch.cuda.Event() for _ in range(2)]
            for event in self._events:
                event.record()
        self._newest = 0

    @property
    def lag(self) -> int:
        """Steps by which `read` is late."""
        return int(self._lags)

    def push(self, value: Tensor) -> None:
        """Starts the copy of a new value. value: int64 of the shape."""
        self._newest = 1 - self._newest
        self._copies[self._newest].copy_(value, non_blocking=True)
        if self._lags:
            self._events[self._newest].record()

    def read(self) -> int:
        """The newest single number on a CPU, the one pushed before it on CUDA."""
        return int(self._arrived())

    def read_list(self) -> list[int]:
        """The newest numbers [B] on a CPU, those pushed before them on CUDA."""
        return self._arrived().tolist()

    def _arrived(self) -> Tensor:
        index = self._newest
        if self._lags:
            index = 1 - index
            self._events[index].synchronize()
        return self._copies[index]


class OpenLength(HostCopy):
    """The largest length of a slot that is below a limit; the host finds it among all of them.

    Finding it on the device would be four small operations a pass.

    Args:
        device: where the lengths are made.
        slots: how many lengths there are.
        limit: length of what is complete, and of every slot before the first push.
    """

    def __init__(self, device: torch.device, slots: int, limit: int) -> None:
        super().__init__(device, limit, (slots,))
        self._limit = limit

    def read(self) -> int:
        """As `HostCopy.read`; -1 when every slot is complete."""
        return max((length for length in self.read_list() if length < self._limit), default=-1)
