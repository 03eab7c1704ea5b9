"""Acceptance rules that count a draft together with similar codes: grouped, LANTERN, LANTERN++.

All are lossy. The formulas are in `acceptance`. Knows nothing about models or about who drafted.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from visual_ar.accel.rules import acceptance
from visual_ar.accel.rules.rule import Rule, TokenRule, every_token, require
from visual_ar.sampling import CategoricalLaw
from visual_ar.tokenizers.visual_tokenizer import VisualTokenizer


@dataclass(frozen=True)
class Grouped(TokenRule):
    """Grouped Speculative Decoding: the ratio of clusters next to the draft in the order of p.

    A resample inside the cluster would make the cluster law exact, but the drafts behind were
    tested after the draft itself, so the run would end wherever the resample differs; drawn so as
    to differ as rarely as possible, that is the exact test again, and nothing is gained.

    Attributes:
        size: tokens of a cluster besides the draft, even, at least 2.
        distance: largest squared distance between code vectors of a cluster.
        gap: largest difference of probability within a cluster, in (0, 1].
        vectors: [V, d] code vectors; bound from the tokenizer.
    """

    name: ClassVar[str] = "grouped"
    compares_codes: ClassVar[bool] = True
    size: int = 14
    distance: float = 0.5
    gap: float = 0.15
    vectors: Tensor | None = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        require(self, "size", self.size >= 2 and self.size % 2 == 0, "even and at least 2")
        require(self, "distance", self.distance > 0, "above 0")
        require(self, "gap", 0 < self.gap <= 1, "in (0, 1]")

    def bind(self, tokenizer: VisualTokenizer | None, device: torch.device) -> Rule:
        self.check(tokenizer)
        assert tokenizer is not None
        return dataclasses.replace(self, vectors=tokenizer.code_vectors().to(device))

    def chance(
        self, p: CategoricalLaw, q: CategoricalLaw, tokens: Tensor, depth: Tensor | None = None
    ) -> Tensor:
        assert self.vectors is not None, "bind the rule to a tokenizer first"
        if tokens.shape[-1] == 1:
            cluster, member = acceptance.cluster_of_drafts(p, tokens[..., 0], self.size)
            cluster, member = cluster[..., None, :], member[..., None, :]
        else:
            cluster, member = acceptance.cluster_of_all(p, self.size)
        away = (self.vectors[cluster] - self.vectors[tokens][..., None, :]).square().sum(-1)
        return acceptance.cluster_ratio(
            p, q, tokens, cluster, member & (away < self.distance), self.gap
        )


@dataclass(frozen=True)
class Lantern(TokenRule):
    """LANTERN: a draft counts with its nearest codes, whose mass together is at most `delta`.

    Attributes:
        neighbours: codes looked at, at least 1.
        delta: largest mass added, in (0, 1].
        table: int64 [V, k] nearest codes; bound from the tokenizer.
    """

    name: ClassVar[str] = "lantern"
    compares_codes: ClassVar[bool] = True
    neighbours: int = 10
    delta: float = 0.1
    table: Tensor | None = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        require(self, "neighbours", self.neighbours >= 1, "at least 1")
        require(self, "delta", 0 < self.delta <= 1, "in (0, 1]")

    def check(self, tokenizer: VisualTokenizer | None) -> None:
        super().check(tokenizer)
        assert tokenizer is not None
        most = tokenizer.codebook_size - 1
        require(self, "neighbours", self.neighbours <= most, f"at most {most} for this code book")

    def bind(self, tokenizer: VisualTokenizer | None, device: torch.device) -> Rule:
        self.check(tokenizer)
        assert tokenizer is not None
        table = tokenizer.neighbours(self.neighbours)
        return dataclasses.replace(self, table=table.to(device))

    def chance(
        self, p: CategoricalLaw, q: CategoricalLaw, tokens: Tensor, depth: Tensor | None = None
    ) -> Tensor:
        added, _, _ = self._aggregated(p, tokens)
        own = acceptance.of_tokens(p, tokens)
        return acceptance.ratio(own + added, acceptance.of_tokens(q, tokens)) * (own > 0)

    def correction(
        self, p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor, position: Tensor
    ) -> CategoricalLaw:
        p, q = p.rows(position[:, None]), q.rows(position[:, None])
        rest = acceptance.residual(p, q)
        _, near, inside = self._aggregated(p, acceptance.at(drafts, position)[..., None])
        removed = torch.zeros_like(rest.probabilities)
        removed.scatter_add_(-1, near[..., 0, :], inside[..., 0, :].to(removed.dtype))
        return acceptance.normalised(rest.probabilities * (removed == 0), rest)

    def _after_rejection(self, p: CategoricalLaw, q: CategoricalLaw, rejected: Tensor) -> Tensor:
        """Sums over the refused drafts, whose corrections differ by the set that is removed."""
        rest = acceptance.residual(p, q).probabilities
        _, near, inside = self._aggregated(p, every_token(p))
        gone = rest.gather(-1, near.flatten(-2)).view(near.shape) * inside  # [B, K, V, k]
        left = 1 - gone.sum(-1)
        share = torch.where(left > 1e-6, rejected / left.clamp(min=1e-6), 0.0)
        whole = torch.where(left > 1e-6, 0.0, rejected)  # nothing is left: the ordinary residual
        weights = (share[..., None] * inside).flatten(-2)
        removed = torch.zeros_like(rest).scatter_add_(-1, near.flatten(-2), weights)
        mixed = rest * (share.sum(-1, keepdim=True) - removed) + rest * whole.sum(-1, keepdim=True)
        return mixed / mixed.sum(-1, keepdim=True).clamp(min=1e-30)

    def _correction_error(self, p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor) -> Tensor:
        rest = acceptance.residual(p, q)
        _, near, inside = self._aggregated(p, drafts[..., None])
        gone = (acceptance.of_tokens(rest, near[..., 0, :]) * inside[..., 0, :]).sum(-1)
        return torch.where(gone < 1 - 1e-6, gone, 0.0)

    def _aggregated(self, p: CategoricalLaw, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert self.table is not None, "bind the rule to a tokenizer first"
        return acceptance.aggregated(p, tokens, self.table, self._bound(p, tokens))

    def _bound(self, p: CategoricalLaw, tokens: Tensor) -> Tensor | float:
        return self.delta


@dataclass(frozen=True)
class LanternPlus(Lantern):
    """LANTERN++: the mass added is at most (lambda - 1) times that of the draft itself.

    Attributes:
        factor: lambda, above 1.
    """

    name: ClassVar[str] = "lantern++"
    delta: float = dataclasses.field(default=1.0, init=False, repr=False)
    factor: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "factor", self.factor > 1, "above 1")

    def _bound(self, p: CategoricalLaw, tokens: Tensor) -> Tensor | float:
        return (self.factor - 1) * acceptance.of_tokens(p, tokens)
