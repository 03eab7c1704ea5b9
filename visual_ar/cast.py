"""Who takes part in a decoding, passed whole; knows their contracts, nothing about methods."""

from __future__ import annotations

from dataclasses import dataclass, replace

from visual_ar.layout import Layout
from visual_ar.models.draft_head import DraftHead
from visual_ar.models.token_model import TokenModel
from visual_ar.tokenizers.visual_tokenizer import VisualTokenizer


@dataclass(frozen=True)
class Cast:
    """The generator and whoever a method may need beside it. Nothing is hung on a model.

    Attributes:
        model: the generator.
        layout: its decode order and the forced tokens.
        tokenizer: whose tokens are generated, for methods that compare codes.
        draft_head: foretells the model's hidden states, for methods that draft with it.
        draft_model: another model of the same tokens that drafts.
        prefix: prefix slots P; 0 is what the model says.

    Raises:
        ValueError: P is not what the model was made for, or nobody says it.
    """

    model: TokenModel
    layout: Layout
    tokenizer: VisualTokenizer | None = None
    draft_head: DraftHead | None = None
    draft_model: TokenModel | None = None
    prefix: int = 0

    def __post_init__(self) -> None:
        own = self.model.prefix_length
        if own is not None and self.prefix not in (0, own):
            raise ValueError(
                f"the condition must have {own} prefix tokens for {type(self.model).__name__}, "
                f"got {self.prefix}"
            )
        if own is None and self.prefix < 1:
            raise ValueError(f"prefix must be at least 1 for {type(self.model).__name__}, got 0")
        object.__setattr__(self, "prefix", own or self.prefix)

    def with_layout(self, layout: Layout) -> Cast:
        """The same cast over another layout."""
        return replace(self, layout=layout)
