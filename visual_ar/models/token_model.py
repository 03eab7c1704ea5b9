"""The contract of a token generator; knows nothing about decoding methods, tokenizers or pixels."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
from diffusers import ConfigMixin
from torch import Tensor

from visual_ar.bits import BitLaw, SubcodeLaw, certain
from visual_ar.cache import KVCache
from visual_ar.eight_bit import EightBitModel
from visual_ar.layout import Layout
from visual_ar.sampling import Warps

if TYPE_CHECKING:
    from visual_ar.models.draft_head import DraftHead


class TokenModel(EightBitModel, ConfigMixin):
    """A model that predicts the tokens of a picture from a prefix and the tokens before them.

    Rows R are the pictures of a batch, or with guidance twice as many: conditional rows first, then
    their unconditional twins in the same order. Prefix token j of P has rank j - P, tokens have
    ranks 0..N-1, and ranks from N on are scratch: accepted, with results that nobody reads.

    Attributes:
        capabilities: what its head gives, "categorical" being logits over a code book, "bits" the
            log-odds of every bit of tokens that are bit vectors, "subcodes" softmaxes over parts of
            such tokens, one after the other; "trees" when `forward` can write several drafts of one
            rank to `slots` of their own; "some sources" when `predict` takes a third argument
            `present`, bool [R, Q, A], sources to read.
    """

    config_name = "config.json"
    capabilities: frozenset[str] = frozenset()
    # In tuples, so that their weights do not become the model's own.
    _draft_heads: tuple[DraftHead, ...] = ()
    _draft_models: tuple[TokenModel, ...] = ()

    @property
    def draft_head(self) -> DraftHead | None:
        """What drafts tokens for this model from its hidden states, if there is anything."""
        return self._draft_heads[0] if self._draft_heads else None

    def use_draft_head(self, head: DraftHead | None) -> None:
        """Takes a draft head, or gives it up. Its weights stay apart from the model's.

        Raises:
            ValueError: it was made for another model.
        """
        if head is not None:
            head.check(self)
        self._draft_heads = () if head is None else (head,)

    @property
    def draft_model(self) -> TokenModel | None:
        """Another model of the same tokens that drafts for this one, if there is any."""
        return self._draft_models[0] if self._draft_models else None

    def use_draft_model(self, model: TokenModel | None) -> None:
        """Takes another model that drafts, or gives it up. Its weights stay apart from this one's.

        Raises:
            ValueError: the code books differ, or it does not tell the laws of its drafts.
        """
        if model is not None:
            if model.vocab_size != self.vocab_size:
                raise ValueError(
                    f"draft_model must share the tokenizer's {self.vocab_size} codes, "
                    f"got {model.vocab_size} codes"
                )
            if "categorical" not in model.capabilities:
                raise ValueError(
                    "draft_model must name the law of every draft (categorical), "
                    f"{type(model).__name__} has {sorted(model.capabilities)}"
                )
        self._draft_models = () if model is None else (model,)

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
        slots: Tensor | None = None,
    ) -> Tensor:
        """Runs the trunk on some positions of every row, writing their keys and values.

        Args:
            x: [R, Q, D] input embeddings.
            ranks: int64 [R, Q], any ranks; the cache must hold what they attend to.
            cache: written at `slots`; None runs x as one full sequence.
            visible: bool [R, 1, Q, extent] replacing the layout's rule, e.g. for trees.
            slots: int64 [R, Q] of the cache; None is P + rank. Drafts of one rank need one each.

        Returns:
            [R, Q, D] hidden states, normalised, ready for `predict`; [R, Q, A, D] where ranks have
            A sources, one for each of the ranks that a position may be a source of.
        """

    @abstractmethod
    def predict(self, hidden: Tensor, ranks: Tensor) -> Tensor:
        """Raw head output for `ranks` from the hidden states of their sources.

        Args:
            hidden: [R, Q, D] hidden states of the sources; [R, Q, A, D] where ranks have A sources,
                any values standing for those that do not exist.
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


class DenoisingModel(TokenModel):
    """A model with the capability "denoising": its inputs may be embeddings under Gaussian noise.

    A latent is an embedding normalised to mean 0 and variance 1, under noise of ratio s: latents
    read (e + s n) / sqrt(1 + s^2) with n normal, whatever s.
    """

    @abstractmethod
    def noise_ratios(self, steps: int) -> Tensor:
        """Noise to signal, ascending: 0, then `steps` ratios up to the largest. [steps + 1]."""

    @abstractmethod
    def latents(self, tokens: Tensor, ranks: Tensor) -> Tensor:
        """Normalised embeddings, without noise. tokens, ranks: int64 [R, Q]; fp32 [R, Q, D]."""

    @abstractmethod
    def embed_noisy(self, latents: Tensor, ratios: Tensor) -> Tensor:
        """Input embeddings of noisy latents. [R, Q, D]; ratios: [R, Q], above 0; [R, Q, D]."""

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        ranks: Tensor,
        cache: KVCache | None = None,
        visible: Tensor | None = None,
        slots: Tensor | None = None,
        noisy: Tensor | None = None,
    ) -> Tensor:
        """See `TokenModel.forward`. noisy: bool [R, Q], inputs under noise; None is none."""
