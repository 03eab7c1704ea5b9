"""Methods with a window, and how many ranks a pass should predict on this device: measured once.

The best window maximises E[run | W] / cost(W), the tokens a pass commits over the seconds it takes.
Both are measured with the window itself: in a narrow window drafts get fewer passes to settle, so
the runs of a wide one, cut off, promise it too much (on emoji min(run, 8) is 3.1 at window 64,
where window 8 commits 2.5). A window never changes the output law. Knows nothing about how a method
drafts.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch

from visual_ar.accel.loop.contract import Choices, Decoding
from visual_ar.cast import Cast
from visual_ar.conditioning.condition import Condition
from visual_ar.models.token_model import TokenModel
from visual_ar.sampling import Sampling
from visual_ar.store import store_folder

CANDIDATES = (1, 2, 4, 8, 16, 32, 64)
_TOKENS, _PASSES = 40, 20  # a window is tried until so much of every picture is decoded
_HOPELESS = 0.5  # a window as slow against the best so far ends the trial: wider ones are slower


class WindowedDecoding(Decoding):
    """A method whose `window` option is a number of ranks or "auto", the fastest on this device.

    Attributes:
        candidates: windows that "auto" chooses from, ascending.
    """

    candidates: ClassVar[tuple[int, ...]] = CANDIDATES
    choices: ClassVar[Choices] = {"window": ("auto", *map(str, CANDIDATES))}

    def windows(self) -> tuple[int, ...]:
        """The candidates that its options allow."""
        return self.candidates

    def choose_window(self, cast: Cast, condition: Condition, sampling: Sampling) -> int:
        """The configured window, or the fastest one measured on this device."""
        if self.config.window != "auto":
            return self.config.window
        return tuned_window(self, cast, condition, sampling)


def check_window(window: int | str) -> None:
    """Raises ValueError unless `window` is "auto" or a whole number of at least 1."""
    whole = isinstance(window, int) and not isinstance(window, bool)
    if window != "auto" and not (whole and int(window) >= 1):
        raise ValueError(f"window must be 'auto' or a whole number of at least 1, got {window!r}")


def store_path() -> Path:
    """Where measured windows are kept."""
    return store_folder() / "windows.json"


def tuned_window(
    method: WindowedDecoding, cast: Cast, condition: Condition, sampling: Sampling
) -> int:
    """The fastest window for these pictures on this device, measured at most once.

    Args:
        method: whose window is chosen.
        cast: the generator and whoever is with it.
        condition: R = B or 2B rows, used for the measurement.
        sampling: options of the B pictures.
    """
    key = _key(method, cast, condition)
    known = _read()
    if key not in known:
        candidates = [window for window in method.windows() if window <= cast.layout.length]
        rate = partial(tokens_a_second, method, cast, condition, sampling)
        known[key] = fastest_window(candidates, rate)
        _write(key, known[key])
    return known[key]


def fastest_window(candidates: Sequence[int], rate: Callable[[int], float]) -> int:
    """The candidate with the most tokens a second.

    Args:
        candidates: windows, ascending, at least one.
        rate: tokens a second with a window; not asked once they have fallen far below the best.
    """
    rates: dict[int, float] = {}
    for window in candidates:
        rates[window] = rate(window)
        if rates[window] < _HOPELESS * max(rates.values()):
            break
    return max(rates, key=rates.__getitem__)


def tokens_a_second(
    method: Decoding, cast: Cast, condition: Condition, sampling: Sampling, window: int
) -> float:
    """Decodes the beginning of the pictures with a window, and measures it.

    A pass counts with the lower quartile of their times: other programs only make them longer.

    Args:
        method: decodes.
        cast: the generator and whoever is with it.
        condition: R = B or 2B rows.
        sampling: options of the B pictures.
        window: ranks that a pass predicts.
    """
    batch, device = len(sampling.seed), cast.model.device
    guided = len(condition.prefix) == 2 * batch
    state = method.init(cast, batch, guided, window)
    method.admit(state, torch.arange(batch, device=device), condition, sampling)
    wanted, committed = batch * min(cast.layout.length, _TOKENS), 0
    seconds: list[float] = []
    while committed < wanted and len(seconds) < _PASSES and state.open_length.read() >= 0:
        _synchronise(device)
        start = time.perf_counter()
        step = method.advance(state)
        _synchronise(device)
        seconds.append(time.perf_counter() - start)
        committed += int(step.committed.sum())
    return committed / (len(seconds) * sorted(seconds)[len(seconds) // 4])


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _key(method: Decoding, cast: Cast, condition: Condition) -> str:
    options = {k: v for k, v in method.config.items() if not k.startswith("_") and k != "window"}
    model, device = cast.model, cast.model.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    parts = {
        "device": name,
        "dtype": str(model.dtype),
        "method": type(method).__name__,
        "options": options,
        "model": _public(model),
        "draft_model": None if cast.draft_model is None else _public(cast.draft_model),
        "grid": cast.layout.grid,
        "rows": len(condition.prefix),
        "torch": torch.__version__,
    }
    text = json.dumps(parts, sort_keys=True, default=str)
    return f"{name}, {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _public(model: TokenModel) -> dict[str, Any]:
    return {k: v for k, v in model.config.items() if not k.startswith("_")}


def _cpu_name() -> str:
    return f"cpu with {torch.get_num_threads()} threads"


def _read() -> dict[str, int]:
    try:
        stored = json.loads(store_path().read_text())
    except (OSError, ValueError):
        return {}
    valid = isinstance(stored, dict)
    return {k: v for k, v in stored.items() if isinstance(v, int) and v >= 1} if valid else {}


def _write(key: str, window: int) -> None:
    """Adds one window to the store. A store that cannot be written costs a measurement, no more."""
    path = store_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps(_read() | {key: window}, indent=1, sort_keys=True))
        os.replace(beside, path)
    except OSError:
        return
