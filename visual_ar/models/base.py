"""The contract of a token generator; knows nothing about decoding methods, tokenizers or pixels."""

from __future__ import annotations

from abc import abstractmethod

import torch
from diffusers import ConfigMixin, ModelMixin
from torch import Tensor

from visual_ar.bits import BitLaw, SubcodeLaw, certain
from visual_ar.cache import KVCache
from visual_ar.layout import Layout
from visual_ar.sampling import Warps


class TokenModel(ModelMixin, ConfigMixin):
    """A model that predicts the tokens of a picture from a prefix and the tokens before them.

    Rows R are the pictures of a batch, or with guidance twice as many: conditional rows first, then
    their unconditional twins in the same order. Prefix token j of P has rank j - P, tokens have
    ranks 0..N-1, and ranks from N on are scratch: accepted, with results that nobody reads.

    Attributes:
        capabilities: what its head gives; "categorical" is logits over a code book, "bits" is the
            log-odds of every bit of tokens that are bit vectors, "subcodes" is softmaxes over parts
            of such tokens, one after the other.
    """

    config_name = "config.json"
    capabilities: frozenset[str] = frozenset()

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of codes V."""

    @property
    def bits(self) -> int:
        """Bits of a token d, for models whose tokens are bool [R, Q, d]; 0 for codes."""
        return 0

    @property
    @abstractmethod
    def prefix_length(self) -> int:
        """Number of prefix tokens P, at least 1."""

    @property
    @abstractmethod
    def hidden_size(self) -> int:
        """Width D of the embeddings."""

    @abstractmethod
    def layout(self, grid: tuple[int, ...]) -> Layout:
        """The decode order of a grid.

        Raises:
            ValueError: the model cannot decode this grid.
        """

    @abstractmethod
    def new_cache(self, rows: int, slots: int) -> KVCache:
        """An empty cache in the model's dtype and on its device. `slots` includes the prefix."""

    @abstractmethod
    def embed(self, tokens: Tensor, ranks: Tensor) -> Tensor:
        """Input embeddings [R, Q, D]. tokens: int64 [R, Q] or bool [R, Q, d]; ranks: [R, Q]."""

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        ranks: Tensor,
        cache: KVCache | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Runs the trunk on some positions of every row, writing their keys and values.

        Args:
            x: [R, Q, D] input embeddings.
            ranks: int64 [R, Q], any ranks; the cache must hold what they attend to.
            cache: written at slots P + rank; None runs x as one full causal sequence.
            visible: bool [R, 1, Q, extent] replacing the causal rule, e.g. for trees.

        Returns:
            [R, Q, D] hidden states, normalised, ready for `predict`.
        """

    @abstractmethod
    def predict(self, hidden: Tensor, ranks: Tensor) -> Tensor:
        """Raw head output for `ranks` from the hidden states of their sources.

        Args:
            hidden: [R, Q, D] hidden states of the sources.
            ranks: int64 [R, Q], the ranks predicted.

        Returns:
            fp32 logits [R, Q, V] for a categorical head, log-odds [R, Q, d] for bits.
        """

    def bit_law(
        self,
        conditional: Tensor,
        unconditional: Tensor | None,
        scale: Tensor,
        temperature: Tensor,
        warps: Warps,
    ) -> BitLaw | SubcodeLaw:
        """The guided, warped laws of tokens of bits; see `BitLaw.warped`.

        Args:
            conditional: [B, Q, *], from `predict`.
            unconditional: likewise, or None without guidance.
            scale: [B, Q], guidance.
            temperature: [B], above 0.
            warps: what any picture needs.

        Raises:
            ValueError: some picture asks for top-k or top-p.
        """
        return BitLaw.warped(conditional, unconditional, scale, temperature, warps)

    def law_width(self, guided: bool) -> int:
        """Features F of a law over bits, see `BitLaw.features`."""
        return self.bits

    def law_from(self, features: Tensor, temperature: Tensor) -> BitLaw | SubcodeLaw:
        """The laws of features that were kept. features: [B, Q, F]; temperature: [B]."""
        return BitLaw(features)

    def draft_features(self, tokens: Tensor, sure: Tensor, width: int) -> Tensor:
        """Features of laws that always give some tokens, and are uniform elsewhere.

        Args:
            tokens: bool [B, Q, d].
            sure: bool [B, Q], where the token is certain.
            width: F.

        Returns:
            fp32 [B, Q, F].
        """
        return torch.where(sure[..., None], certain(tokens), 0.0)
