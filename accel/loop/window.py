"""Methods with a window, and how many ranks a pass should predict on this device: measured once.

The best window maximises E[run | W] / cost(W), the tokens a pass commits over the time it takes.
Both are measured with the window itself: in a narrow window drafts get fewer passes to settle, so
the runs of a wide one, cut off, promise it too much (on emoji min(run, 8) is 3.1 at window 64,
where window 8 commits 2.5). A window never changes the output law.

On a CPU the time is the processor's in the thread that draws, not the clock's: what is measured is
kept, and while other programs run, one slow moment on the clock made window 1 win, which drafts
nothing. That of all threads would count wide passes double, which use more of them. Window 1 is no
candidate, whatever was measured. Knows nothing about how a method drafts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import torch

from visual_ar.accel.loop import window_store
from visual_ar.accel.loop.contract import Choices, Decoding
from visual_ar.accel.loop.window_store import Measured, Trial
from visual_ar.cast import Cast
from visual_ar.conditioning.condition import Condition
from visual_ar.plain_numbers import shown, whole
from visual_ar.sampling import Sampling

CANDIDATES = (2, 4, 8, 16, 32, 64)
WIDEST = 65_536
"""Ranks that a window may have; no pass is wider than its picture, so more says nothing."""
_TOKENS, _LEAST = 128, 40  # a window is tried on so many tokens, and on so many of every picture


class WindowedDecoding(Decoding):
    """A method whose `window` option is a number of ranks or "auto", the fastest on this device.

    Attributes:
        candidates: windows that "auto" chooses from, ascending.
    """

    candidates: ClassVar[tuple[int, ...]] = CANDIDATES
    choices: ClassVar[Choices] = {"window": ("auto", "1", *map(str, CANDIDATES))}

    def windows(self) -> tuple[int, ...]:
        """The candidates that its options allow."""
        return self.candidates

    def choose_window(self, cast: Cast, condition: Condition, sampling: Sampling) -> int:
        """The configured window, or the fastest one measured on this device.

        Never wider than a picture: what lies behind its end would cost every pass and draw nothing.
        """
        if self.config.window == "auto":
            return tuned_window(self, cast, condition, sampling)
        return min(self.config.window, cast.layout.length)


def check_window(window: int | str) -> int | str:
    """The option as Python's own number, or "auto".

    Raises:
        ValueError: it is neither "auto" nor a whole number from 1 to `WIDEST`.
    """
    if isinstance(window, str) and window == "auto":
        return window
    try:
        return whole("window", window, 1, WIDEST)
    except ValueError:
        raise ValueError(
            f"window must be 'auto' or a whole number from 1 to {WIDEST}, got {shown(window)}"
        ) from None


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
    candidates = [window for window in method.windows() if window <= cast.layout.length]
    if not candidates:  # of a picture that is narrower than all of them
        return 1
    wanted = window_store.circumstances(method, cast, condition, sampling)
    kept = window_store.find(wanted, candidates)
    if kept is not None:
        return kept
    attempt = partial(try_window, method, cast, condition, sampling)
    return window_store.keep(wanted, candidates, fastest_window(candidates, attempt))


def fastest_window(candidates: Sequence[int], attempt: Callable[[int], Trial]) -> Measured:
    """A candidate that decodes more tokens a second than those next to it.

    The rate rises with the window until passes cost more than they bring, so three trials tell most
    of it. They are long ones: on the first 40 tokens of one emoji, window 2 or 4 won for some
    prompts, and 16 decodes the whole picture 1.3 times as fast.

    Args:
        candidates: windows, ascending, at least one.
        attempt: tries a window.
    """
    trials: dict[int, Trial] = {}
    at = len(candidates) // 2
    while True:
        for near in (at, at - 1, at + 1):
            if 0 <= near < len(candidates) and candidates[near] not in trials:
                trials[candidates[near]] = attempt(candidates[near])
        best = max(trials, key=lambda window: trials[window].rate)
        if best == candidates[at]:
            return Measured(best, trials)
        at = candidates.index(best)


def try_window(
    method: Decoding, cast: Cast, condition: Condition, sampling: Sampling, window: int
) -> Trial:
    """Decodes the beginning of the pictures with a window, and measures it.

    A pass counts with the lower quartile of their times: the first ones only prepare.

    Args:
        method: decodes.
        cast: the generator and whoever is with it.
        condition: R = B or 2B rows.
        sampling: options of the B pictures.
        window: ranks that a pass predicts.
    """
    batch, device = len(sampling.seed), cast.model.device
    guided = len(condition.prefix) == 2 * batch
    clock, tick = _clock(device)
    state = method.init(cast, batch, guided, window)
    method.admit(state, torch.arange(batch, device=device), condition, sampling)
    wanted = batch * min(cast.layout.length, max(_LEAST, _TOKENS // batch))
    committed = 0
    seconds: list[float] = []
    while committed < wanted and state.open_length.read() >= 0:
        _synchronise(device)
        start = clock()
        step = method.advance(state)
        _synchronise(device)
        seconds.append(clock() - start)
        committed += int(step.committed.sum())
    # Where the clock is too coarse for a pass, passes decide.
    return Trial(committed / len(seconds), max(sorted(seconds)[len(seconds) // 4], tick))


def _clock(device: torch.device) -> tuple[Callable[[], float], float]:
    """What time is measured by, and its resolution in seconds."""
    if device.type == "cpu":
        return time.thread_time, time.get_clock_info("thread_time").resolution
    return time.perf_counter, time.get_clock_info("perf_counter").resolution


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
