"""Starts a generator from a trained one of another family; knows names of parameters, no training.

Blocks and condition carry over. So do, where the tokens are the same, their embeddings, and every
head starts as the one head of the next-token model. Where a matrix is smaller than the trained one
it takes the leading part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

_HEADS = re.compile(r"(?<=model\.)(norm|output)s\.\d+(?=\.weight$)")
_OF_TOKENS = re.compile(r"(model\.(tok_embeddings|output)|captions\.head)\.")


@torch.no_grad()
def start_from(trained: nn.Module, trunk: Mapping[str, Tensor], same_tokens: bool) -> None:
    """Copies into `trained` what a trunk knows.

    Args:
        trained: all that a run trains, its generator called `model`.
        trunk: the same of a run of a next-token generator, by name.
        same_tokens: whether both have the tokens of one tokenizer.

    Raises:
        ValueError: the trunk lacks a parameter, or has one of another kind.
    """
    for key, value in trained.state_dict().items():
        if not same_tokens and _OF_TOKENS.match(key):
            continue
        name = _HEADS.sub(r"\1", key)
        if name not in trunk:
            raise ValueError(f"the trunk must have the parameter {name}, it lacks it")
        theirs = trunk[name]
        if theirs.dim() != value.dim():
            raise ValueError(
                f"{name} of the trunk must have {value.dim()} dimensions, got {theirs.dim()}"
            )
        shared = tuple(slice(min(a, b)) for a, b in zip(value.shape, theirs.shape, strict=True))
        value[shared] = theirs[shared].to(value.device, value.dtype)
