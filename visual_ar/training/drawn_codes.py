"""The codes of a dataset, computed once and kept on disk; knows nothing about generators."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from visual_ar.conditioning.condition import Condition
from visual_ar.tokenizers.visual_tokenizer import VisualTokenizer
from visual_ar.tokenizers.vq import VQTokenizer
from visual_ar.training.pixels import shifted, to_float
from visual_ar.training.progress import random_numbers
from visual_ar.write_beside import written_beside

BATCH = 64
LARGEST = np.iinfo(np.uint16).max + 1
CHOICES = 8  # codes told of a soft cell; of emoji at temperature 0.02 they have 87 % of the chances


AnyDrawn = TypeVar("AnyDrawn", bound=Any)  # a named tuple of `inputs` [B, N, *] and others


class CachedCodes(NamedTuple):
    """The codes of every cell, nearest first, and their chances.

    Attributes:
        tokens: uint16 [crops, M, N, K].
        chances: float16 [crops, M, N, K], summing to 1 over K.
    """

    tokens: Tensor
    chances: Tensor

    @property
    def nearest(self) -> Tensor:
        """The codes of the pictures themselves, not shifted: uint16 [M, N]."""
        return self.tokens[0, :, :, 0]

    def ordered(self, order: Tensor) -> CachedCodes:
        """The same in decode order. order: int64 [N], rank -> cell."""
        return CachedCodes(self.tokens[:, :, order], self.chances[:, :, order])

    def draw(self, crops: Tensor, pictures: Tensor, draw: torch.Generator) -> Drawn:
        """Cells with one code drawn for each. crops, pictures: int64 [B]."""
        tokens = self.tokens[crops, pictures].long()
        chances = self.chances[crops, pictures].float()
        chosen = torch.multinomial(chances.flatten(0, 1), 1, generator=draw)
        one = tokens.gather(-1, chosen.view(*tokens.shape[:2], 1))[..., 0]
        return Drawn(one, tokens, chances)

    def latents_of(
        self, tokenizer: VQTokenizer, device: torch.device
    ) -> Callable[[Tensor], Tensor]:
        """What captions foretell: of pictures int64 [B], the codes' vectors, fp32 [B, L]."""
        vectors, nearest = tokenizer.quantize.codebook().detach().float(), self.nearest
        return lambda pictures: vectors[nearest[pictures].to(device, torch.int64)].flatten(1)


class Drawn(NamedTuple):
    """A batch of codes.

    Attributes:
        inputs: int64 [B, N], one code a cell.
        labels: int64 [B, N, K], all codes of each cell.
        chances: float32 [B, N, K], of the labels.
    """

    inputs: Tensor
    labels: Tensor
    chances: Tensor

    def to(self, device: torch.device) -> Drawn:
        """The same on another device."""
        return Drawn(*(tensor.to(device) for tensor in self))

    def with_mistakes(self, wrong: float, flipped: float, draw: torch.Generator) -> Drawn:
        """The same with `mislead` of `wrong`; codes have no bits that `flipped` could change."""
        return mislead(self, wrong, draw)

    def loss(self, model: Any, condition: Condition, same_columns: bool) -> Tensor:
        """Mean cross-entropy of a generator, nats a token; see `LlamaGen.logits`."""
        logits = model.logits(self.inputs, condition, same_columns)
        return soft_cross_entropy(logits, self.labels, self.chances)


def soft_cross_entropy(logits: Tensor, labels: Tensor, chances: Tensor) -> Tensor:
    """Mean cross-entropy, nats a token.

    Args:
        logits: [B, Q, V].
        labels: int64 [B, Q, K], codes of each cell.
        chances: [B, Q, K], of the labels.
    """
    return -(chances * logits.log_softmax(-1).gather(-1, labels)).sum(-1).mean()


def mislead(drawn: AnyDrawn, largest: float, draw: torch.Generator) -> AnyDrawn:
    """Puts the codes of the batch's next picture into the inputs of every second picture or so.

    Of the others a share evenly distributed in [0, largest] is replaced, the labels stay: what
    comes after a wrong code is learned too (scheduled sampling, Bengio et al. 2015, with codes of
    other pictures for the model's own mistakes).
    """
    batch = len(drawn.inputs)
    share = largest * (2 * torch.rand(batch, 1, generator=draw) - 1)
    wrong = torch.rand(drawn.inputs.shape[:2], generator=draw) < share
    wrong = wrong.view(*wrong.shape, *[1] * (drawn.inputs.dim() - 2))
    return drawn._replace(inputs=torch.where(wrong, drawn.inputs.roll(-1, 0), drawn.inputs))


def cached_codes(
    tokenizer: VQTokenizer,
    pictures: Tensor,
    crops: int,
    shift: int,
    soft: float,
    seed: int,
    directory: Path,
    device: torch.device,
) -> CachedCodes:
    """Codes of every picture, from the file of an earlier call with the same arguments if any.

    Args:
        tokenizer: on `device`.
        pictures: uint8 [M, H, W, 3].
        crops: versions of each picture; the first is the picture itself, the others are shifted.
        shift: largest translation of a version, in pixels.
        soft: temperature of the chances, see `VectorQuantizer.soften`; 0 for the nearest code only.
        seed: of the translations.
        directory: where the file is kept.
        device: where to compute.

    Returns:
        K = 8 codes a cell, or one for `soft=0`.

    Raises:
        ValueError: the code book does not fit 16 bits.
    """
    if tokenizer.codebook_size > LARGEST:
        raise ValueError(f"codebook_size must be at most {LARGEST}, got {tokenizer.codebook_size}")
    path = directory / f"codes-{digest(tokenizer, pictures, crops, shift, soft, seed)}.npz"
    if not path.exists():
        versions = [
            _encode(tokenizer, pictures, shift if crop else 0, soft, seed + crop, device)
            for crop in range(crops)
        ]
        with written_beside(path) as part, part.open("wb") as file:
            np.savez(
                file,
                tokens=np.stack([tokens for tokens, _ in versions]),
                chances=np.stack([chances for _, chances in versions]),
            )
    with np.load(path) as arrays:
        return CachedCodes(torch.from_numpy(arrays["tokens"]), torch.from_numpy(arrays["chances"]))


@torch.inference_mode()
def _encode(
    tokenizer: VQTokenizer,
    pictures: Tensor,
    shift: int,
    soft: float,
    seed: int,
    device: torch.device,
) -> tuple[np.ndarray, np.ndarray]:
    """uint16 and float16 [M, N, K]."""
    draw = random_numbers(seed)
    count = min(CHOICES, tokenizer.codebook_size)
    tokens, chances = [], []
    for part in pictures.split(BATCH):
        pixels = to_float((shifted(part, shift, draw) if shift else part).to(device))
        if soft:
            codes, weights = tokenizer.soft_encode(pixels, count, soft)
        else:
            codes = tokenizer.encode(pixels)[..., None]
            weights = torch.ones_like(codes)
        tokens.append(codes.cpu().numpy().astype(np.uint16))
        chances.append(weights.cpu().numpy().astype(np.float16))
    return np.concatenate(tokens), np.concatenate(chances)


def digest(tokenizer: VisualTokenizer, pictures: Tensor, *arguments: float) -> str:
    """Names the tokenizer's weights and options, the pictures and how they are cut."""
    # Options such as norm_groups change the tokens of the same weights.
    options = sorted((k, v) for k, v in tokenizer.config.items() if not k.startswith("_"))
    plain = json.dumps(options)  # where options were loaded, lists stand for tuples
    digest = hashlib.sha256(repr((tuple(pictures.shape), arguments, plain)).encode())
    digest.update(pictures.numpy().tobytes())
    for name, value in sorted(tokenizer.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
