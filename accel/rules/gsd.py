"""Grouped Speculative Decoding (So et al. 2025, eq. 6): a draft counts with the codes like it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from visual_ar.accel.rules.rule import KernelForm, Rule, TableRule, require
from visual_ar.tokenizers.visual_tokenizer import VisualTokenizer
from visual_ar.tokens.codes import CategoricalLaw, ratio


@dataclass(frozen=True)
class Grouped(TableRule):
    """The ratio of the clusters next to the draft in the order of p. Lossy.

    A resample inside the cluster would make the cluster law exact, but the drafts behind were
    tested after the draft itself, so the run would end wherever the resample differs; drawn so as
    to differ as rarely as possible, that is the exact test again, and nothing is gained.

    Attributes:
        size: tokens of a cluster besides the draft, even, at least 2.
        distance: largest squared distance between code vectors of a cluster.
        gap: largest difference of probability within a cluster, in (0, 1].
        codes: fp32 [V, d] code vectors; bound from the tokenizer.
    """

    name: ClassVar[str] = "grouped"
    structure: ClassVar[str | None] = "Grouped"
    codes_dtype: ClassVar[torch.dtype | None] = torch.float32
    size: int = 14
    distance: float = 0.5
    gap: float = 0.15
    codes: Tensor | None = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        require(self, "size", self.size >= 2 and self.size % 2 == 0, "even and at least 2")
        require(self, "distance", self.distance > 0, "above 0")
        require(self, "gap", 0 < self.gap <= 1, "in (0, 1]")

    def bind(self, tokenizer: VisualTokenizer | None, device: torch.device) -> Rule:
        """See `Rule.bind`."""
        assert tokenizer is not None, "check the rule first"
        return self.with_codes(tokenizer.code_vectors().to(device))

    def kernel_form(self) -> KernelForm:
        """See `Rule.kernel_form`."""
        codes = None if self.codes is None else self.codes.float()
        return KernelForm("Grouped", (self.distance, self.gap), self.size, codes)

    def chance(
        self, p: CategoricalLaw, q: CategoricalLaw, tokens: Tensor, depth: Tensor | None = None
    ) -> Tensor:
        """See `TableRule.chance`."""
        assert self.codes is not None, "bind the rule to a tokenizer first"
        if tokens.shape[-1] == 1:
            cluster, member = cluster_of_drafts(p, tokens[..., 0], self.size)
            cluster, member = cluster[..., None, :], member[..., None, :]
        else:
            cluster, member = cluster_of_all(p, self.size)
        away = (self.codes[cluster] - self.codes[tokens][..., None, :]).square().sum(-1)
        return cluster_ratio(p, q, tokens, cluster, member & (away < self.distance), self.gap)


def cluster_of_drafts(p: CategoricalLaw, drafts: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The tokens next to each draft in the order of p, half of them above and half below.

    Section 3.3: clusters made anew at every step.

    Args:
        p: [B, K] target laws.
        drafts: int64 [B, K].
        size: tokens in a cluster besides the draft, even.

    Returns:
        int64 [B, K, size], and bool [B, K, size], False where there is no such token.
    """
    weights, own = p.probabilities, p.prob(drafts)[..., None]
    half = min(size // 2, weights.shape[-1] - 1)
    at_draft = torch.zeros_like(weights, dtype=torch.bool).scatter_(-1, drafts[..., None], True)
    above = weights.masked_fill((weights < own) | at_draft, torch.inf)
    below = weights.masked_fill((weights >= own) | (weights <= 0), -1.0)
    upper = above.topk(half, largest=False)
    lower = below.topk(half)
    tokens = torch.cat([upper.indices, lower.indices], -1)
    return tokens, torch.cat([upper.values.isfinite(), lower.values > 0], -1)


def cluster_of_all(p: CategoricalLaw, size: int) -> tuple[Tensor, Tensor]:
    """`cluster_of_drafts` of every token at once, by sorting. Returns [B, K, V, size] twice."""
    vocabulary, half = p.vocabulary, min(size // 2, p.vocabulary - 1)
    order = p.probabilities.argsort(-1)  # ascending
    rank = order.argsort(-1)
    steps = torch.cat([torch.arange(1, half + 1), -torch.arange(1, half + 1)]).to(rank.device)
    around = rank[..., None] + steps
    there = (around >= 0) & (around < vocabulary)
    shape = around.shape
    tokens = order.gather(-1, around.clamp(0, vocabulary - 1).flatten(-2)).view(shape)
    possible = p.probs(tokens.flatten(-2)).view(shape) > 0
    return tokens, there & (possible | (steps > 0))


def cluster_ratio(
    p: CategoricalLaw,
    q: CategoricalLaw,
    tokens: Tensor,
    cluster: Tensor,
    member: Tensor,
    gap: float,
) -> Tensor:
    """Chances min(1, p(C) / q(C)), equation 6.

    Args:
        p: [B, K] target laws.
        q: [B, K] draft laws.
        tokens: int64 [B, K, M].
        cluster: int64 [B, K, M, G], the other tokens of the cluster of each.
        member: bool [B, K, M, G], which of them count.
        gap: largest difference of probability within a cluster.

    Returns:
        [B, K, M]; 0 for a token that p rules out.
    """
    own, flat = p.probs(tokens), cluster.flatten(-2)
    target = p.probs(flat).view(cluster.shape)
    draft = q.probs(flat).view(cluster.shape)
    member = member & ((target - own[..., None]).abs() < gap)
    together = own + (target * member).sum(-1)
    chance = ratio(together, q.probs(tokens) + (draft * member).sum(-1))
    return chance * (own > 0)
