"""The uniform numbers of some ranks in one pass, by what they decide; knows no law."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Numbers(NamedTuple):
    """Numbers of [B, Q] ranks, in (0, 1); * is `TokenKind.number_shape`, () for codes.

    Attributes:
        test: fp32 [B, Q, *], whether a draft is kept.
        instead: fp32 [B, Q, *], what replaces it; of tokens of several numbers those of the test.
        fresh: fp32 [B, Q, *], a draw that follows no draft.
        first: fp32 [B, Q, *], a first draft.
        seed: int64 [B], with the two below the key of more numbers, should a law need them.
        ranks: int64 [B, Q].
        attempt: int64 [B], the picture's own count of passes.
    """

    test: Tensor
    instead: Tensor
    fresh: Tensor
    first: Tensor
    seed: Tensor
    ranks: Tensor
    attempt: Tensor

    def head(self, count: int) -> Numbers:
        """Those of the first `count` ranks."""
        test, instead, fresh, first = (value[:, :count] for value in self[:4])
        ranks = self.ranks[:, :count]
        return Numbers(test, instead, fresh, first, self.seed, ranks, self.attempt)

    def at(self, position: Tensor) -> Numbers:
        """Those of one rank of every picture, [B, 1]. position: int64 [B]."""
        test, instead, fresh, first = (_column(value, position) for value in self[:4])
        ranks = _column(self.ranks, position)
        return Numbers(test, instead, fresh, first, self.seed, ranks, self.attempt)


def _column(values: Tensor, position: Tensor) -> Tensor:
    """values: [B, K, *]; position: int64 [B]; returns [B, 1, *]."""
    index = position.view(-1, *[1] * (values.dim() - 1)).expand(-1, -1, *values.shape[2:])
    return values.gather(1, index)
