"""Whether one model may draft for another; knows nothing about how drafts are used."""

from __future__ import annotations

from typing import NamedTuple

import torch

from visual_ar.conditioning.conditioner import Conditioner
from visual_ar.models.token_model import TokenModel
from visual_ar.tokenizers.visual_tokenizer import VisualTokenizer


class Companion(NamedTuple):
    """A model with what it draws from and into."""

    model: TokenModel
    tokenizer: VisualTokenizer
    conditioner: Conditioner


def check_drafter(ours: Companion, drafter: Companion) -> None:
    """Raises ValueError unless the drafter draws the same subjects as the same tokens."""
    if not same_tokenizer(ours.tokenizer, drafter.tokenizer):
        raise ValueError(
            "drafter must share the image tokenizer, weight for weight, got "
            f"{drafter.tokenizer.codebook_size} codes of another one"
        )
    if not ours.conditioner.same_as(drafter.conditioner):
        raise ValueError(
            f"drafter must draw {ours.conditioner.what} like the model it drafts for, "
            "got another kind"
        )
    if drafter.model.device != ours.model.device:
        raise ValueError(f"drafter must be on {ours.model.device}, got {drafter.model.device}")


def same_tokenizer(one: VisualTokenizer, other: VisualTokenizer) -> bool:
    """Whether two tokenizers give every picture the same tokens: equal weights by name."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(
        value.shape == theirs[key].shape and torch.equal(value.float(), theirs[key].float())
        for key, value in ours.items()
    )
