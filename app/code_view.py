"""Sends a picture through a tokenizer, measures what comes back, and swaps single codes.

Knows tokenizers; knows nothing about pages or generators.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from visual_ar.app.enlarge import enlarged
from visual_ar.evaluation.distortion import WINDOW, psnr, ssim
from visual_ar.size import Size
from visual_ar.tokenizers.visual_tokenizer import VisualTokenizer
from visual_ar.training.pixels import to_float, to_uint8

DIFFERENCE_GAIN = 4


@dataclass(frozen=True)
class View:
    """A picture as a tokenizer sees it.

    Attributes:
        original: uint8 [1, 3, H, W].
        tokens: [1, N] or, for codes of bits, [1, N, d].
        grid: (h, w) in cells.
        redrawn: uint8 [1, 3, H, W], what the tokens are decoded to.
        tokens_bits: information of all tokens.
    """

    original: Tensor
    tokens: Tensor
    grid: tuple[int, ...]
    redrawn: Tensor
    tokens_bits: float

    def row(self) -> list[str]:
        """Tokens, bits, PSNR and SSIM as text."""
        small = min(self.original.shape[2:]) < WINDOW
        similar = "" if small else f"{float(ssim(self.redrawn, self.original)):.4f}"
        return [
            f"{' x '.join(map(str, self.grid))} = {math.prod(self.grid)}",
            f"{self.tokens_bits:,.0f}",
            f"{float(psnr(self.redrawn, self.original)):.2f} dB",
            similar,
        ]

    def pictures(self) -> list[Image.Image]:
        """The original, the reconstruction and their difference, `DIFFERENCE_GAIN` times."""
        gap = (self.redrawn.int() - self.original.int()).abs() * DIFFERENCE_GAIN
        difference = gap.clamp(max=255).to(torch.uint8)
        return [_shown(self.original), _shown(self.redrawn), _shown(difference)]

    def marked(self, cell: tuple[int, int] | None = None) -> Image.Image:
        """The reconstruction, with a frame around a cell (row, column)."""
        picture = _shown(self.redrawn)
        if cell is not None:
            side = picture.width // self.grid[1]
            top, left = cell[0] * side, cell[1] * side
            box = (left, top, left + side - 1, top + side - 1)
            ImageDraw.Draw(picture).rectangle(box, outline=(255, 0, 128), width=3)
        return picture

    def cell_at(self, x: int, y: int) -> tuple[int, int]:
        """The cell (row, column) under a pixel of `marked`."""
        side = _shown(self.redrawn).width // self.grid[1]
        return min(y // side, self.grid[0] - 1), min(x // side, self.grid[1] - 1)


def see(tokenizer: VisualTokenizer, image: Image.Image, size: tuple[int, int]) -> View:
    """A picture through a tokenizer, cut to the middle and scaled.

    Args:
        tokenizer: encodes and decodes.
        image: RGB.
        size: (height, width) in pixels.
    """
    fitted = ImageOps.fit(image, size[::-1], Image.Resampling.LANCZOS)
    original = torch.frombuffer(bytearray(fitted.tobytes()), dtype=torch.uint8)
    original = original.view(1, *size, 3)
    pixels = to_float(original).to(tokenizer.device, tokenizer.dtype)
    tokens = tokenizer.encode(pixels)
    return _view(tokenizer, original.permute(0, 3, 1, 2), tokens, tokenizer.grid(Size(*size)))


def swapped(
    tokenizer: VisualTokenizer, view: View, cell: tuple[int, int], rank: int
) -> tuple[View, str]:
    """The view with the code of one cell replaced by a near one.

    Args:
        tokenizer: of the view.
        view: of a picture.
        cell: (row, column), counted from 0.
        rank: 1 for the nearest other code, 2 for the next.

    Returns:
        the new view, and a sentence on what was swapped.

    Raises:
        ValueError: there is no such cell or no such neighbour.
    """
    for name, at, side in zip(("row", "column"), cell, view.grid, strict=True):
        if not 0 <= at < side:
            raise ValueError(f"{name} must be from 0 to {side - 1}, got {at}")
    index = cell[0] * view.grid[1] + cell[1]
    tokens = view.tokens.clone()
    before = tokens[0, index].clone()
    tokens[0, index] = tokenizer.neighbour(before, rank)
    changed = _view(tokenizer, view.original, tokens, view.grid)
    affected = int((changed.redrawn != view.redrawn).any(1).sum())
    return changed, (
        f"Row {cell[0]}, column {cell[1]}: code {tokenizer.described(before)} became "
        f"{tokenizer.described(tokens[0, index])}, its neighbour number {rank}. {affected} pixels "
        f"changed; PSNR is {float(psnr(changed.redrawn, changed.original)):.2f} dB."
    )


def _shown(pixels: Tensor) -> Image.Image:
    """A picture in larger pixels. pixels: uint8 [1, 3, H, W]."""
    return enlarged(Image.fromarray(pixels[0].permute(1, 2, 0).contiguous().numpy()))


def _view(
    tokenizer: VisualTokenizer, original: Tensor, tokens: Tensor, grid: tuple[int, ...]
) -> View:
    redrawn = to_uint8(tokenizer.decode(tokens, grid)).cpu()
    bits = math.prod(grid) * math.log2(tokenizer.codebook_size)
    return View(original.cpu(), tokens, grid, redrawn, bits)
