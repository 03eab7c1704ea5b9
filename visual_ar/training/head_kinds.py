"""What the training of a generator does differently for each head; knows no steps and no losses.

A row in `MODELS` says which class a recipe trains, one in `HEADS` which tokens its head foretells.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visual_ar.component_files import read_json
from visual_ar.models.bitwise import BitLlamaGen, SubcodeLlamaGen
from visual_ar.models.llama_shared import CaptionEmbedder
from visual_ar.models.llamagen import LlamaGen
from visual_ar.models.nar import NAR
from visual_ar.tokenizers.binary import BinaryTokenizer
from visual_ar.tokenizers.vq import VQTokenizer
from visual_ar.training.drawn_bits import CachedBits, cached_bits
from visual_ar.training.drawn_codes import CachedCodes, cached_codes
from visual_ar.training.recipe import GeneratorRecipe

Generator = LlamaGen | NAR

MODELS: dict[tuple[str, str], type[LlamaGen] | type[NAR]] = {  # family and head -> class
    ("llamagen", "categorical"): LlamaGen,
    ("llamagen", "bits"): BitLlamaGen,
    ("llamagen", "subcodes"): SubcodeLlamaGen,
    ("nar", "categorical"): NAR,
}


class HeadKind(Protocol):
    """The tokens that a head foretells, as training handles them."""

    def load(self, path: Path) -> VQTokenizer | BinaryTokenizer:
        """The trained tokenizer of a folder, see `_load`."""

    def tokens_of(
        self,
        tokenizer: Any,
        pictures: Tensor,
        recipe: GeneratorRecipe,
        output: Path,
        device: torch.device,
    ) -> CachedCodes | CachedBits:
        """The tokens of all pictures uint8 [M, H, W, 3], kept in `output`."""

    def build(self, make: Any, options: dict[str, Any], tokenizer: Any) -> Generator:
        """A new generator of the tokenizer's tokens. make: its class; options: but for these."""


class CodeHead:
    """One softmax over a code book."""

    def load(self, path: Path) -> VQTokenizer:
        """See `HeadKind.load`."""
        return _load(path, VQTokenizer, "for head 'categorical'")

    def tokens_of(
        self,
        tokenizer: VQTokenizer,
        pictures: Tensor,
        recipe: GeneratorRecipe,
        output: Path,
        device: torch.device,
    ) -> CachedCodes:
        """See `HeadKind.tokens_of`."""
        cut = (pictures, recipe.crops, recipe.shift)
        return cached_codes(tokenizer, *cut, recipe.soft, recipe.seed, output, device)

    def build(self, make: Any, options: dict[str, Any], tokenizer: VQTokenizer) -> Generator:
        """See `HeadKind.build`: similar codes start as similar."""
        model: Generator = make(**options, vocab_size=tokenizer.codebook_size)
        place_codes(model, tokenizer.quantize.codebook().detach())
        return model


class BitHead:
    """Bits, each by itself or in sub-codes.

    Args:
        name: of the head, as recipes call it.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def load(self, path: Path) -> BinaryTokenizer:
        """See `HeadKind.load`."""
        return _load(path, BinaryTokenizer, f"for head {self.name!r}")

    def tokens_of(
        self,
        tokenizer: BinaryTokenizer,
        pictures: Tensor,
        recipe: GeneratorRecipe,
        output: Path,
        device: torch.device,
    ) -> CachedBits:
        """See `HeadKind.tokens_of`."""
        cut = (pictures, recipe.crops, recipe.shift)
        return cached_bits(tokenizer, *cut, recipe.seed, output, device)

    def build(self, make: Any, options: dict[str, Any], tokenizer: BinaryTokenizer) -> Generator:
        """See `HeadKind.build`."""
        (bits,) = tokenizer.tokens.shape
        model: Generator = make(**options, bits=bits)
        return model


HEADS: dict[str, HeadKind] = {
    "categorical": CodeHead(),
    "bits": BitHead("bits"),
    "subcodes": BitHead("subcodes"),
}


@torch.no_grad()
def place_codes(model: Generator, vectors: Tensor) -> None:
    """Starts embeddings and head so that codes with similar vectors are similar. vectors: [V, d].

    A code of thousands is seen rarely; what is learned about it then holds for those around it.
    Measured on the first 100 steps of emoji: as low a loss as 140 steps without it.
    """
    unit = F.normalize(vectors.float(), dim=-1)
    heads = [(weight, 0.5) for weight in model.head_weights]
    for weight, norm in ((model.tok_embeddings.weight, 0.3), *heads):
        frame = nn.init.orthogonal_(torch.empty(unit.shape[1], weight.shape[1]))
        weight.add_((norm * unit @ frame).to(weight.device))


def matrices(model: Generator) -> list[nn.Parameter]:
    """What Muon trains: the blocks, and the caption projection.

    AdamW lets one direction that all captions share grow to seven eighths of the projected prefix.
    """
    parts: list[nn.Module] = [model.layers]
    if isinstance(model.cls_embedding, CaptionEmbedder):
        parts.append(model.cls_embedding.cap_proj)
    return [p for part in parts for p in part.parameters() if p.ndim == 2 and p.requires_grad]


def _load(path: Path, wanted: Any, what_for: str) -> Any:
    """The tokenizer of a run, frozen.

    Raises:
        FileNotFoundError: the run is not done.
        ValueError: it is of another class.
    """
    if not path.is_dir():
        raise FileNotFoundError(
            f"the tokenizer must be trained first: recipe {path.parent.name} into {path.parent}"
        )
    config = read_json(path / "config.json", "a tokenizer must have its config.json")
    found = config.get("_class_name")
    if found != wanted.__name__:
        raise ValueError(
            f"tokenizer must be a {wanted.__name__} {what_for}, got a {found} in {path.parent.name}"
        )
    return wanted.from_pretrained(path).eval().requires_grad_(False)
