"""What tokenizers of bits share: bool tokens, no code book; knows no architecture or generator."""

from __future__ import annotations

from abc import abstractmethod
from typing import NoReturn

import torch
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor

from visual_ar.tokenizers.binary_quantizers import BinaryQuantizer
from visual_ar.tokenizers.quantizers import Quantized
from visual_ar.tokenizers.visual_tokenizer import VisualTokenizer


class BitTokenizer(VisualTokenizer):
    """A tokenizer whose tokens are d bits, the signs of its latents: bool [B, N, d].

    There is no code book: 2^d codes have no table, so neighbours and code vectors are refused;
    `bit_codes` numbers tokens where a number is needed.

    Attributes:
        quantize: turns latents into bits and bits into what the decoder reads.
    """

    quantize: BinaryQuantizer

    @property
    def bits(self) -> int:
        """Bits of a token, d."""
        return self.config.bits

    @property
    def codebook_size(self) -> int:
        """Number of different tokens, 2^d, exactly."""
        return 2**self.bits

    @abstractmethod
    def latents(self, pixels: Tensor) -> Tensor:
        """Encoder output, whose signs are the bits. pixels: [B, 3, H, W]; -> [B, d, h, w]."""

    @abstractmethod
    def reconstruct(self, codes: Tensor) -> Tensor:
        """Pixels of codes in [-1, 1]. codes: [B, d, h, w]; returns [B, 3, H, W]."""

    def forward(self, pixels: Tensor) -> tuple[Tensor, Quantized]:
        """Reconstructs pictures through bits. pixels: [B, 3, H, W] in [-1, 1]."""
        quantized = self.quantize(self.latents(pixels))
        return self.reconstruct(quantized.codes), quantized

    @apply_forward_hook
    @torch.no_grad()
    def encode(self, pixels: Tensor, keep: int | None = None) -> Tensor:
        """The bits of pictures. pixels: [B, 3, H, W] in [-1, 1]; returns bool [B, N, d]."""
        self.check_pixels(pixels, keep)
        return self.quantize.encode(self.latents(pixels))

    @apply_forward_hook
    @torch.no_grad()
    def decode(self, tokens: Tensor, grid: tuple[int, int], known: Tensor | None = None) -> Tensor:
        """The pictures of bits.

        Args:
            tokens: bool [B, N, d].
            grid: (h, w) with h * w = N.
            known: bool [B, N]; cells that are False are drawn with the mean code, which is 0.

        Returns:
            float [B, 3, H, W], approximately in [-1, 1].

        Raises:
            ValueError: `tokens` or `known` does not fit `grid`, or the decoder has no such grid.
        """
        codes = self.lookup(tokens, grid)
        if known is not None:
            if known.shape != tokens.shape[:2]:
                raise ValueError(
                    f"known must be {list(tokens.shape[:2])}, one a cell, got {list(known.shape)}"
                )
            codes = codes * known.unflatten(1, grid)[:, None]
        return self.reconstruct(codes)

    def lookup(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """What the decoder reads: -s and s. tokens: bool [B, N, d]; returns [B, d, h, w]."""
        return self.quantize.lookup(tokens, grid).to(self.dtype)

    def code_vectors(self) -> NoReturn:
        """Refused: raises ValueError."""
        raise ValueError(
            f"a tokenizer of {self.bits} bits has no code book; a token is its own code vector"
        )

    def neighbours(self, k: int) -> NoReturn:
        """Refused: raises ValueError."""
        raise ValueError(
            f"a tokenizer of {self.bits} bits has no table of neighbours; the nearest tokens are "
            "those with one bit flipped"
        )
