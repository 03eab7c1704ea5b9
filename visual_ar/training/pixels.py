"""Pictures in training: conversions, shifts and sheets; knows nothing about models."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from visual_ar.write_beside import written_beside


def shifted(pictures: Tensor, shift: int, draw: torch.Generator) -> Tensor:
    """Moves each picture by up to `shift` pixels, repeating its border. uint8 [B, H, W, 3]."""
    batch, height, width, _ = pictures.shape
    offsets = torch.randint(-shift, shift + 1, (2, batch, 1), generator=draw)
    rows = (torch.arange(height) + offsets[0]).clamp(0, height - 1)
    columns = (torch.arange(width) + offsets[1]).clamp(0, width - 1)
    return pictures[torch.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]


def save_sheet(path: Path, pictures: Tensor, columns: int) -> None:
    """Saves pictures as one sheet. pictures: float [B, 3, H, W] in [-1, 1]."""
    count, _, height, width = pictures.shape
    rows = math.ceil(count / columns)
    pad = pictures.new_ones(rows * columns - count, 3, height, width)
    tiles = to_uint8(torch.cat((pictures, pad))).unflatten(0, (rows, columns))
    sheet = tiles.permute(0, 3, 1, 4, 2).reshape(rows * height, columns * width, 3)
    with written_beside(path) as part:
        Image.fromarray(sheet.cpu().numpy()).save(part, format="PNG")


def to_float(pictures: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] to float [B, 3, H, W] in [-1, 1], channels last in memory."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(pictures: Tensor) -> Tensor:
    """float [..., 3, H, W] in [-1, 1] to uint8 of the same shape."""
    return (pictures.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
