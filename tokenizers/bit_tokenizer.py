"""What tokenizers of bits share: bool tokens, no code book; knows no architecture or generator."""

from __future__ import annotations

from abc import abstractmethod
from typing import NoReturn

import torch
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor

from visual_ar.tokenizers.binary_quantizers import BinaryQuantizer
from visual_ar.tokenizers.quantizers import Quantized
from visual_ar.tokenizers.visual_tokenizer import (
    VisualTokenizer,
    check_known,
    check_neighbour,
)
from visual_ar.tokens.bits import Bits
from visual_ar.tokens.kind import TokenKind


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
    def tokens(self) -> TokenKind:
        """Vectors of `bits`."""
        return Bits(self.bits)

    @property
    def codebook_size(self) -> int:
        """Number of different tokens, 2^d, exactly."""
        return 2**self.bits

    @abstractmethod
    def latents(self, pixels: Tensor) -> Tensor:
        """Encoder output, whose signs are the bits. pixels: [B, 3, H, W]; -> [B, d, h, w]."""

    def forward(self, pixels: Tensor) -> tuple[Tensor, Quantized]:
        """Reconstructs pictures through bits. pixels: [B, 3, H, W] in [-1, 1]."""
        quantized = self.quantize(self.latents(pixels))
        return self.reconstruct(quantized.codes), quantized

    @apply_forward_hook
    @torch.no_grad()
    def encode(self, pixels: Tensor, length: int | None = None) -> Tensor:
        """The bits of pictures. pixels: [B, 3, H, W] in [-1, 1]; returns bool [B, N, d]."""
        self.check_pixels(pixels, length)
        return self.quantize.encode(self.latents(pixels))

    @apply_forward_hook
    @torch.no_grad()
    def decode(
        self,
        tokens: Tensor,
        grid: tuple[int, ...],
        known: Tensor | None = None,
        seeds: Tensor | None = None,
    ) -> Tensor:
        """The pictures of bits, see `VisualTokenizer.decode`. The mean code is 0.

        tokens: bool [B, N, d].
        """
        codes = self.lookup(tokens, grid)
        if known is not None:
            check_known(tokens, known, grid)
            codes = codes * known.unflatten(1, grid)[:, None]
        return self.reconstruct(codes)

    def lookup(self, tokens: Tensor, grid: tuple[int, ...]) -> Tensor:
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

    def neighbour(self, token: Tensor, number: int) -> Tensor:
        """See `VisualTokenizer.neighbour`: with one bit flipped. token: bool [d]."""
        check_neighbour(number, self.bits)
        return token ^ (torch.arange(self.bits, device=token.device) == number - 1)

    def described(self, token: Tensor) -> str:
        """See `VisualTokenizer.described`."""
        return "".join(str(int(bit)) for bit in token)
