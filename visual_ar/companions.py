"""Whether one pipeline's model may draft for another's; knows nothing about how drafts are used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from visual_ar.pipeline import VisualARPipeline
    from visual_ar.tokenizers.visual_tokenizer import VisualTokenizer


def check_drafter(pipe: VisualARPipeline, drafter: VisualARPipeline) -> None:
    """Raises ValueError unless the drafter draws the same subjects as the same tokens."""
    if not same_tokenizer(pipe.image_tokenizer, drafter.image_tokenizer):
        raise ValueError(
            "drafter must share the image tokenizer, weight for weight, got "
            f"{drafter.image_tokenizer.codebook_size} codes of another one"
        )
    text, names = pipe.text_encoder is not None, pipe.config.class_names
    ours, theirs = (side.model.config.get("num_classes") for side in (pipe, drafter))
    other = ours != theirs or drafter.config.class_names != names
    if other or (drafter.text_encoder is not None) != text:
        kind = "prompts" if text else f"the {ours} classes {names or ''}".rstrip()
        raise ValueError(f"drafter must draw {kind} like the model it drafts for, got another kind")
    if drafter.model.device != pipe.model.device:
        raise ValueError(f"drafter must be on {pipe.model.device}, got {drafter.model.device}")
    drafter.model.layout(pipe.image_tokenizer.grid(pipe.config.height, pipe.config.width))


def same_tokenizer(one: VisualTokenizer, other: VisualTokenizer) -> bool:
    """Whether two tokenizers give every picture the same tokens: equal weights by name."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(
        value.shape == theirs[key].shape and torch.equal(value.float(), theirs[key].float())
        for key, value in ours.items()
    )
