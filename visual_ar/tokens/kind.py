"""The contract of a kind of token; knows no model, no layout and no decoding.

Whoever handles tokens asks their kind: how they are stored, drawn, forced, hidden and compared.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from visual_ar.layout import FREE
from visual_ar.sampling import Sampling, Warps
from visual_ar.tokens.law import Law
from visual_ar.tokens.numbers import Numbers

TEST = "an exact test of drafts"
RATIO = "the odds of a draft"
TABLE = "a table of all tokens"
PARTS = "tests of the parts of a draft"
FLIPS = "tokens that differ in one part"
"""What laws can tell, see `TokenKind.offers`."""


class TokenKind(ABC):
    """What a token is, and the law it takes from a head's output.

    Attributes:
        shape: of a token: () for a code, (d,) for a vector.
        dtype: of a token.
        offers: what its laws can tell: some of TEST, RATIO, TABLE, PARTS and
            FLIPS.
        waits: whether a residual draw may have to be asked for again in the next pass.
    """

    dtype: ClassVar[torch.dtype]
    offers: ClassVar[frozenset[str]] = frozenset()
    waits: ClassVar[bool] = False

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of a token."""

    @property
    def number_shape(self) -> tuple[int, ...]:
        """Of the uniform numbers that draw a token."""
        return self.shape

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Of the noise that `Law.draw_frozen` reads for a rank."""
        return self.number_shape

    @property
    @abstractmethod
    def name(self) -> str:
        """For people, such as "codes of 16384" or "16 bits"."""

    @property
    def count(self) -> int | None:
        """How many different tokens there are, exactly; None where they are real numbers."""
        return None

    def fits(self, other: TokenKind) -> bool:
        """Whether tokens of the other kind are the same things, whatever their laws."""
        one, two = (self.shape, self.dtype, self.count), (other.shape, other.dtype, other.count)
        return one == two

    def blank(self, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """Tokens that stand where none is known: `shape` of them."""
        return torch.zeros(*shape, *self.shape, dtype=self.dtype, device=device)

    def index(self, ranks: Tensor) -> Tensor:
        """Ranks as `gather` and `scatter` take them. int64 [B, Q]; returns int64 [B, Q, *]."""
        return self.spread(ranks).expand(*ranks.shape, *self.shape)

    def spread(self, per_token: Tensor) -> Tensor:
        """What is said of whole tokens, so that it meets tokens. [B, Q]; returns [B, Q, 1...]."""
        return per_token.view(*per_token.shape, *[1] * len(self.shape))

    def same(self, one: Tensor, other: Tensor) -> Tensor:
        """Whether tokens are equal: bool [B, Q]. Both [B, Q, *]."""
        equal = one == other
        return equal.flatten(2).all(-1) if self.shape else equal

    # Laws

    @abstractmethod
    def law(
        self,
        conditional: Tensor,
        unconditional: Tensor | None,
        scale: Tensor,
        options: Sampling,
        warps: Warps,
    ) -> Law:
        """The guided, warped laws of a head's output.

        Args:
            conditional: [B, Q, *], from `TokenModel.predict`.
            unconditional: likewise, or None without guidance.
            scale: fp32 [B, Q], guidance of each rank.
            options: of the B pictures; its guidance and seed are not read.
            warps: what any picture needs.

        Raises:
            ValueError: a warp that these laws cannot have.
        """

    def check_warps(self, warps: Warps) -> None:  # noqa: B027  (most have none to refuse)
        """Raises ValueError for a warp that these laws cannot have."""

    def width(self, guided: bool) -> int:
        """Numbers F that a law is kept as between passes, see `Law.features`."""
        raise ValueError(f"tokens that are {self.name} have no laws that can be kept")

    def law_from(self, features: Tensor, temperature: Tensor) -> Any:
        """The laws of features that were kept. features: fp32 [B, Q, F]; temperature: fp32 [B]."""
        raise ValueError(f"tokens that are {self.name} have no laws that can be kept")

    def flat(self, width: int, device: torch.device) -> Tensor:
        """Features of the law of `flat_tokens`: fp32, expandable to [B, Q, F]. width: F."""
        raise ValueError(f"tokens that are {self.name} have no flat law")

    def certain(self, tokens: Tensor, width: int) -> Tensor:
        """Features of the laws that always give some tokens: fp32 [B, Q, F]. width: F."""
        raise ValueError(f"tokens that are {self.name} have no laws that can be kept")

    @abstractmethod
    def flat_tokens(self, u: Tensor) -> Tensor:
        """Tokens that tell nothing, drawn evenly where there are finitely many. u: [B, Q, *]."""

    # Random numbers

    @abstractmethod
    def uniforms(self, seed: Tensor, ranks: Tensor, attempt: Tensor) -> Tensor:
        """Uniform numbers of ranks, for every use: fp32 [U, ..., *] in (0, 1).

        Args:
            seed: int64, broadcastable against the others.
            ranks: int64 [...].
            attempt: int64, the picture's own count of passes.
        """

    @abstractmethod
    def numbers(self, u: Tensor, seed: Tensor, ranks: Tensor, attempt: Tensor) -> Numbers:
        """`uniforms` by their uses. u: [U, B, Q, *]; seed, attempt: int64 [B]; ranks: [B, Q]."""

    @abstractmethod
    def noise(self, seed: Tensor, ranks: Tensor) -> Tensor:
        """Noise that is fixed for every (seed, rank). int64 [B], int64 [M]; fp32 [B, M, *]."""

    # Forced tokens

    def no_force(self, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """What forces nothing on `shape` tokens; for whole numbers int64, `FREE` everywhere."""
        return torch.full((*shape, *self.shape), FREE, dtype=torch.int64, device=device)

    def forces(self, forced: Tensor) -> Tensor:
        """Where something is forced, part by part: bool of the shape of `forced`."""
        return forced >= 0

    def force(self, tokens: Tensor, forced: Tensor) -> Tensor:
        """Tokens with what is forced in its place. Both [B, Q, *]."""
        return torch.where(self.forces(forced), forced.to(tokens.dtype), tokens)

    def forced_to(self, tokens: Tensor, kept: Tensor) -> Tensor:
        """What forces the tokens of some cells. tokens: [B, N, *]; kept: bool [1 or B, N]."""
        free = self.no_force(1, 1, device=tokens.device)
        return torch.where(self.spread(kept), tokens.to(free.dtype), free)

    @abstractmethod
    def check_forced(self, forced: Tensor, who: str) -> None:
        """Raises ValueError unless a layout forces tokens of this kind. who: has the tokens."""

    # What others see

    @property
    def can_end(self) -> bool:
        """Whether some token ends a picture before all ranks are drawn."""
        return False

    def ends(self, tokens: Tensor) -> Tensor:
        """Which tokens end a picture: bool [B, Q]. Only asked of kinds that `can_end`."""
        raise ValueError(f"tokens that are {self.name} end no picture")

    def hidden(self, tokens: Tensor, known: Tensor) -> Tensor:
        """Tokens as they are shown, blank where not known. [B, N, *]; known: bool [B, N]."""
        return torch.where(self.spread(known), tokens, torch.zeros_like(tokens))

    def readable(self, tokens: Tensor) -> Tensor:
        """What `hidden` gave, as a tokenizer can read it."""
        return tokens
