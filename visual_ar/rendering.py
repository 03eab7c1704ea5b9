"""Tokens to what a caller wants to see; knows tokenizers and output types, no decoding."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.video_processor import VideoProcessor
from torch import Tensor

from visual_ar.tokenizers.visual_tokenizer import VisualTokenizer


@torch.no_grad()
def render(
    tokenizer: VisualTokenizer,
    tokens: Tensor,
    known: Tensor,
    grid: tuple[int, ...],
    output_type: str,
    seeds: Tensor | None = None,
) -> Any:
    """Turns tokens into pictures or clips; cells that are not known have the mean code.

    Args:
        tokenizer: decodes.
        tokens: [B, N, *] in raster order; not read where not known.
        known: bool [B, N] in raster order.
        grid: in cells.
        output_type: see `VisualAROutput`.
        seeds: int64 [B], of the pictures, for decoders that draw.
    """
    if output_type == "tokens":
        return tokens
    if output_type == "latent":
        latents = tokenizer.lookup(tokens, grid)
        return latents.masked_fill(~known.unflatten(1, grid)[:, None], 0)
    pixels = tokenizer.decode(tokens, grid, known, seeds).float()
    if pixels.dim() == 5:
        return VideoProcessor().postprocess_video(pixels, output_type=output_type)
    return VaeImageProcessor().postprocess(pixels, output_type=output_type)
