"""What a generator is told about each picture of a dataset; knows nothing about codes or losses."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from visual_ar.data.dataset import Dataset
from visual_ar.text_encoder import TextEncoder, vocabulary


class Given(NamedTuple):
    """Arguments of `LlamaGen.condition`: labels int64 [B], or features [B, P, C] and their mask."""

    given: Tensor
    mask: Tensor | None


class Conditions(Protocol):
    """Turns positions in a dataset into what the generator is conditioned on."""

    def describe(self, indices: Tensor, encoder: nn.Module | None) -> Given:
        """What stands for the pictures themselves. indices: int64 [B]."""

    def vary(self, indices: Tensor, encoder: nn.Module | None, draw: torch.Generator) -> Given:
        """The same in one of the forms that training shows. indices: int64 [B]."""


class ClassConditions:
    """Class labels."""

    def __init__(self, data: Dataset, device: torch.device) -> None:
        if data.labels is None:
            raise ValueError(f"a recipe without [text] needs labels, {data.name} has none")
        self._labels = torch.from_numpy(data.labels).to(device)

    def describe(self, indices: Tensor, encoder: nn.Module | None) -> Given:
        return Given(self._labels[indices.to(self._labels.device)], None)

    def vary(self, indices: Tensor, encoder: nn.Module | None, draw: torch.Generator) -> Given:
        return self.describe(indices, encoder)


class TextConditions:
    """Prompts, at times replaced by another name of the same picture."""

    def __init__(self, data: Dataset, alias: float) -> None:
        if not data.items:
            raise ValueError(f"a recipe with [text] needs captions, {data.name} has none")
        self._prompts = data.prompts
        self._aliases = [item["aliases"] for item in data.items]
        self._alias = alias

    def words(self, indices: Tensor) -> list[str]:
        """Every word in the prompts and aliases of some pictures, sorted. indices: int64 [M]."""
        texts = [text for i in indices.tolist() for text in (self._prompts[i], *self._aliases[i])]
        return vocabulary(texts)

    def told(self, indices: Tensor) -> str:
        """The same text whenever `vary` tells the same of some pictures. indices: int64 [M]."""
        texts = [(self._prompts[i], self._aliases[i]) for i in indices.tolist()]
        return repr((self._alias, texts))

    def describe(self, indices: Tensor, encoder: nn.Module | None) -> Given:
        return self._encode([self._prompts[i] for i in indices.tolist()], encoder)

    def vary(self, indices: Tensor, encoder: nn.Module | None, draw: torch.Generator) -> Given:
        chances = torch.rand(len(indices), 2, generator=draw).tolist()
        texts = []
        for i, (chance, which) in zip(indices.tolist(), chances, strict=True):
            aliases = self._aliases[i]
            other = bool(aliases) and chance < self._alias
            texts.append(aliases[int(which * len(aliases))] if other else self._prompts[i])
        return self._encode(texts, encoder)

    @staticmethod
    def _encode(texts: list[str], encoder: nn.Module | None) -> Given:
        assert isinstance(encoder, TextEncoder)
        return Given(*encoder.encode(texts))
