"""Losses of tokenizer training; knows nothing about tokenizers or the order of a run.

Likelihood: a Gaussian with the best variance for each picture, whose negative logarithm is that of
the squared error; Rybkin et al. (2021), "Simple and effective VAE training with calibrated
decoders", equation 6. It is the PSNR of a picture up to a factor, so that simple pictures are drawn
as carefully as busy ones. Feature distance: Zhang et al. (2018), "The unreasonable effectiveness of
deep features", equation 1 without its learned weights. Patch discriminator: Isola et al. (2017),
section 3.2.2, with the hinge loss and the adaptive weight of Esser et al. (2021), "Taming
transformers", equation 7.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visual_ar.training.progress import build_optimisers, update
from visual_ar.training.recipe import Optimiser, ReconstructionLoss

if TYPE_CHECKING:
    from visual_ar.evaluation.features import EfficientNetLite0Features

SMALLEST_ERROR = 1e-4  # squared error, pixels in [-1, 1], below which a picture is as good as exact


class PatchDiscriminator(nn.Module):
    """Says for each patch how real it looks. [B, 3, H, W] -> [B, 1, about H / 4, about W / 4]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, channels, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1),
            nn.GroupNorm(4, 2 * channels),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * channels, 4 * channels, 4, padding=1),
            nn.GroupNorm(4, 4 * channels),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4 * channels, 1, 4, padding=1),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels)


class TokenizerLoss:
    """The weighted terms between pictures and their reconstructions."""

    def __init__(
        self, options: ReconstructionLoss, optimiser: Optimiser, device: torch.device
    ) -> None:
        self._options = options
        self._features: EfficientNetLite0Features | None = None
        if options.perceptual:
            # Its weights come with an extra that other recipes do without.
            from visual_ar.evaluation.features import EfficientNetLite0Features

            self._features = EfficientNetLite0Features().to(device).requires_grad_(False)
        self.discriminator: PatchDiscriminator | None = None
        if options.adversarial:
            discriminator = PatchDiscriminator(options.discriminator_channels).to(device)
            self.discriminator = discriminator.to(memory_format=torch.channels_last)
            self._parameters = list(self.discriminator.parameters())
            (self._optimiser,) = build_optimisers(self.discriminator, optimiser)
            self._clip = optimiser.clip

    def tokenizer(
        self, pixels: Tensor, drawn: Tensor, progress: float, last_layer: Tensor
    ) -> dict[str, Tensor]:
        """Weighted terms for the tokenizer, each a scalar.

        Args:
            pixels: float [B, 3, H, W].
            drawn: float [B, 3, H, W], the reconstruction, with its graph.
            progress: of the run, 0..1; terms whose time has not come are left out.
            last_layer: the decoder's last weight, at which gradients are compared.
        """
        options = self._options
        difference = drawn - pixels
        terms = {
            "l1": options.l1 * difference.abs().mean(),
            "l2": options.l2 * difference.square().mean(),
        }
        if options.likelihood and progress >= options.likelihood_start:
            errors = difference.square().mean(dim=(1, 2, 3))
            terms["likelihood"] = options.likelihood * (errors + SMALLEST_ERROR).log().mean()
        if self._features is not None and progress >= options.perceptual_start:
            distance = self._feature_distance(self._features, pixels, drawn)
            terms["perceptual"] = options.perceptual * distance
        if self.discriminator is not None and progress >= options.adversarial_start:
            fooled = -self.discriminator(drawn).mean()
            weight = _balance(torch.stack(list(terms.values())).sum(), fooled, last_layer)
            terms["adversarial"] = options.adversarial * weight * fooled
        return terms

    def discriminator_step(
        self, pixels: Tensor, drawn: Tensor, progress: float, rate: float
    ) -> dict[str, Tensor]:
        """One step of the discriminator once its time has come; returns its loss.

        Args:
            pixels: float [B, 3, H, W].
            drawn: float [B, 3, H, W], without a graph.
            progress: of the run, 0..1.
            rate: learning rate.
        """
        if self.discriminator is None or progress < self._options.adversarial_start:
            return {}
        real, fake = self.discriminator(pixels), self.discriminator(drawn)
        loss = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        # Not left over from the tokenizer's step, which also reaches the discriminator.
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        update([self._optimiser], self._parameters, rate, self._clip)
        return {"discriminator": loss.detach()}

    def _feature_distance(
        self, features: EfficientNetLite0Features, pixels: Tensor, drawn: Tensor
    ) -> Tensor:
        stages = self._options.perceptual_stages
        with torch.no_grad():
            targets = features.feature_maps(pixels, stages)
        distances = [
            (F.normalize(ours, dim=1) - F.normalize(theirs, dim=1)).square().sum(dim=1).mean()
            for ours, theirs in zip(features.feature_maps(drawn, stages), targets, strict=True)
        ]
        return torch.stack(distances).sum()

    def state(self) -> dict[str, Any]:
        """What `restore` needs."""
        if self.discriminator is None:
            return {}
        return {
            "discriminator": self.discriminator.state_dict(),
            "optimiser": self._optimiser.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        if self.discriminator is not None:
            self.discriminator.load_state_dict(state["discriminator"])
            self._optimiser.load_state_dict(state["optimiser"])


def _balance(reconstruction: Tensor, adversarial: Tensor, weight: Tensor) -> Tensor:
    """Ratio of the two terms' gradients at `weight`, so that neither drowns the other."""
    ours = torch.autograd.grad(reconstruction, weight, retain_graph=True)[0].norm()
    theirs = torch.autograd.grad(adversarial, weight, retain_graph=True)[0].norm()
    return (ours / (theirs + 1e-6)).clamp(max=1e4)
