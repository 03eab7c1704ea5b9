"""The loop around the steps of every run: measuring, logging, checkpoints; knows no model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Generic, TypeVar

from visual_ar.training.progress import Clock, Log, save_checkpoint
from visual_ar.training.recipe import Recipe

R = TypeVar("R", bound=Recipe)


class Training(ABC, Generic[R]):
    """One run, which goes on from the last checkpoint in its folder.

    Attributes:
        recipe: what is done.
        output: folder of the run.
        clock: steps done and seconds spent.
        log: one row per logged step.
    """

    recipe: R
    output: Path
    clock: Clock
    log: Log

    def train(self) -> dict[str, Any]:
        """Trains to the end of the recipe, saves the result and returns its measured quality."""
        logging = self.recipe.logging
        while self.clock.progress < 1:
            row = self._step()
            self.clock.step += 1
            if self.clock.step % logging.measure == 0:
                row |= self._look()
            if self.clock.step % logging.row == 0:
                self.log.write(row)
            if self.clock.step % logging.checkpoint == 0:
                save_checkpoint(self.output, self._state())
        save_checkpoint(self.output, self._state())
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
    def _finish(self) -> dict[str, Any]:
        """Saves what was trained and returns its measured quality."""
