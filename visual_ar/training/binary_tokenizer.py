"""The training of a tokenizer whose tokens are bits; knows nothing about generators.

The entropy loss is that of Yu et al. (2023), "Language model beats diffusion", equation 3, in the
form of the quantizer that the recipe names; the loop and the other losses are those of `tokenizer`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visual_ar import loading
from visual_ar.tokenizers.binary import BinaryTokenizer
from visual_ar.tokenizers.binary_quantizers import (
    BinaryQuantizer,
    BinarySphericalQuantizer,
    GroupedLookupFreeQuantizer,
    LookupFreeQuantizer,
    marginal_entropy,
)
from visual_ar.tokenizers.quantizers import Quantized
from visual_ar.training.recipe import Binary
from visual_ar.training.tokenizer import TokenizerTraining

_DEEPER = re.compile(r"^decoder\.(up\.\d+\.block|mid_block)\.[1-9]\d*\.")
RAMP = 3.0  # the entropy weight starts at so many times its value


class BinaryTokenizerTraining(TokenizerTraining):
    """One run; `train` goes on from the last checkpoint in `output`."""

    @property
    def _options(self) -> Binary:
        assert self.recipe.binary is not None
        return self.recipe.binary

    def _fingerprints(self) -> dict[str, str]:
        if not self.recipe.encoder:
            return {}
        return {"encoder": loading.fingerprint(self._trained_folder())}

    def _build(self) -> BinaryTokenizer:
        model = BinaryTokenizer(**self.recipe.model)
        if self.recipe.encoder:
            try:
                trained = BinaryTokenizer.from_pretrained(self._trained_folder())
                start_decoder(model, trained.state_dict())
            except ValueError as problem:
                raise ValueError(
                    f"model must be that of {self.recipe.encoder}, {problem}"
                ) from None
            model.encoder.requires_grad_(False)
        return model

    def _trained_folder(self) -> Path:
        """The tokenizer of the run whose encoder this one keeps."""
        path = self.output.parent / self.recipe.encoder / "model"
        if not path.is_dir():
            raise FileNotFoundError(
                f"the encoder must be trained first: recipe {path.parent.name} into {path.parent}"
            )
        return path

    def _prepare(self) -> None:
        config, kappa = self.model.config, self._options.inverse_temperature
        quantizers: dict[str, type[BinaryQuantizer]] = {
            "lfq": LookupFreeQuantizer,
            "grouped-lfq": GroupedLookupFreeQuantizer,
            "bsq": BinarySphericalQuantizer,
        }
        make: Any = quantizers[self._options.quantizer]
        self.quantizer: BinaryQuantizer = make(*self.model.tokens.shape, config.bit_groups, kappa)

    def _before_step(self, progress: float) -> None:
        """Nothing: bits replace the latents from the first step."""

    def _quantise(self, latents: Tensor) -> tuple[Tensor, Quantized]:
        quantized = self.quantizer(latents)
        # The decoder is trained on the signs that it will be given.
        return quantized.codes / self.quantizer.scale, quantized

    def _quantizer_terms(self, quantized: Quantized, progress: float) -> dict[str, Tensor]:
        options, losses = self._options, quantized.losses
        left = max(0.0, 1 - progress / options.ramp) if options.ramp else 0.0
        weight = options.entropy * (1 + (RAMP - 1) * left)
        return {
            "commitment": self.recipe.loss.commitment * losses["commitment"],
            "entropy": weight * losses["entropy"],
        }

    def _after_step(self, quantized: Quantized, progress: float) -> dict[str, Any]:
        names = ("sample_entropy", "batch_entropy")
        told = {name: float(quantized.statistics[name]) for name in names}
        return told | self._usage_of(quantized.tokens)

    def _usage_of(self, tokens: Tensor) -> dict[str, Any]:
        """The smallest and the mean marginal entropy of a bit. tokens: bool [B, N, d]."""
        entropy = marginal_entropy(tokens)
        return {
            "bit_entropy_min": float(entropy.min()),
            "bit_entropy_mean": float(entropy.mean()),
        }

    def _finish(self) -> dict[str, Any]:
        measured = super()._finish()
        entropy = marginal_entropy(self._encode(self.train_pictures))
        return measured | {"train_bit_entropies": [round(float(bit), 4) for bit in entropy]}

    def _token_state(self) -> dict[str, Any]:
        return {}

    def _restore_tokens(self, state: dict[str, Any]) -> None:
        """Nothing: the quantizers have no state."""


@torch.no_grad()
def start_decoder(model: BinaryTokenizer, trained: Mapping[str, Tensor]) -> None:
    """Gives a tokenizer the weights of a trained one, whose decoder may have fewer blocks.

    Blocks that the trained decoder lacks start as the identity, so that the new tokenizer draws
    what the trained one draws (Chen et al. 2016, "Net2Net", section 2.2).

    Raises:
        ValueError: anything else differs; names the parameter.
    """
    state = model.state_dict()
    for key, value in state.items():
        if key in trained and trained[key].shape == value.shape:
            value.copy_(trained[key])
        elif key in trained or not _DEEPER.match(key):
            raise ValueError(f"unlike in {key}")
        elif key.endswith(".conv2.weight"):
            value.zero_()
    missing = trained.keys() - state.keys()
    if missing:
        raise ValueError(f"unlike in {min(missing)}")
