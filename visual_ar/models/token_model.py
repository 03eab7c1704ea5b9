"""The contract of a token generator; knows nothing about decoding methods, tokenizers or pixels."""

from __future__ import annotations

from abc import abstractmethod

from diffusers import ConfigMixin
from torch import Tensor

from visual_ar.cache import KVCache
from visual_ar.eight_bit import EightBitModel
from visual_ar.layout import Layout
from visual_ar.tokens.kind import TokenKind


class TokenModel(EightBitModel, ConfigMixin):
    """A model that predicts the tokens of a picture from a prefix and the tokens before them.

    Rows R are the pictures of a batch, or with guidance twice as many: conditional rows first, then
    their unconditional twins in the same order. Prefix token j of P has rank j - P, tokens have
    ranks 0..N-1, and ranks from N on are scratch: accepted, with results that nobody reads.

    Attributes:
        capabilities: what it can do beside what every model does: "trees" when `forward` can write
            several drafts of one rank to `slots` of their own; "some sources" when `predict` takes
            a third argument `present`, bool [R, Q, A], sources to read; "denoising", see
            `DenoisingModel`; "structure" when it has `embed_structure`.
    """

    config_name = "config.json"
    capabilities: frozenset[str] = frozenset()

    @property
    @abstractmethod
    def tokens(self) -> TokenKind:
        """What a token is, and the law it takes from `predict`."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of different tokens V."""

    @property
    def prefix_length(self) -> int | None:
        """Number of prefix tokens P, at least 1; None where the conditioner decides it."""
        return None

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
    def new_cache(self, rows: int, slots: int, prefix: int) -> KVCache:
        """An empty cache in the model's dtype and on its device.

        Args:
            rows: R.
            slots: of every row, the prefix included.
            prefix: prefix slots P.
        """

    @abstractmethod
    def embed(self, tokens: Tensor, ranks: Tensor) -> Tensor:
        """Input embeddings [R, Q, D]. tokens: [R, Q, *] of `tokens`; ranks: int64 [R, Q]."""

    def embed_structure(self, ids: Tensor) -> Tensor:
        """Input embeddings [R, Q, D] of structural ids, see `Layout.structure`. int64 [R, Q].

        Raises:
            ValueError: the model has no structure.
        """
        raise ValueError(f"{type(self).__name__} must know structural ranks for this layout")

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
            [R, Q, *], what `TokenKind.law` takes: fp32 logits [R, Q, V] for codes.
        """


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
