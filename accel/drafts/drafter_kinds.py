"""Who can fill a tree of drafts, by name, and what each of them cannot do.

A drafter is written as one string, such as "jacobi" or "left-law+above-law", so that it fits a
configuration and a command line. Knows nothing about acceptance.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from visual_ar.accel.drafts.drafter import Drafter
from visual_ar.accel.drafts.head_drafter import HeadDrafter
from visual_ar.accel.drafts.head_memory import check_draft_head
from visual_ar.accel.drafts.initialise import INITIALISERS, LAWS, check_initialiser
from visual_ar.accel.drafts.position_drafts import JacobiDrafter, SpatialDrafter
from visual_ar.accel.drafts.tree import Tree
from visual_ar.accel.kernels.reference import COUPLINGS
from visual_ar.accel.loop.state import DecodeState
from visual_ar.cast import Cast


class DrafterKind(ABC):
    """A configured way to draft. A new one is a class here and a line in `parse_drafter`."""

    @property
    @abstractmethod
    def siblings(self) -> int | None:
        """Most drafts it has for one position; None when as many as there are codes."""

    @abstractmethod
    def check(self, cast: Cast) -> None:
        """Raises ValueError when it cannot draft for the cast."""

    @abstractmethod
    def make(self, state: DecodeState, trees: Tree) -> Drafter:
        """A drafter with buffers for the slots of a state. trees: the shapes it must fill."""


@dataclass(frozen=True)
class JacobiKind(DrafterKind):
    """The target model's own guesses of the pass before; `init` for ranks without one."""

    init: str
    coupling: str

    @property
    def siblings(self) -> int | None:
        """See `DrafterKind.siblings`."""
        return None

    def check(self, cast: Cast) -> None:
        """See `DrafterKind.check`."""
        check_initialiser(self.init, cast.layout)

    def make(self, state: DecodeState, trees: Tree) -> Drafter:
        """See `DrafterKind.make`."""
        return JacobiDrafter(state, trees, self.init, self.coupling)


@dataclass(frozen=True)
class SpatialKind(DrafterKind):
    """Neighbours: copies of their tokens, or draws from their laws."""

    inits: tuple[str, ...]

    @property
    def siblings(self) -> int | None:
        """See `DrafterKind.siblings`."""
        return None if (LAWS | {"uniform"}) & set(self.inits) else len(self.inits)

    def check(self, cast: Cast) -> None:
        """See `DrafterKind.check`."""
        for init in self.inits:
            check_initialiser(init, cast.layout)

    def make(self, state: DecodeState, trees: Tree) -> Drafter:
        """See `DrafterKind.make`."""
        return SpatialDrafter(state, trees, self.inits)


@dataclass(frozen=True)
class HeadKind(DrafterKind):
    """The cast's trained draft head."""

    @property
    def siblings(self) -> int | None:
        """See `DrafterKind.siblings`."""
        return None

    def check(self, cast: Cast) -> None:
        """See `DrafterKind.check`."""
        check_draft_head(cast, "drafter head")

    def make(self, state: DecodeState, trees: Tree) -> Drafter:
        """See `DrafterKind.make`."""
        return HeadDrafter(state, trees)


DRAFTERS = ("jacobi", "head", *INITIALISERS, "left-law+above-law")
"""What a person may pick; other neighbours may be joined as well."""


def parse_drafter(text: str, init: str, coupling: str) -> DrafterKind:
    """Reads a drafter.

    Args:
        text: "jacobi", "head", or neighbours joined by "+".
        init: first draft of a rank that the Jacobi drafter has not seen yet.
        coupling: one of COUPLINGS, how Jacobi drafts follow from pass to pass.

    Raises:
        ValueError: unknown name or coupling.
    """
    if coupling not in COUPLINGS:
        raise ValueError(f"coupling must be one of {', '.join(COUPLINGS)}, got {coupling!r}")
    if text == "jacobi":
        return JacobiKind(init, coupling)
    if text == "head":
        return HeadKind()
    inits = tuple(text.split("+"))
    if not set(inits) <= set(INITIALISERS):
        raise ValueError(
            f"drafter must be jacobi, head, or one or more of {', '.join(INITIALISERS)} joined "
            f"by +, got {text!r}"
        )
    return SpatialKind(inits)
