"""Conditions that are text, read by a text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from visual_ar.conditioning.conditioner import Conditioner
from visual_ar.models.token_model import TokenModel
from visual_ar.plain_numbers import shown
from visual_ar.request import Labels, Prompt, check_prompts


@dataclass(frozen=True)
class TextConditioner(Conditioner):
    """Prompts of a text-conditional model, whose prefix are the features of a caption.

    Attributes:
        encoder: its `encode` turns B texts into features [B, P, C] and their mask bool [B, P]; one
            that can `tokenize` refuses prompts that are too long. None refuses all.
    """

    argument: ClassVar[str] = "prompt"
    key: ClassVar[str] = "prompt"
    components: ClassVar[tuple[str, ...]] = ("text_encoder",)
    encoder: Any

    @property
    def prefix_length(self) -> int:
        """See `Conditioner.prefix_length`."""
        config = getattr(self.encoder, "config", {})
        return int(config.get("length", 0))

    @property
    def what(self) -> str:
        """See `Conditioner.what`."""
        return "prompts"

    @property
    def anything(self) -> str:
        """See `Conditioner.anything`."""
        return "picture"

    def check(self, prompt: Prompt, class_labels: Labels, repeats: int) -> list[str]:
        """See `Conditioner.check`."""
        if class_labels is not None:
            raise ValueError(
                f"class_labels must be left out for this text-conditional model, which takes a "
                f"prompt, got {shown(class_labels)}"
            )
        texts = self.repeated(check_prompts(prompt), repeats)
        if self.encoder is None:
            raise ValueError("text_encoder must be given for a text-conditional model, got None")
        if hasattr(self.encoder, "tokenize"):
            self.encoder.tokenize(texts)
        return texts

    def features(self, conditions: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
        """See `Conditioner.features`. A text that comes several times is read once."""
        texts = list(dict.fromkeys(conditions))
        features, mask = self.encoder.encode(texts)
        rows = torch.tensor([texts.index(text) for text in conditions]).to(features.device)
        return features[rows], mask[rows]

    def check_model(self, model: TokenModel) -> None:
        """See `Conditioner.check_model`: features are as wide as the model's captions."""
        config = getattr(self.encoder, "config", {})
        own, read = config.get("feature_dim"), model.config.get("caption_dim")
        if None not in (own, read) and own != read:
            raise ValueError(
                f"text_encoder must give features of the {read} numbers that "
                f"{type(model).__name__} reads, got {own}"
            )

    def same_as(self, other: Conditioner) -> bool:
        """See `Conditioner.same_as`."""
        return isinstance(other, TextConditioner)
