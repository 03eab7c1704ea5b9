"""How long and how bushy the next tree of a picture is, from how many drafts it accepted so far.

A shape is chosen before its drafts exist, from passes that are over, so that it never changes the
output law. Knows nothing about laws, acceptance or who drafts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from visual_ar.accel.drafts.tree import grow

ADAPTATIONS = ("none", "length", "shape")
_FORGETTING = 0.25
_FIRST_MEAN = 1.0


def ladder(adapt: str, branching: Sequence[int], trunk: int) -> list[list[int]]:
    """Shapes from the shortest trunk to the longest, as parents; see `tree.grow`.

    Args:
        adapt: "none", one shape; "length", trunks halved down to the height of the bush, the bush
            unchanged; "shape", as many drafts in all of them, the bush losing its highest level
            from one to the next in favour of the trunk.
        branching: children of a column at depth 0, 1, ... of the bush.
        trunk: longest trunk for "length", shortest for "shape"; at least the height of the bush.
    """
    full = grow(branching, trunk)
    if adapt == "length":
        lengths = [trunk]
        while lengths[-1] > len(branching):
            lengths.append(max(lengths[-1] // 2, len(branching)))
        return [grow(branching, length) for length in reversed(lengths)]
    if adapt == "shape":
        rungs = []
        for height in range(len(branching), -1, -1):
            kept = branching[:height]
            off_trunk = len(grow(kept, height)) - height
            rungs.append(grow(kept, len(full) - off_trunk))
        return rungs
    return [full]


class Pace:
    """A moving mean of the drafts that every picture accepted in a pass.

    Args:
        trunks: int64 [M], trunk lengths of the shapes to choose from, ascending.
        slots: number of pictures B.
    """

    def __init__(self, trunks: Tensor, slots: int) -> None:
        self._trunks = trunks.contiguous()
        self.mean = torch.full((slots,), _FIRST_MEAN, device=trunks.device)

    def admit(self, slots: Tensor) -> None:
        """Forgets the pictures that were in some slots. slots: int64 [b]."""
        self.mean[slots] = _FIRST_MEAN

    def observe(self, run: Tensor) -> None:
        """Counts a pass. run: int64 [B], drafts accepted."""
        self.mean += _FORGETTING * (run - self.mean)

    def shape(self) -> Tensor:
        """The first shape whose trunk is twice as long as what is usually accepted. int64 [B].

        Twice, because a trunk as long as the mean would cut off half of the runs.
        """
        wanted = 2 * self.mean + 2
        shape = torch.searchsorted(self._trunks.to(wanted.dtype), wanted)
        return shape.clamp(max=len(self._trunks) - 1)
