"""The contract of a visual tokenizer (pixels to codes and back); knows nothing about generators."""

from __future__ import annotations

from abc import abstractmethod

import torch
from diffusers import ConfigMixin
from torch import Tensor

from visual_ar.eight_bit import EightBitModel


class VisualTokenizer(EightBitModel, ConfigMixin):
    """Turns pictures into grids of codes and codes back into pictures.

    Pixels are floats in [-1, 1]; tokens are one per cell of the grid, flattened row by row to
    N = h * w: int64 codes in 0..codebook_size-1, or for binary tokenizers bool [B, N, d] bits.
    """

    config_name = "config.json"

    @property
    @abstractmethod
    def codebook_size(self) -> int:
        """Number of codes V."""

    @property
    def bits(self) -> int:
        """Bits of a token d, where tokens are bool [B, N, d]; 0 for codes."""
        return 0

    @property
    @abstractmethod
    def downsample(self) -> int:
        """Pixels along each side of one cell."""

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """The grid (h, w) of a picture of this size in pixels.

        Raises:
            ValueError: a side is not a positive multiple of `downsample`.
        """
        for name, side in (("height", height), ("width", width)):
            if side < 1 or side % self.downsample:
                raise ValueError(
                    f"{name} must be a positive multiple of {self.downsample}, got {side}"
                )
        return height // self.downsample, width // self.downsample

    def check_pixels(self, pixels: Tensor, keep: int | None) -> None:
        """Raises ValueError for what a two-dimensional code cannot encode; see `encode`."""
        if keep is not None:
            raise ValueError(f"keep must be None for a two-dimensional code, got {keep}")
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(f"pixels must be [B, 3, H, W], got {list(pixels.shape)}")
        self.grid(pixels.shape[2], pixels.shape[3])

    @abstractmethod
    def encode(self, pixels: Tensor, keep: int | None = None) -> Tensor:
        """The codes of pictures.

        Args:
            pixels: float [B, 3, H, W] in [-1, 1].
            keep: how many leading tokens of an ordered one-dimensional code to keep.

        Returns:
            int64 [B, N].

        Raises:
            ValueError: the size does not fit the grid, or `keep` is given for a code without order.
        """

    @abstractmethod
    def decode(self, tokens: Tensor, grid: tuple[int, int], known: Tensor | None = None) -> Tensor:
        """The pictures of codes.

        Args:
            tokens: int64 [B, N].
            grid: (h, w) with h * w = N.
            known: bool [B, N]; cells that are False are drawn with the mean code. None: all known.

        Returns:
            float [B, 3, H, W], approximately in [-1, 1].

        Raises:
            ValueError: `tokens` or `known` does not fit `grid`.
        """

    @abstractmethod
    def lookup(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """The code vectors. tokens: int64 [B, N]; returns [B, C, h, w]."""

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
