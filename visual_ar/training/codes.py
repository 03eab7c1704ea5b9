"""The codes of a dataset, computed once and kept on disk; knows nothing about generators."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from visual_ar.tokenizers.base import VisualTokenizer
from visual_ar.training.pictures import shifted, to_float
from visual_ar.training.state import random_numbers

BATCH = 64
LARGEST = np.iinfo(np.uint16).max + 1


def cached_codes(
    tokenizer: VisualTokenizer,
    pictures: Tensor,
    crops: int,
    shift: int,
    seed: int,
    directory: Path,
    device: torch.device,
) -> Tensor:
    """Codes of every picture, from the file of an earlier call with the same arguments if any.

    Args:
        tokenizer: on `device`.
        pictures: uint8 [M, H, W, 3].
        crops: versions of each picture; the first is the picture itself, the others are shifted.
        shift: largest translation of a version, in pixels.
        seed: of the translations.
        directory: where the file is kept.
        device: where to compute.

    Returns:
        uint16 [crops, M, N].

    Raises:
        ValueError: the code book does not fit 16 bits.
    """
    if tokenizer.codebook_size > LARGEST:
        raise ValueError(f"codebook_size must be at most {LARGEST}, got {tokenizer.codebook_size}")
    path = directory / f"codes-{_digest(tokenizer, pictures, crops, shift, seed)}.npy"
    if not path.exists():
        codes = np.stack(
            [
                _encode(tokenizer, pictures, shift if crop else 0, seed + crop, device)
                for crop in range(crops)
            ]
        )
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.save(file, codes)
        os.replace(part, path)
    return torch.from_numpy(np.load(path))


@torch.inference_mode()
def _encode(
    tokenizer: VisualTokenizer, pictures: Tensor, shift: int, seed: int, device: torch.device
) -> np.ndarray:
    draw = random_numbers(seed)
    parts = []
    for part in pictures.split(BATCH):
        moved = shifted(part, shift, draw) if shift else part
        tokens = tokenizer.encode(to_float(moved.to(device)))
        parts.append(tokens.cpu().numpy().astype(np.uint16))
    return np.concatenate(parts)


def _digest(tokenizer: VisualTokenizer, pictures: Tensor, *arguments: int) -> str:
    """Names the tokenizer's weights, the pictures and how they are cut."""
    digest = hashlib.sha256(repr((tuple(pictures.shape), arguments)).encode())
    digest.update(pictures.numpy().tobytes())
    for name, value in sorted(tokenizer.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
