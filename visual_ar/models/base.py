"""The contract of a token generator; knows nothing about decoding methods, tokenizers or pixels."""

from __future__ import annotations

from abc import abstractmethod

from diffusers import ConfigMixin, ModelMixin
from torch import Tensor

from visual_ar.cache import KVCache
from visual_ar.layout import Layout


class TokenModel(ModelMixin, ConfigMixin):
    """A model that predicts the tokens of a picture from a prefix and the tokens before them.

    Rows R are the pictures of a batch, or with guidance twice as many: conditional rows first, then
    their unconditional twins in the same order. Prefix token j of P has rank j - P, tokens have
    ranks 0..N-1, and ranks from N on are scratch: accepted, with results that nobody reads.

    Attributes:
        capabilities: what its head gives; "categorical" is logits over a code book, "some sources"
            that `predict` takes a third argument `present`, bool [R, Q, A], sources to read.
    """

    config_name = "config.json"
    capabilities: frozenset[str] = frozenset()
    _drafter: tuple[TokenModel, ...] = ()  # in a tuple it is no submodule: saved and moved apart

    @property
    def drafter(self) -> TokenModel | None:
        """The model that may draft for this one, see `draft_with`."""
        return self._drafter[0] if self._drafter else None

    def draft_with(self, drafter: TokenModel | None) -> None:
        """Names a model of the same tokens for methods that verify another model's drafts.

        Args:
            drafter: a model with the same code book; None takes it away.

        Raises:
            ValueError: the code books differ, or the drafter does not tell the laws of its drafts.
        """
        if drafter is None:
            self._drafter = ()
            return
        if drafter.vocab_size != self.vocab_size:
            raise ValueError(
                f"drafter must share the tokenizer's {self.vocab_size} codes, "
                f"got {drafter.vocab_size} codes"
            )
        if "categorical" not in drafter.capabilities:
            raise ValueError(
                "drafter must name the law of every draft (categorical), "
                f"{type(drafter).__name__} has {sorted(drafter.capabilities)}"
            )
        self._drafter = (drafter,)

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of codes V."""

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
        """Input embeddings. tokens: int64 [R, Q]; ranks: int64 [R, Q]; returns [R, Q, D]."""

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
            visible: bool [R, 1, Q, extent] replacing the layout's rule, e.g. for trees.

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
            [R, Q, V] fp32 logits for a categorical head.
        """
