"""What a picture is conditioned on, as prefix embeddings; knows no kind of condition."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Condition(NamedTuple):
    """The prefix of every row. R = B without guidance, else 2B: conditional rows come first.

    Attributes:
        prefix: [R, P, D] embeddings of the prefix tokens.
        mask: bool [R, P], False marks padding columns.
        draft: the same pictures' prefix for a model that drafts, if there is one.
    """

    prefix: Tensor
    mask: Tensor
    draft: Condition | None = None

    def rows(self, index: Tensor) -> Condition:
        """The condition of some rows only. index: int64 [r]."""
        draft = None if self.draft is None else self.draft.rows(index)
        return Condition(self.prefix[index], self.mask[index], draft)
