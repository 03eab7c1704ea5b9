"""The LlamaGen transformer over tokens that are bit vectors, with two heads for 2^d tokens.

Binary classifiers: every bit independent given the tokens before, Han et al. (2024), "Infinity",
section 3.2. Sub-codes: the bits cut into a few codes, each a small softmax given those before it in
the token, Luo et al. (2024), "Open-MAGVIT2", section 3.2. Knows nothing about decoding methods or
tokenizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ModelMixin  # noqa: F401  (diffusers looks for it in a component's module)
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from visual_ar.layers import Linear, RMSNorm, SwiGLU
from visual_ar.models.llamagen import LlamaGen
from visual_ar.tokenizers.bit_codes import bits_to_codes, codes_to_bits
from visual_ar.tokens.bits import Bits
from visual_ar.tokens.kind import TokenKind
from visual_ar.tokens.subcodes import Subcodes

WIDEST_SUBCODE = 14  # bits; a sub-code has a softmax over all its values


class BitEmbedding(nn.Module):
    """A linear map of bits taken as -1 and 1. bool [..., d] -> [..., D]."""

    def __init__(self, bits: int, dim: int) -> None:
        super().__init__()
        self.proj = Linear(bits, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.proj(tokens.to(self.proj.weight.dtype) * 2 - 1)


class BitLlamaGen(LlamaGen):
    """LlamaGen with a linear map of bits in and d binary classifiers out.

    Args:
        bits: d, at least 1.
        dim: see `LlamaGen`, like what follows.
        n_layer: number of blocks.
        n_head: heads of a block.
        grid_size: rows and columns of the grid.
        num_classes: classes of a class-conditional model.
        caption_dim: width of the caption features of a text-conditional model.
        caption_length: their number.
        ffn_dim: width of the feed-forward.
        dropout: in training.

    Raises:
        ValueError: bits is below 1, or as `LlamaGen`.
    """

    capabilities = frozenset()

    @register_to_config
    def __init__(
        self,
        bits: int,
        dim: int = 768,
        n_layer: int = 12,
        n_head: int = 12,
        grid_size: int = 16,
        num_classes: int | None = None,
        caption_dim: int | None = None,
        caption_length: int = 120,
        ffn_dim: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super(LlamaGen, self).__init__()
        if bits < 1:
            raise ValueError(f"bits must be at least 1, got {bits}")
        self._build()

    @property
    def tokens(self) -> TokenKind:
        """Vectors of the configuration's bits."""
        return Bits(self.config.bits)

    @property
    def bits(self) -> int:
        """Bits of a token d."""
        return self.config.bits

    @property
    def vocab_size(self) -> int:
        """Number of different tokens, 2^d, exactly."""
        return 2**self.bits

    def _token_embedding(self) -> nn.Module:
        return BitEmbedding(self.bits, self.config.dim)

    def _head(self) -> nn.Module:
        return Linear(self.config.dim, self.bits)

    def token_loss(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Negative log-likelihood in nats. [B, N, D], bool [B, N, d]; returns fp32 [B, N]."""
        log_odds = self.output(hidden).float()
        return F.binary_cross_entropy_with_logits(
            log_odds, tokens.to(log_odds), reduction="none"
        ).sum(-1)


class SubcodeHead(nn.Module):
    """A small softmax for every sub-code of a token, given the sub-codes before it.

    Args:
        dim: width D.
        bits: d.
        subcodes: number m of sub-codes, of d / m bits each.
    """

    def __init__(self, dim: int, bits: int, subcodes: int) -> None:
        super().__init__()
        size = 2 ** (bits // subcodes)
        self.norms = nn.ModuleList(RMSNorm(dim) for _ in range(subcodes))
        self.mixers: Any = nn.ModuleList(SwiGLU(dim, dim) for _ in range(subcodes))
        self.outputs: Any = nn.ModuleList(Linear(dim, size) for _ in range(subcodes))
        self.embeddings: Any = nn.ModuleList(nn.Embedding(size, dim) for _ in range(subcodes - 1))

    @torch.no_grad()
    def start_as(self, classifiers: Tensor) -> None:
        """Takes the law of independent bits, from which training goes on.

        Args:
            classifiers: [d, D], the weights of one classifier a bit.
        """
        bits = len(classifiers) // len(self.outputs)
        codes = torch.arange(2**bits, device=classifiers.device)
        signs = codes_to_bits(codes, bits, "lsb").to(classifiers) - 0.5
        for number in range(len(self.outputs)):
            part = classifiers[number * bits : (number + 1) * bits]
            self.outputs[number].weight.copy_(signs @ part)
            self.mixers[number].w2.weight.zero_()
        for embedding in self.embeddings:
            embedding.weight.zero_()

    def forward(self, hidden: Tensor, earlier: Tensor) -> Tensor:
        """Logits of the sub-code behind `earlier`.

        Args:
            hidden: [..., D] of the token.
            earlier: int64 [..., k], the sub-codes before it, k below m.

        Returns:
            fp32 [..., 2^(d / m)].
        """
        number = earlier.shape[-1]
        for place in range(number):
            hidden = hidden + self.embeddings[place](earlier[..., place])
        mixed = hidden + self.mixers[number](self.norms[number](hidden))
        return self.outputs[number](mixed).float()


class SubcodeLlamaGen(BitLlamaGen):
    """LlamaGen with a linear map of bits in and a factorised head out.

    A token's sub-codes are its bits cut into m equal parts, the first bit of each counting least.

    Args:
        bits: d, at least 1.
        subcodes: m, dividing d into parts of at most 14 bits.
        dim: see `LlamaGen`, like what follows.
        n_layer: number of blocks.
        n_head: heads of a block.
        grid_size: rows and columns of the grid.
        num_classes: classes of a class-conditional model.
        caption_dim: width of the caption features of a text-conditional model.
        caption_length: their number.
        ffn_dim: width of the feed-forward.
        dropout: in training.

    Raises:
        ValueError: the bits do not divide into the sub-codes, or as `BitLlamaGen`.
    """

    delta_prefix = "output."

    @register_to_config
    def __init__(
        self,
        bits: int,
        subcodes: int = 2,
        dim: int = 768,
        n_layer: int = 12,
        n_head: int = 12,
        grid_size: int = 16,
        num_classes: int | None = None,
        caption_dim: int | None = None,
        caption_length: int = 120,
        ffn_dim: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super(LlamaGen, self).__init__()
        if bits < 1:
            raise ValueError(f"bits must be at least 1, got {bits}")
        if subcodes < 1 or bits % subcodes:
            raise ValueError(f"subcodes must divide the {bits} bits of a token, got {subcodes}")
        if bits // subcodes > WIDEST_SUBCODE:
            raise ValueError(
                f"a sub-code must have at most {WIDEST_SUBCODE} bits, whose values all have a "
                f"logit, got {bits} bits in {subcodes} sub-codes"
            )
        self._build()

    @property
    def tokens(self) -> TokenKind:
        """Vectors of bits that `output` draws sub-code by sub-code."""
        config, dtype = self.config, self.dtype
        return Subcodes(
            config.bits,
            config.subcodes,
            config.dim,
            lambda hidden, earlier: self.output(hidden.to(dtype), earlier),
        )

    @classmethod
    def from_base(cls, base: BitLlamaGen, options: Mapping[str, Any]) -> SubcodeLlamaGen:
        """A copy of a trained model with one classifier a bit, and its law, for a head to replace.

        Args:
            base: neither it nor its tensors are shared or changed.
            options: `subcodes` is read.

        Raises:
            ValueError: the bits do not divide into the sub-codes.
        """
        config = {key: value for key, value in base.config.items() if not key.startswith("_")}
        model = cls(**config, subcodes=options["subcodes"])
        model.load_state_dict(base.state_dict(), strict=False)
        model.output.start_as(base.output.weight.detach().float())
        # Not by diffusers' `to`, which warns of modules to keep in float32 and names none.
        return nn.Module.to(model, base.device, base.dtype)

    def _head(self) -> nn.Module:
        return SubcodeHead(self.config.dim, self.bits, self.config.subcodes)

    def _zero_head(self) -> None:
        for layer in self.output.outputs:
            nn.init.zeros_(layer.weight)

    def predict(self, hidden: Tensor, ranks: Tensor) -> Tensor:
        """The hidden states themselves, out of which `output` makes logits sub-code by sub-code.

        hidden: [R, Q, D]; returns the same.
        """
        return hidden

    def split(self, tokens: Tensor) -> Tensor:
        """The sub-codes of tokens. bool [..., d]; returns int64 [..., m]."""
        return bits_to_codes(tokens.unflatten(-1, (self.config.subcodes, -1)), "lsb")

    def token_loss(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """See `BitLlamaGen.token_loss`."""
        codes = self.split(tokens)
        total = torch.zeros(codes.shape[:-1], device=hidden.device)
        for number in range(self.config.subcodes):
            logits = self.output(hidden, codes[..., :number])
            chosen = codes[..., number, None]
            total = total - logits.log_softmax(-1).gather(-1, chosen)[..., 0]
        return total
