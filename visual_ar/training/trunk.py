"""Starts a generator from a trained one of another family or head; knows parameters, no training.

Blocks and condition carry over. So do, where the tokens are the same, their embeddings, and every
head starts with the law of the trained one. Where a matrix is smaller than the trained one it takes
the leading part.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

from visual_ar.assets import bundled
from visual_ar.models.bitwise import BitLlamaGen, SubcodeLlamaGen
from visual_ar.models.token_model import TokenModel
from visual_ar.pipeline import VisualARPipeline
from visual_ar.text_encoder import TextEncoder

_HEADS = re.compile(r"^(norm|output)s\.\d+(?=\.weight$)")
_OF_TOKENS = re.compile(r"^(tok_embeddings|outputs?)\.")


def find_trunk(recipe: str, runs: Path) -> Path:
    """The folder of a recipe's trained pipeline: of its run, or else the bundled one.

    Args:
        recipe: its name.
        runs: the folder that holds its run, if there is one.

    Raises:
        FileNotFoundError: the recipe was not run to its end there, and is not bundled.
    """
    path, name = runs / recipe / "pipeline", bundle_name(recipe)
    if path.is_dir():
        return path
    if name in bundled():
        return bundled()[name]
    raise FileNotFoundError(
        f"the trunk must be trained first: recipe {recipe}, whose result is not in {path}"
    )


def bundle_name(recipe: str) -> str:
    """The name under which the result of a recipe is bundled."""
    return recipe.replace("_", "-")


@torch.no_grad()
def start_from(model: nn.Module, trunk: TokenModel, same_tokens: bool) -> None:
    """Copies into a generator what a trained one knows.

    Args:
        model: the generator.
        trunk: the trained one, of the LlamaGen kind or of the generator's own.
        same_tokens: whether both have the tokens of one tokenizer.

    Raises:
        ValueError: the trunk lacks a parameter, or has one of another kind.
    """
    trained = trunk.state_dict()
    other_head = isinstance(model, SubcodeLlamaGen) and not isinstance(trunk, SubcodeLlamaGen)
    for key, value in model.state_dict().items():
        if not same_tokens and _OF_TOKENS.match(key):
            continue
        if other_head and key.startswith("output."):
            continue
        name = key if key in trained else _HEADS.sub(r"\1", key)
        if name not in trained:
            raise ValueError(f"the trunk must have the parameter {name}, it lacks it")
        theirs = trained[name]
        if theirs.dim() != value.dim():
            raise ValueError(
                f"{name} of the trunk must have {value.dim()} dimensions, got {theirs.dim()}"
            )
        shared = tuple(slice(min(a, b)) for a, b in zip(value.shape, theirs.shape, strict=True))
        value[shared] = theirs[shared].to(value.device, value.dtype)
    if other_head and same_tokens and isinstance(model, SubcodeLlamaGen):
        assert isinstance(trunk, BitLlamaGen)
        model.output.start_as(trunk.output.weight)


def start_text(encoder: TextEncoder, trunk: VisualARPipeline) -> None:
    """Gives a text encoder the weights of the trunk's.

    Raises:
        ValueError: the trunk has no text encoder, or one of other sizes or other words.
    """
    theirs = trunk.text_encoder
    if not isinstance(theirs, TextEncoder):
        raise ValueError(f"the trunk must have a text encoder of ours, got {type(theirs).__name__}")
    for option in ("words", "dim", "depth", "feature_dim", "length"):
        if encoder.config[option] != theirs.config[option]:
            raise ValueError(f"text: {option} must be that of the trunk's text encoder")
    encoder.load_state_dict(theirs.state_dict())
