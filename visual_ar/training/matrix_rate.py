"""What share of a machine's matrix rate a run reaches: products and attention; knows no model.

The rate is that of a float32 product of 1024^3 at the start. What is counted is every product,
convolution and attention of a step, those of its optimiser included, by the formulas of torch's
counter and one of ours for attention on a CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count, shape_wrapper

_SIDE = 1024
_REPEATS, _WARM = 5, 2
_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
Result = TypeVar("Result")


class Speed(NamedTuple):
    """How fast a run is.

    Attributes:
        pictures_a_second: over all its steps in this process.
        share_of_matrix_rate: of the machine, reached by products and attention.
    """

    pictures_a_second: float
    share_of_matrix_rate: float


def matrix_rate(device: torch.device, clock: Callable[[], float] = time.monotonic) -> float:
    """Floating-point operations a second of a float32 product, the fastest of a few.

    Args:
        device: of the run.
        clock: seconds from any origin.
    """
    left, right = (torch.ones(_SIDE, _SIDE, device=device) for _ in range(2))
    taken = []
    for _ in range(_WARM + _REPEATS):
        wait(device)
        start = clock()
        torch.mm(left, right)
        wait(device)
        taken.append(clock() - start)
    return 2 * _SIDE**3 / max(min(taken[_WARM:]), 1e-9)


def counted(work: Callable[[], Result]) -> tuple[Result, int]:
    """Does some work and counts the operations of its products and attention."""
    with _Counter() as counter:
        result = work()
    return result, counter.operations


class _Counter(TorchDispatchMode):
    """Adds up what operations cost and does not touch them: torch's own mode takes some apart, and
    a run that goes on from a checkpoint would then differ in the last bit."""

    def __init__(self) -> None:
        super().__init__()
        self._formulas = {
            **flop_registry,
            _ATTENTION: shape_wrapper(_attention),
            _BACKWARD: shape_wrapper(_attention_backward),
        }
        self.operations = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        result = function(*args, **named)
        formula = self._formulas.get(function._overloadpacket)
        if formula is not None:
            self.operations += int(formula(*args, **named, out_val=result))
        return result


def wait(device: torch.device) -> None:
    """Until a device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class SpeedOfRun:
    """Adds up the steps of a run and their time.

    Args:
        device: of the run.
        batch: pictures of a step.
        clock: seconds from any origin.
    """

    def __init__(
        self, device: torch.device, batch: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._device, self._batch, self._clock = device, batch, clock
        self._rate = matrix_rate(device, clock)
        self._work = self._steps = 0
        self._seconds, self._since = 0.0, clock()

    def first(self, step: Callable[[], Result]) -> Result:
        """Makes the first step, whose work stands for that of the others; its time is not taken."""
        result, self._work = counted(step)
        wait(self._device)
        self._since = self._clock()
        return result

    def pause(self, steps: int) -> Speed:
        """The speed so far. steps: made since `first` or `go_on`, and just finished."""
        wait(self._device)
        self._seconds += self._clock() - self._since
        self._steps += steps
        a_second = self._steps / max(self._seconds, 1e-9)
        return Speed(self._batch * a_second, self._work * a_second / self._rate)

    def go_on(self) -> None:
        """Ends a pause, which is not counted."""
        self._since = self._clock()


def _attention(
    query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(
    grad: Any, query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    # Five products where the forward pass has two: the scores are computed again.
    return int(sdpa_flop_count(query, key, value) * 5 // 2)
