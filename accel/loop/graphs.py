"""Passes as captured CUDA graphs, one launch a pass; knows nothing of what a pass computes.

A pass of some shape is run one operation at a time when the shape first comes, which compiles and
allocates what a capture may not, and captured when it comes again. All graphs of a state work on
the state's own tensors, so admissions and later calls reuse them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from visual_ar.accel.loop.host_copy import HostCopy
from visual_ar.cache import KVCache
from visual_ar.cast import Cast
from visual_ar.sampling import Warps

# A `DecodeState`, a `Decoding` and a `Step`: their module imports this one.
State: TypeAlias = Any
Method: TypeAlias = Any
Result: TypeAlias = Any
Body = Callable[[], Result]

_EXTENT_STEP = 32
_EXTENT = "extent"  # of a cache


def extent_for(slots: int, limit: int, captured: bool) -> int:
    """How far attention reads: all slots in use, rounded up so that few different shapes occur.

    Each extent costs a captured graph, so there the steps grow with the length, four to a
    doubling: at most a quarter too much is read, and a thousand slots take a dozen graphs. A graph
    that took its extent from the device would need an attention kernel that does so too.

    Args:
        slots: that somebody may attend to.
        limit: slots of the cache.
        captured: whether each extent costs a graph.
    """
    step = _EXTENT_STEP
    if captured:
        step = max(step, 1 << max(slots.bit_length() - 3, 0))
    return min(-(-slots // step) * step, limit)


class Capture(Protocol):
    """Records what a function does, without doing it."""

    def __call__(self, body: Body) -> tuple[Callable[[], None], Result]:
        """Returns what does it, and the tensors that then hold the result."""


class CudaCapture:
    """Captures CUDA graphs that share one pool of memory.

    They may, because nothing in the pool is needed once a replay has ended: what lasts is copied
    to the state, and the result is copied out.

    Args:
        device: of the tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def __call__(self, body: Body) -> tuple[Callable[[], None], Result]:
        """See `Capture`. Other threads may use the device meanwhile."""
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(self._device),
            torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            step = body()
        self._pool = graph.pool()
        return graph.replay, step


class CapturedSteps:
    """The graphs of one state, one a shape of pass.

    Args:
        capture: records a pass.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._graphs: dict[Any, tuple[Callable[[], None], Result]] = {}
        self._met: set[Any] = set()
        self._static: list[tuple[int, torch.Size]] = []

    @staticmethod
    def serves(device: torch.device) -> bool:
        """Whether passes on a device are captured."""
        return device.type == "cuda"

    @classmethod
    def on(cls, device: torch.device) -> CapturedSteps | None:
        """Graphs for a device, None where passes are not captured."""
        return cls(CudaCapture(device)) if cls.serves(device) else None

    @property
    def count(self) -> int:
        """Number of graphs."""
        return len(self._graphs)

    def run(self, step: Callable[[State], Result], state: State) -> Result:
        """One pass. The state's tensors stay where they are; the result belongs to the caller.

        Args:
            step: reads nothing on the host and keeps what it changes in tensors of the state.
            state: changed in place.

        Raises:
            RuntimeError: the step changes something that a graph does not.
        """
        static = [(place.tensor.data_ptr(), place.tensor.shape) for place in _tensors(state)]
        if static != self._static:  # somebody replaced a buffer
            self._graphs.clear()
            self._static = static
        # The kernel reads the options of the pictures on the device; torch skips unused warps.
        key = (state.cache.extent, None if state.fused else state.warps)
        if key not in self._met:
            self._met.add(key)
            return _in_place(step, state)
        if key not in self._graphs:
            self._graphs[key] = self._capture(lambda: _in_place(step, state))
        replay, result = self._graphs[key]
        replay()
        copies = {
            name: value.clone() if isinstance(value, Tensor) else value
            for name, value in result._asdict().items()
        }
        return type(result)(**copies)


def _in_place(step: Callable[[State], Result], state: State) -> Result:
    """A step whose new tensors are copied to where the old ones were."""
    before, settings = list(_tensors(state)), _settings(state)
    static = {place.tensor.untyped_storage().data_ptr() for place in before}
    whole = {(id(place.owner), place.name): getattr(place.owner, place.name) for place in before}
    result = step(state)
    if _settings(state) != settings:
        raise RuntimeError(
            f"a step that is captured must keep what it changes in tensors, got {settings} "
            f"turned into {_settings(state)} by {type(state.method).__name__} or its method"
        )
    changed = []
    for place in before:
        old, new = place.tensor, place.read()
        if new is old:
            continue
        if not isinstance(new, Tensor) or new.shape != old.shape:
            found = list(new.shape) if isinstance(new, Tensor) else new
            raise RuntimeError(
                f"a step that is captured must keep the shapes of the state, got {place.name} "
                f"{found} after {list(old.shape)}"
            )
        # What lies in another buffer would be overwritten by that buffer's own copy.
        aliased = new.untyped_storage().data_ptr() in static
        changed.append((place, new.clone() if aliased else new))
    for place, new in changed:
        place.tensor.copy_(new)
        setattr(place.owner, place.name, whole[id(place.owner), place.name])
    return result


class _Place(NamedTuple):
    """Where a state holds a tensor: an attribute, or an entry of a tuple that is one."""

    owner: Any
    name: str
    entry: int | None
    tensor: Tensor

    def read(self) -> Any:
        """What is there now."""
        value = getattr(self.owner, self.name)
        return value if self.entry is None else value[self.entry]


def _owners(state: State) -> list[Any]:
    """The state and all that it holds of its own: the cache, the method's buffers and theirs."""
    found: list[Any] = []
    waiting = [state, state.cache, state.method]
    while waiting:
        part = waiting.pop()
        if not hasattr(part, "__dict__") or isinstance(part, Tensor):
            continue
        if any(part is other for other in found):
            continue
        found.append(part)
        waiting += [value for value in vars(part).values() if _has_buffers(value)]
    return found


def _has_buffers(value: Any) -> bool:
    home = type(value).__module__
    ours = home.startswith("visual_ar.accel.") or home == KVCache.__module__
    return ours and not isinstance(value, CapturedSteps | HostCopy)


def _tensors(state: State) -> Iterator[_Place]:
    """Every tensor of a state, but for the layout's."""
    for owner in _owners(state):
        for name, value in vars(owner).items():
            if isinstance(value, Tensor):
                yield _Place(owner, name, None, value)
            elif isinstance(value, tuple):
                for index, entry in enumerate(value):
                    if isinstance(entry, Tensor):
                        yield _Place(owner, name, index, entry)


def _settings(state: State) -> dict[Any, Any]:
    """Whatever numbers the host keeps in a state, but for how far attention reads: each extent of
    the state's cache has a graph, and other caches follow it."""
    return {
        (type(owner).__name__, name): value
        for owner in _owners(state)
        for name, value in vars(owner).items()
        if name != _EXTENT
        if isinstance(value, int | float | str) or _is_plain_tuple(value)
    }


def _is_plain_tuple(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(one, int | float | str) for one in value)


@contextmanager
def lent_state(
    method: Method, cast: Cast, slots: int, guided: bool, window: int
) -> Iterator[State]:
    """A state for one call, arguments as of `Decoding.init`.

    Where passes are captured, the method keeps it for the next call that fits, with its graphs. Two
    calls at a time never share one, and at most one is kept.
    """
    if not method.capturable or not CapturedSteps.serves(cast.model.device):
        yield method.init(cast, slots, guided, window)
        return
    # Graphs hold addresses, and weights may have moved. The grid decides a model's order.
    weights = tuple(parameter.data_ptr() for parameter in cast.model.parameters())
    layout = cast.layout
    order = (layout.grid, layout.length, tuple(layout.following or ()))
    whole = (cast.model, cast.tokenizer, cast.draft_head, cast.draft_model, cast.prefix)
    key = (whole, weights, order, slots, guided, window)
    kept, method.kept = method.kept, None
    if kept is not None and kept[0] == key:
        state = kept[1]
        forced = layout.forced.to(cast.model.device)
        state.cast = cast.with_layout(replace(state.layout, forced=forced))
        state.warps = Warps()
    else:
        del kept  # before another state needs its memory
        state = method.init(cast, slots, guided, window)
    sound = True
    try:
        yield state
    except Exception:
        sound = False
        raise
    finally:
        if sound:
            method.kept = (key, state)
