"""Shares some minutes of a machine among the bundled models: who gets how much, and its end.

What is trained is packed at every checkpoint in the form in which models are bundled, so that a run
that is cut off keeps it. Knows recipes by name; knows no training.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from visual_ar.assets import bundled

SHARES = {  # recipe -> parts of the time; the later ones start from the first
    "emoji": 12.0,
    "emoji_nar": 4.0,
    "emoji_draft": 2.0,
    "emoji_denoising": 2.0,
}
TOKENIZERS = {"emoji_tokenizer": "emoji"}  # recipe -> bundled model that has its result
LEAST = 0.1  # minutes that a model needs to learn anything
_SPARE = 0.04  # of each share, for saving and packing


class Slot(NamedTuple):
    """A model's time.

    Attributes:
        recipe: its name.
        ends: when, by the clock of the plan.
    """

    recipe: str
    ends: float


def chosen(only: Sequence[str]) -> list[str]:
    """The recipes to train, in order.

    Args:
        only: some of `SHARES`; none is all of them.

    Raises:
        ValueError: another name.
    """
    for name in only:
        if name not in SHARES:
            raise ValueError(f"only must be some of {', '.join(SHARES)}, got {name!r}")
    return [name for name in SHARES if not only or name in only]


def check_minutes(minutes: float, recipes: Sequence[str]) -> None:
    """Raises ValueError when the time is too short for one of the recipes; says the least."""
    total = sum(SHARES[name] for name in recipes)
    least = max(LEAST * total / SHARES[name] for name in recipes)
    if not minutes >= least:
        raise ValueError(
            f"minutes must be at least {least:g} for {', '.join(recipes)}, got {minutes:g}"
        )


def slots(
    minutes: float, recipes: Sequence[str], clock: Callable[[], float] = time.monotonic
) -> Iterator[Slot]:
    """The recipes with their ends. What one leaves of its time goes to those behind it.

    Args:
        minutes: in all, from the first slot on.
        recipes: in order.
        clock: seconds from any origin.
    """
    end = clock() + 60 * minutes
    for place, name in enumerate(recipes):
        left = sum(SHARES[later] for later in recipes[place:])
        now = clock()
        yield Slot(name, now + (1 - _SPARE) * max(end - now, 0.0) * SHARES[name] / left)


def place_tokenizers(runs: Path) -> None:
    """Puts bundled tokenizers where recipes look for trained ones, if there are none."""
    for recipe, model in TOKENIZERS.items():
        target = runs / recipe / "model"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(bundled()[model] / "image_tokenizer", target)
