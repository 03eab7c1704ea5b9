"""Starts a text encoder: from the caption alone it learns to foretell the latents of the picture.

A picture's embedding as the target of its words, after DeViSE (Frome et al. 2013), here the codes'
own vectors. A caption is one short line against 256 cells, and a generator alone takes tens of
passes over the pictures to learn to listen to it; an encoder that already knows what the picture
looks like is listened to from the first hundred steps. Knows nothing about generators.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from visual_ar.text_encoder import TextEncoder
from visual_ar.training.progress import Log, derived_seed, random_numbers
from visual_ar.training.recipe import Captions
from visual_ar.training.subjects import TextConditions
from visual_ar.write_beside import written_beside

STREAM = 3
WARMUP = 50
ROW = 50
CLIP = 1.0


class CaptionModel(nn.Module):
    """A text encoder and the linear map from the mean of its features to a picture's latents.

    Args:
        encoder: what is trained.
        latents: of pictures of the dataset, int64 [B] to fp32 [B, L]: the vectors of a picture's
            codes one after the other.
        indices: int64 [m], the pictures to train on, whose mean it starts from.
    """

    def __init__(
        self, encoder: TextEncoder, latents: Callable[[Tensor], Tensor], indices: Tensor
    ) -> None:
        super().__init__()
        self.latents = latents
        given = latents(indices)
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.feature_dim, given.shape[1], device=given.device)
        with torch.no_grad():
            self.head.bias.copy_(given.mean(0))
        self._variance = float((given - given.mean(0)).square().mean())

    def loss(self, features: Tensor, indices: Tensor) -> Tensor:
        """Mean squared error over the latents' variance: 1 for knowing nothing.

        Args:
            features: [B, T, C], of captions.
            indices: int64 [B], of their pictures.
        """
        foretold = self.head(features.float().mean(1))
        return (foretold - self.latents(indices)).square().mean() / self._variance


def start_captions(
    model: CaptionModel,
    conditions: TextConditions,
    indices: Tensor,
    weights: Tensor,
    options: Captions,
    seed: int,
    output: Path,
) -> None:
    """Trains `model` in place, or reads what an earlier call with the same arguments had trained.

    Args:
        model: in training mode.
        conditions: the captions of the dataset.
        indices: int64 [M], pictures to train on.
        weights: float64 [M], chance of each.
        options: of the recipe.
        seed: of the order of the pictures and the hiding of words.
        output: where the result and `captions.csv` go.
    """
    digest = _digest(model, conditions, indices, weights, options, seed)
    path = output / f"captions-{digest}.safetensors"
    if path.exists():
        model.load_state_dict(load_file(path))
        return
    optimiser = _optimiser(model, options)
    log = Log(output / "captions.csv", 0)
    for step in range(options.steps):
        draw = random_numbers(seed, STREAM, step)
        chosen = indices[torch.multinomial(weights, options.batch, True, generator=draw)]
        torch.manual_seed(derived_seed(seed, STREAM, step))
        loss = model.loss(conditions.vary(chosen, model.encoder, draw).given, chosen)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        decay = 0.5 * (1 + math.cos(math.pi * step / options.steps)) * min(1, (step + 1) / WARMUP)
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * decay
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if (step + 1) % ROW == 0:
            log.write({"step": step + 1, "loss": float(loss.detach())})
    weights_now = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
    with written_beside(path) as part:
        save_file(weights_now, part)


def _digest(
    model: CaptionModel,
    conditions: TextConditions,
    indices: Tensor,
    weights: Tensor,
    options: Captions,
    seed: int,
) -> str:
    """Names what is trained, on what and how; see `start_captions`."""
    network = sorted((k, v) for k, v in model.encoder.config.items() if not k.startswith("_"))
    how = (options.steps, options.batch, options.learning_rate, options.embedding_rate, seed)
    digest = hashlib.sha256(repr((network, how, conditions.told(indices))).encode())
    for tensor in (indices, weights, model.latents(indices)):
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _optimiser(model: CaptionModel, options: Captions) -> torch.optim.AdamW:
    tables = [m.weight for m in model.encoder.modules() if isinstance(m, nn.Embedding)]
    known = {id(table) for table in tables}
    rest = [p for p in model.parameters() if id(p) not in known]
    groups = [
        {"params": tables, "peak": options.learning_rate * options.embedding_rate},
        {"params": rest, "peak": options.learning_rate},
    ]
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
