"""Which conditioner a model has; the one place that tells the kinds of models apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from visual_ar.conditioning.by_class import ClassConditioner
from visual_ar.conditioning.by_text import TextConditioner
from visual_ar.conditioning.conditioner import Conditioner
from visual_ar.models.token_model import TokenModel


def conditioner_of(
    model: TokenModel, text_encoder: Any, class_names: Sequence[str] | None, device: Any
) -> Conditioner:
    """The conditioner of a pipeline.

    Args:
        model: the generator; one with `num_classes` in its configuration draws classes.
        text_encoder: reads prompts, if there is one.
        class_names: one a class, if they have names.
        device: where the model computes.

    Raises:
        ValueError: a model of classes has a text encoder.
    """
    classes = model.config.get("num_classes")
    if classes is None:
        return TextConditioner(text_encoder)
    if text_encoder is not None:
        raise ValueError(
            f"text_encoder must be left out for a model of {classes} classes, "
            f"got {type(text_encoder).__name__}"
        )
    return ClassConditioner(classes, None if class_names is None else tuple(class_names), device)
