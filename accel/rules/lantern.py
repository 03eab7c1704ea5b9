"""LANTERN (Jang et al. 2025, eq. 4): a draft counts with its nearest codes, up to some mass."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from visual_ar.accel.rules.rule import KernelForm, Rule, TableRule, every_token, require
from visual_ar.tokenizers.visual_tokenizer import VisualTokenizer
from visual_ar.tokens.codes import CategoricalLaw, ratio
from visual_ar.tokens.kind import TokenKind


@dataclass(frozen=True)
class Lantern(TableRule):
    """The nearest codes of a draft add their mass to its own, together at most `delta`. Lossy.

    Attributes:
        neighbours: codes looked at, at least 1.
        delta: largest mass added, in (0, 1].
        codes: int64 [V, k] nearest codes; bound from the tokenizer.
    """

    name: ClassVar[str] = "lantern"
    structure: ClassVar[str | None] = "Lantern"
    codes_dtype: ClassVar[torch.dtype | None] = torch.int64
    neighbours: int = 10
    delta: float = 0.1
    codes: Tensor | None = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        require(self, "neighbours", self.neighbours >= 1, "at least 1")
        require(self, "delta", 0 < self.delta <= 1, "in (0, 1]")

    def check(self, kind: TokenKind, tokenizer: VisualTokenizer | None) -> None:
        """See `Rule.check`."""
        super().check(kind, tokenizer)
        assert tokenizer is not None
        most = tokenizer.codebook_size - 1
        require(self, "neighbours", self.neighbours <= most, f"at most {most} for this code book")

    def bind(self, tokenizer: VisualTokenizer | None, device: torch.device) -> Rule:
        """See `Rule.bind`."""
        assert tokenizer is not None, "check the rule first"
        return self.with_codes(tokenizer.neighbours(self.neighbours).to(device))

    def kernel_form(self) -> KernelForm:
        """See `Rule.kernel_form`."""
        return KernelForm("Lantern", (self.delta, 0.0), codes=self.codes)

    def chance(
        self, p: CategoricalLaw, q: CategoricalLaw, tokens: Tensor, depth: Tensor | None = None
    ) -> Tensor:
        """See `TableRule.chance`."""
        added, _, _ = self._aggregated(p, tokens)
        own = p.probs(tokens)
        return ratio(own + added, q.probs(tokens)) * (own > 0)

    def correction(
        self, p: CategoricalLaw, q: CategoricalLaw, drafts: Tensor, position: Tensor
    ) -> CategoricalLaw:
        """See `TableRule.correction`: the residual without the codes that counted too."""
        here = position[:, None]
        p, q = p.rows(here), q.rows(here)
        rest = p.residual_law(q)
        _, near, inside = self._aggregated(p, drafts.gather(1, here)[..., None])
        removed = torch.zeros_like(rest.probabilities)
        removed.scatter_add_(-1, near[..., 0, :], inside[..., 0, :].to(removed.dtype))
        return rest.or_instead(rest.probabilities * (removed == 0))

    def _after_rejection(self, p: CategoricalLaw, q: CategoricalLaw, rejected: Tensor) -> Tensor:
        """Sums over the refused drafts, whose corrections differ by the set that is removed."""
        rest = p.residual_law(q).probabilities
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
        rest = p.residual_law(q)
        _, near, inside = self._aggregated(p, drafts[..., None])
        gone = (rest.probs(near[..., 0, :]) * inside[..., 0, :]).sum(-1)
        return torch.where(gone < 1 - 1e-6, gone, 0.0)

    def _aggregated(self, p: CategoricalLaw, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert self.codes is not None, "bind the rule to a tokenizer first"
        return aggregated(p, tokens, self.codes, self._bound(p, tokens))

    def _bound(self, p: CategoricalLaw, tokens: Tensor) -> Tensor | float:
        return self.delta


def aggregated(
    p: CategoricalLaw, tokens: Tensor, neighbours: Tensor, bound: Tensor | float
) -> tuple[Tensor, Tensor, Tensor]:
    """The set A(x), equation 4: nearest codes while their mass fits.

    Args:
        p: [B, K] target laws.
        tokens: int64 [B, K, M].
        neighbours: int64 [V, k], nearest first, without the code itself.
        bound: largest p(A(x)), broadcastable to [B, K, M].

    Returns:
        p(A(x)) [B, K, M], the neighbours int64 [B, K, M, k], and which of them are in A(x), bool.
    """
    near = neighbours[tokens]
    mass = p.probabilities.gather(-1, near.flatten(-2)).view(near.shape).cumsum(-1)
    limit = torch.as_tensor(bound, device=mass.device)
    inside = mass <= (limit[..., None] if limit.dim() else limit)
    return (mass * inside).amax(-1), near, inside
