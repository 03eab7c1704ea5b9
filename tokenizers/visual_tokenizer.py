"""The contract of a visual tokenizer (pixels to tokens and back); knows no generator."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from diffusers import ConfigMixin
from torch import Tensor

from visual_ar.eight_bit import EightBitModel
from visual_ar.size import Size
from visual_ar.tokens.codes import Codes
from visual_ar.tokens.kind import TokenKind


class VisualTokenizer(EightBitModel, ConfigMixin):
    """Turns pictures or clips into grids of tokens and back.

    Pixels are floats in [-1, 1], [B, 3, H, W] or of clips [B, 3, T, H, W]; tokens are [B, N, *] of
    `tokens`, one per cell of the grid in raster order, N the product of the grid. A grid is (h, w),
    (t, h, w), or (N,) of a one-dimensional code.
    """

    config_name = "config.json"

    @property
    @abstractmethod
    def codebook_size(self) -> int:
        """Number of different tokens V."""

    @property
    def tokens(self) -> TokenKind:
        """What a token is."""
        return Codes(self.codebook_size)

    @property
    @abstractmethod
    def downsample(self) -> int:
        """Pixels along each side of one cell."""

    def grid(self, size: Size) -> tuple[int, ...]:
        """The grid of a picture, here (h, w).

        Raises:
            ValueError: a side is not a positive multiple of `downsample`, or a clip or a length is
                asked of a tokenizer that has none.
        """
        if size.frames is not None:
            raise ValueError(f"frames must be left out for a model of pictures, got {size.frames}")
        if size.length is not None:
            raise ValueError(f"length must be left out for a code without order, got {size.length}")
        for name, side in (("height", size.height), ("width", size.width)):
            if side < 1 or side % self.downsample:
                raise ValueError(
                    f"{name} must be a positive multiple of {self.downsample}, got {side}"
                )
        return size.height // self.downsample, size.width // self.downsample

    def check_pixels(self, pixels: Tensor, length: int | None) -> None:
        """Raises ValueError for what a code of pictures cannot encode; see `encode`."""
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(f"pixels must be [B, 3, H, W], got {list(pixels.shape)}")
        self.grid(Size(pixels.shape[2], pixels.shape[3], length=length))

    @abstractmethod
    def encode(self, pixels: Tensor, length: int | None = None) -> Tensor:
        """The tokens of pictures.

        Args:
            pixels: float [B, 3, H, W] in [-1, 1], or of clips [B, 3, T, H, W].
            length: how many leading tokens of an ordered code to keep.

        Returns:
            [B, N, *].

        Raises:
            ValueError: the size does not fit, or `length` is given for a code without order.
        """

    @abstractmethod
    def decode(
        self,
        tokens: Tensor,
        grid: tuple[int, ...],
        known: Tensor | None = None,
        seeds: Tensor | None = None,
    ) -> Tensor:
        """The pictures of tokens.

        Args:
            tokens: [B, N, *].
            grid: whose cells are N.
            known: bool [B, N]; cells that are False are drawn with the mean code. None: all known.
            seeds: int64 [B], of the pictures, for decoders that draw: a preview, the final picture
                and a redrawn recipe agree. Others do not read them.

        Returns:
            float [B, 3, H, W], or of clips [B, 3, T, H, W], approximately in [-1, 1].

        Raises:
            ValueError: `tokens` or `known` does not fit `grid`.
        """

    @abstractmethod
    def reconstruct(self, latents: Tensor, grid: tuple[int, ...] | None = None) -> Tensor:
        """Pixels of latents that were never snapped to tokens.

        Args:
            latents: [B, C, *grid].
            grid: where the shape of the latents does not tell it.
        """

    @abstractmethod
    def lookup(self, tokens: Tensor, grid: tuple[int, ...]) -> Tensor:
        """The code vectors. tokens: [B, N, *]; returns [B, C, *grid]."""

    @torch.no_grad()
    def code_vectors(self) -> Tensor:
        """The vector of every code: [V, C]."""
        every = torch.arange(self.codebook_size, device=self.device)[None]
        return self.lookup(every, (1, self.codebook_size))[0, :, 0].T.contiguous()

    @abstractmethod
    def neighbours(self, k: int) -> Tensor:
        """The k nearest other codes of every code, nearest first: int64 [V, k].

        Raises:
            ValueError: k is not in 1..V-1.
        """

    @torch.no_grad()
    def neighbour(self, token: Tensor, number: int) -> Tensor:
        """A near other token of the same shape.

        Args:
            token: int64 [], or of other kinds their shape.
            number: from 1, the nearest.

        Raises:
            ValueError: there are not so many.
        """
        check_neighbour(number, self.codebook_size - 1)
        vectors = self.code_vectors().float()
        distance = (vectors - vectors[token]).square().sum(1)
        distance[token] = torch.inf
        return distance.topk(number, largest=False).indices[-1]

    def described(self, token: Tensor) -> str:
        """A token for people."""
        return str(int(token))


def check_neighbour(number: int, most: int) -> None:
    """Raises ValueError unless there is a neighbour of this number."""
    if not 1 <= number <= most:
        raise ValueError(f"neighbour must be from 1 to {most}, got {number}")


def check_known(tokens: Tensor, known: Tensor, grid: tuple[int, ...]) -> None:
    """Raises ValueError unless `known` is bool [B, N] for tokens [B, N, *] of a grid."""
    if known.shape != (len(tokens), math.prod(grid)):
        raise ValueError(
            f"known must be {[len(tokens), math.prod(grid)]}, one a cell, got {list(known.shape)}"
        )
