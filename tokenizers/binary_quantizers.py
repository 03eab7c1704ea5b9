"""Quantizers whose tokens are bits: LFQ, grouped LFQ and BSQ; pixels are unknown here.

They share one theory. A latent u is compared with the 2^d corners c of a cube of half side s, and
the soft assignment p(c | u), proportional to exp(2 k u.c) with k an inverse temperature, factorises
into P(bit i = 1) = sigmoid(4 k s u_i). So the entropy of one sample is a sum over its bits, exactly
(Zhao, Xiong and Krähenbühl 2024, "Image and video tokenization with binary spherical quantization",
section 4.2). The entropy of the batch average does not factorise; it is summed over groups of bits.
Entropies are in nats and over the latents of this process.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visual_ar.tokenizers.bit_codes import bit_entropy, group_log_laws, mean_law_entropy
from visual_ar.tokenizers.quantizers import Quantized, check_latents, in_full

WIDEST_GROUP = 18  # bits; the batch entropy holds 2^18 numbers a latent vector


class BinaryQuantizer(nn.Module):
    """What the binary quantizers share: a bit is 1 where its latent is above 0.

    A subclass says how latents are projected, and may say how the gradient passes.

    Args:
        bits: d, at least 1; also the channels of the latents.
        groups: number of groups of neighbouring bits in the batch entropy, dividing d into groups
            of at most 18.
        inverse_temperature: k above, larger than 0.
        scale: s above.

    Raises:
        ValueError: a number outside its range, or d does not divide into the groups.
    """

    def __init__(self, bits: int, groups: int, inverse_temperature: float, scale: float) -> None:
        super().__init__()
        if bits < 1:
            raise ValueError(f"bits must be at least 1, got {bits}")
        if groups < 1 or bits % groups:
            raise ValueError(f"groups must divide the {bits} bits of a token, got {groups}")
        if bits // groups > WIDEST_GROUP:
            raise ValueError(
                f"a group must have at most {WIDEST_GROUP} bits, whose values are all enumerated, "
                f"got {bits} bits in {groups} groups"
            )
        if not 0 < inverse_temperature < math.inf:
            raise ValueError(f"inverse_temperature must be above 0, got {inverse_temperature}")
        self.bits, self.groups, self.scale = bits, groups, scale
        self.inverse_temperature = inverse_temperature

    def encode(self, latents: Tensor) -> Tensor:
        """The tokens alone. latents: [B, d, h, w]; returns bool [B, h * w, d]."""
        check_latents(latents, self.bits)
        return _by_token(latents > 0)

    def lookup(self, tokens: Tensor, grid: tuple[int, ...]) -> Tensor:
        """The corners of tokens, -s or s. tokens: bool [B, N, d]; returns fp32 [B, d, h, w].

        Raises:
            ValueError: the tokens are not bool [B, h * w, d].
        """
        check_bit_tokens(tokens, grid, self.bits)
        return (_on_grid(tokens, grid).float() * 2 - 1) * self.scale

    def forward(self, latents: Tensor) -> Quantized:
        """Quantise. latents: float [B, d, h, w].

        The losses are "commitment", mean square of latent minus corner, and "entropy", that of a
        sample minus that of the batch average. The statistics are both entropies, and
        "bit_entropy" [d], that of the frequency of ones of each bit, in base 2.
        """
        check_latents(latents, self.bits)
        grid = (latents.shape[2], latents.shape[3])
        with torch.autocast(latents.device.type, enabled=False):
            compared = self._project(in_full(latents))
            tokens = _by_token(compared > 0)
            codes = self._pass_through(compared, tokens, grid)
            corner = self.lookup(tokens, grid).to(compared)
            losses = {"commitment": F.mse_loss(compared, corner)}
            log_odds = 4 * self.inverse_temperature * self.scale * _by_token(compared)
            sample, batch = self._entropies(log_odds.flatten(0, 1))
            losses["entropy"] = sample - batch
        statistics = {
            "sample_entropy": sample.detach(),
            "batch_entropy": batch.detach(),
            "bit_entropy": marginal_entropy(tokens),
        }
        return Quantized(codes.to(latents.dtype), tokens, compared, losses, statistics)

    def _project(self, latents: Tensor) -> Tensor:
        """Latents [B, d, h, w] as they are compared."""
        return latents

    def _pass_through(self, compared: Tensor, tokens: Tensor, grid: tuple[int, ...]) -> Tensor:
        """The quantised latents, exactly, with the gradient of `compared`."""
        return self.lookup(tokens, grid).to(compared) + (compared - compared.detach())

    def _entropies(self, log_odds: Tensor) -> tuple[Tensor, Tensor]:
        """Entropy of a sample and of the batch average, summed over groups. log_odds: [M, d]."""
        batch = mean_law_entropy(group_log_laws(log_odds, self.groups)).sum()
        return bit_entropy(log_odds).sum(-1).mean(), batch


class LookupFreeQuantizer(BinaryQuantizer):
    """LFQ: the signs of the latents (Yu et al. 2023, "Language model beats diffusion", 3.1).

    Args:
        bits: d, at least 1.
        groups: groups of bits in the batch entropy; 1 is the published joint entropy.
        inverse_temperature: k, 100 as published.
    """

    def __init__(self, bits: int, groups: int = 1, inverse_temperature: float = 100.0) -> None:
        super().__init__(bits, groups, inverse_temperature, scale=1.0)


class GroupedLookupFreeQuantizer(LookupFreeQuantizer):
    """Grouped LFQ (WeTok, BitDance): the groups are samples of one law over 2^(d / g) values.

    Both entropies are those of one group: the sample entropy is averaged over the groups, and so
    are the laws before the batch entropy is taken.
    """

    def _entropies(self, log_odds: Tensor) -> tuple[Tensor, Tensor]:
        pooled = group_log_laws(log_odds, self.groups).flatten(0, 1)
        return bit_entropy(log_odds).sum(-1).mean() / self.groups, mean_law_entropy(pooled)


class BinarySphericalQuantizer(BinaryQuantizer):
    """BSQ: latents on the unit sphere, corners of the cube inside it (Zhao et al. 2024, section 4).

    Args:
        bits: d, at least 1.
        groups: groups of bits in the batch entropy.
        inverse_temperature: k, 1 as published.
        scaled_gradient: multiply the gradient by 1 / sqrt(d), as the published code does, which
            passes it straight through the sign and scales afterwards; otherwise it is the identity.
    """

    def __init__(
        self,
        bits: int,
        groups: int = 1,
        inverse_temperature: float = 1.0,
        scaled_gradient: bool = True,
    ) -> None:
        super().__init__(bits, groups, inverse_temperature, scale=max(bits, 1) ** -0.5)
        self.scaled_gradient = scaled_gradient

    def _project(self, latents: Tensor) -> Tensor:
        return F.normalize(latents, dim=1)

    def _pass_through(self, compared: Tensor, tokens: Tensor, grid: tuple[int, ...]) -> Tensor:
        passed = compared * self.scale if self.scaled_gradient else compared
        return super()._pass_through(passed, tokens, grid)


def marginal_entropy(tokens: Tensor) -> Tensor:
    """How evenly each bit is used: entropy of its frequency of ones, in bits.

    Args:
        tokens: bool [B, N, d].

    Returns:
        fp32 [d], in [0, 1].
    """
    ones = tokens.flatten(0, 1).float().mean(0)
    return (torch.special.entr(ones) + torch.special.entr(1 - ones)) / math.log(2)


def check_bit_tokens(tokens: Tensor, grid: tuple[int, ...], bits: int) -> None:
    """Raises ValueError unless `tokens` are bool [B, h * w, d]."""
    count = math.prod(grid)
    if tokens.dtype != torch.bool or tokens.ndim != 3 or tokens.shape[1:] != (count, bits):
        raise ValueError(
            f"tokens must be bool [B, {count}, {bits}] for the grid {tuple(grid)}, "
            f"got {tokens.dtype} {list(tokens.shape)}"
        )


def _by_token(x: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, h * w, C]."""
    return x.flatten(2).transpose(1, 2)


def _on_grid(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """[B, h * w, C] -> [B, C, h, w]."""
    return x.transpose(1, 2).unflatten(2, grid)
