"""The contract of laws over tokens; knows no kind of token, no model and no rule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple, NoReturn, Self

from torch import Tensor

from visual_ar.tokens.numbers import Numbers


class Redrawn(NamedTuple):
    """What replaces refused drafts.

    Attributes:
        tokens: [B, Q, *].
        found: bool [B, Q], False where the draw must be asked for again with another attempt; None
            where every draw is one.
    """

    tokens: Tensor
    found: Tensor | None = None


class Law(ABC):
    """Laws over tokens, [B, Q] of them, guided and warped exactly once.

    Tokens are [B, Q, *] with the shape and dtype of their kind, numbers fp32 [B, Q, *] in (0, 1)
    with the kind's number of numbers. A law without a density refuses whatever needs one.

    Attributes:
        coupling_is_exact: whether `couple` keeps and replaces whole tokens as `keep` and `residual`
            do, with the same numbers.
    """

    coupling_is_exact: ClassVar[bool] = False

    @property
    @abstractmethod
    def features(self) -> Tensor:
        """What the laws are made of, fp32 [B, Q, F]; `TokenKind.law_from` makes them again."""

    @abstractmethod
    def draw(self, u: Tensor) -> Tensor:
        """One draw a law: [B, Q, *]. u: fp32 [B, Q, *]."""

    @abstractmethod
    def draw_frozen(self, noise: Tensor) -> Tensor:
        """One draw a law, a function of noise that is fixed per rank: [B, Q, *]."""

    @abstractmethod
    def rows(self, index: Tensor) -> Self:
        """The laws at some positions of every picture. index: int64 [B, K]; returns [B, K] laws."""

    @abstractmethod
    def first(self, count: int) -> Self:
        """The laws of the first `count` positions."""

    @abstractmethod
    def last(self) -> Self:
        """The laws of the last position."""

    @abstractmethod
    def with_forced(self, forced: Tensor) -> Self:
        """The laws with some tokens, or parts of them, certain; see `TokenKind.no_force`."""

    def keep(self, q: Any, drafts: Tensor, u: Tensor) -> Tensor:
        """The exact test of drafts: bool [B, Q], whether each passes by itself.

        Speculative sampling (Leviathan et al. 2023, Algorithm 1): a draft x is kept with chance
        min(1, p(x) / q(x)), p these laws. Strict: what p rules out is never kept.

        Args:
            q: [B, Q] laws of the same kind that the drafts were drawn from.
            drafts: [B, Q, *].
            u: fp32 [B, Q, *].
        """
        self._refuse("an exact test")

    def residual(self, q: Any, drafts: Tensor, numbers: Numbers) -> Redrawn:
        """What replaces refused drafts: draws from norm((p - q)+), p these laws.

        Args:
            q: [B, Q] laws of the drafts.
            drafts: [B, Q, *], refused by `keep` with `numbers.test`.
            numbers: of [B, Q] ranks.
        """
        self._refuse("a residual draw")

    def couple(
        self, q: Any, drafts: Tensor, numbers: Numbers, refused: Tensor | None = None
    ) -> Tensor:
        """Draws that differ from the drafts as rarely as may be (maximal coupling): [B, Q, *].

        Args:
            q: [B, Q] laws of the drafts.
            drafts: [B, Q, *].
            numbers: of [B, Q] ranks.
            refused: bool [B, Q], drafts that are replaced whatever the test says.
        """
        self._refuse("a coupling")

    def ratio(self, q: Any, tokens: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        """min(1, scale p / q) of tokens: fp32 [B, Q]. tokens: [B, Q, *]; scale: [Q] or [B, Q]."""
        self._refuse("a ratio of densities")

    def prob(self, tokens: Tensor) -> Tensor:
        """Probabilities of tokens: fp32 [B, Q]. tokens: [B, Q, *]."""
        return self.log_prob(tokens).exp()

    def log_prob(self, tokens: Tensor) -> Tensor:
        """Log-probabilities of tokens: fp32 [B, Q]. tokens: [B, Q, *]."""
        self._refuse("a density")

    def entropy(self) -> Tensor:
        """Entropy of every law in bits: fp32 [B, Q]."""
        self._refuse("an entropy")

    def uncertainty(self, tokens: Tensor) -> Tensor:
        """`entropy`, or where that has no closed form how surprising tokens [B, Q, *] are, which is
        the entropy on average if they were drawn: fp32 [B, Q], in bits.
        """
        return self.entropy()

    def _refuse(self, what: str) -> NoReturn:
        raise ValueError(f"a {type(self).__name__} must have {what} for this method, it has none")
