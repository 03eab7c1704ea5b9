"""Speculative sampling (Leviathan et al. 2023, Algorithm 1) of every part of a token by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from visual_ar.accel.rules.rule import Rule
from visual_ar.tokens.kind import PARTS
from visual_ar.tokens.law import Law, Redrawn
from visual_ar.tokens.numbers import Numbers


@dataclass(frozen=True)
class Bitwise(Rule):
    """A refused bit is flipped, nothing is drawn; refusals leave the other bits alone. Lossless.

    It accepts less than `exact`, but needs no residual draw and no branch. Of laws over sub-codes,
    the same of every sub-code.
    """

    name: ClassVar[str] = "bitwise"
    lossless: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({PARTS})

    def follows_coupling(self, p: Law) -> bool:
        """See `Rule.follows_coupling`."""
        return True

    def passes(self, p: Any, q: Any, drafts: Tensor, u: Tensor) -> Tensor:
        """See `Rule.passes`."""
        return (p.couple_parts(q, drafts, u) == drafts).all(-1)

    def replacement(
        self, p: Any, q: Any, drafts: Tensor, position: Tensor, numbers: Numbers
    ) -> Redrawn:
        """See `Rule.replacement`: the draft with the refused parts replaced."""
        here = position[:, None]
        index = here[..., None].expand(-1, -1, drafts.shape[-1])
        refused = drafts.gather(1, index)
        law, drawn_from = p.rows(here), q.rows(here)
        return Redrawn(law.couple_parts(drawn_from, refused, numbers.at(position).test))
