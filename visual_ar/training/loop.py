"""The loop around the steps of every run: measuring, logging, checkpoints; knows no model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from visual_ar.training.matrix_rate import Speed, SpeedOfRun
from visual_ar.training.progress import Clock, Log, save_checkpoint
from visual_ar.training.recipe import Recipe

R = TypeVar("R", bound=Recipe)


class Training(ABC, Generic[R]):
    """One run, which goes on from the last checkpoint in its folder.

    Attributes:
        recipe: what is done.
        output: folder of the run.
        device: that computes.
        kept: called at every checkpoint, when `save` has saved what was trained so far.
        clock: steps done and seconds spent.
        log: one row per logged step.
    """

    recipe: R
    output: Path
    device: torch.device
    clock: Clock
    log: Log
    speed: Speed | None = None
    kept: Callable[[], None] | None = None

    def train(self) -> dict[str, Any]:
        """Trains to the end of the recipe, saves the result and returns its measured quality.

        `speed` then tells how fast the steps were, but for the first one; None without others.
        """
        logging, run = self.recipe.logging, SpeedOfRun(self.device, self.recipe.batch)
        make: Callable[[], dict[str, Any]] = partial(run.first, self._step)
        timed = -1  # steps since the last pause; the first one is not timed
        while self.clock.progress < 1:
            row, make = make(), self._step
            timed += 1
            self.clock.step += 1
            logged, measured, kept = (
                self.clock.step % every == 0
                for every in (logging.row, logging.measure, logging.checkpoint)
            )
            if not (logged or measured or kept):
                continue
            if timed > 0:
                self.speed, timed = run.pause(timed), 0
                row |= self.speed._asdict()
            if measured:
                row |= self._look()
            if logged:
                self.log.write(_on_host(row))
            if kept:
                save_checkpoint(self.output, self._state())
                if self.kept is not None:
                    self.save()
                    self.kept()
            run.go_on()
        save_checkpoint(self.output, self._state())
        self.save()
        return self._finish()

    @abstractmethod
    def _step(self) -> dict[str, Any]:
        """Makes one step and returns its row of the log."""

    @abstractmethod
    def _look(self) -> dict[str, Any]:
        """Measures on the way; returns what is added to the row."""

    @abstractmethod
    def _state(self) -> dict[str, Any]:
        """What a checkpoint holds."""

    @abstractmethod
    def save(self) -> None:
        """Saves what was trained so far as others load it."""

    @abstractmethod
    def _finish(self) -> dict[str, Any]:
        """What was trained, measured; it was saved before."""


def _on_host(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the log as numbers: a step leaves its own on the device, which would have to wait
    for them."""
    return {k: float(v) if isinstance(v, torch.Tensor) else v for k, v in row.items()}
