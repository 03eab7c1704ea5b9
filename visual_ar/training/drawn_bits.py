"""The tokens of a dataset as bits, computed once and kept on disk; knows no generator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from visual_ar.conditioning.condition import Condition
from visual_ar.tokenizers.binary import BinaryTokenizer
from visual_ar.training.drawn_codes import BATCH, digest, mislead
from visual_ar.training.pixels import shifted, to_float
from visual_ar.training.progress import random_numbers
from visual_ar.write_beside import written_beside


class DrawnBits(NamedTuple):
    """A batch of tokens: what the model is fed, and what it should say. Both bool [B, N, d]."""

    inputs: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> DrawnBits:
        """The same on another device."""
        return DrawnBits(self.inputs.to(device), self.labels.to(device))

    def with_mistakes(self, wrong: float, flipped: float, draw: torch.Generator) -> DrawnBits:
        """The same with `mislead` of `wrong`, then `flip` of `flipped`."""
        return flip(mislead(self, wrong, draw), flipped, draw)

    def loss(self, model: Any, condition: Condition, same_columns: bool) -> Tensor:
        """Mean cross-entropy of a generator, nats a token; see `LlamaGen.features`."""
        hidden = model.features(self.inputs, condition, same_columns)
        return model.token_loss(hidden, self.labels).mean()


class CachedBits(NamedTuple):
    """The tokens of every cell. tokens: bool [crops, M, N, d]."""

    tokens: Tensor

    def ordered(self, order: Tensor) -> CachedBits:
        """The same in decode order. order: int64 [N], rank -> cell."""
        return CachedBits(self.tokens[:, :, order])

    def draw(self, crops: Tensor, pictures: Tensor, draw: torch.Generator) -> DrawnBits:
        """Tokens of some versions of some pictures. crops, pictures: int64 [B]."""
        tokens = self.tokens[crops, pictures]
        return DrawnBits(tokens, tokens)

    def latents(self, pictures: Tensor) -> Tensor:
        """The signs of the pictures' own bits, one after the other: fp32 [B, N d]."""
        return self.tokens[0, pictures].flatten(1).float() * 2 - 1

    def latents_of(
        self, tokenizer: BinaryTokenizer, device: torch.device
    ) -> Callable[[Tensor], Tensor]:
        """What captions foretell: `latents` of pictures int64 [B], on a device."""
        return lambda pictures: self.latents(pictures).to(device)


def cached_bits(
    tokenizer: BinaryTokenizer,
    pictures: Tensor,
    crops: int,
    shift: int,
    seed: int,
    directory: Path,
    device: torch.device,
) -> CachedBits:
    """Tokens of every picture, from the file of an earlier call with the same arguments if any.

    Args:
        tokenizer: on `device`.
        pictures: uint8 [M, H, W, 3].
        crops: versions of each picture; the first is the picture itself, the others are shifted.
        shift: largest translation of a version, in pixels.
        seed: of the translations.
        directory: where the file is kept.
        device: where to compute.
    """
    path = directory / f"bits-{digest(tokenizer, pictures, crops, shift, seed)}.npz"
    if not path.exists():
        versions = [
            _encode(tokenizer, pictures, shift if crop else 0, seed + crop, device)
            for crop in range(crops)
        ]
        with written_beside(path) as part, part.open("wb") as file:
            np.savez(file, packed=np.packbits(np.stack(versions), axis=-1))
    with np.load(path) as arrays:
        bits = np.unpackbits(arrays["packed"], axis=-1, count=tokenizer.tokens.shape[0])
    return CachedBits(torch.from_numpy(bits).bool())


def flip(drawn: DrawnBits, largest: float, draw: torch.Generator) -> DrawnBits:
    """Flips input bits: a share of each picture's, evenly distributed in [0, largest].

    The labels stay, so that the model learns to go on from its own mistakes: bitwise
    self-correction, Han et al. (2024), "Infinity", section 3.3; each bit by itself, as BitDance.
    """
    share = largest * torch.rand(len(drawn.inputs), 1, 1, generator=draw)
    wrong = torch.rand(drawn.inputs.shape, generator=draw) < share
    return drawn._replace(inputs=drawn.inputs ^ wrong)


@torch.inference_mode()
def _encode(
    tokenizer: BinaryTokenizer, pictures: Tensor, shift: int, seed: int, device: torch.device
) -> np.ndarray:
    """bool [M, N, d]."""
    draw = random_numbers(seed)
    parts = [
        tokenizer.encode(to_float((shifted(part, shift, draw) if shift else part).to(device)))
        for part in pictures.split(BATCH)
    ]
    return torch.cat(parts).cpu().numpy()
