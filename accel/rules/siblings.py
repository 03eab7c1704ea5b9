"""Several drafts at one position: drawn without replacement, judged by recursive rejection.

Jeon et al. (2024), Recursive Speculative Decoding, arXiv 2402.14160, Algorithm 2: each sibling is
tested against what the target law keeps after the refusal of the siblings before it, with the law
it was truly drawn from. A lossy rule takes the place of the test and of what is left after it, as
LANTERN++ does on static trees (Park et al. 2025, arXiv 2502.06352). Knows no trees.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visual_ar.accel.rules.rule import TableRule
from visual_ar.sampling import take_rows
from visual_ar.tokens.codes import CategoricalLaw, ratio

_TINY = 1e-30


def draw_in_turn(laws: Tensor, first: Tensor, u: Tensor) -> Tensor:
    """Siblings of families, each drawn without those before it.

    Args:
        laws: [B, G, R, V], the laws that the siblings of a family take turns to be drawn from.
        first: int64 [B, G], the first sibling.
        u: [B, G, S] in (0, 1), one for every sibling; that of the first is not read.

    Returns:
        int64 [B, G, S]; any token where a law has no mass left.
    """
    left, drawn = [law.clone() for law in laws.unbind(2)], [first[..., None]]
    for s, number in enumerate(u.split(1, -1)[1:], 1):
        for law in left:
            law.scatter_(-1, drawn[-1], 0.0)
        # `CategoricalLaw.draw` without its views, for there may be dozens of siblings.
        cumulative = left[s % len(left)].cumsum(-1)
        wanted = number * cumulative[..., -1:]
        token = torch.searchsorted(cumulative, wanted, right=True)
        drawn.append(token.clamp_(max=laws.shape[-1] - 1))
    return torch.cat(drawn, -1)


def drawn_from(q: CategoricalLaw, rows: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """What every sibling was drawn from: its law without the siblings before it.

    Args:
        q: [B, M] laws.
        rows: int64 [B, G, S], the law of each sibling.
        tokens: int64 [B, G, S], in the order they were drawn.

    Returns:
        [B, G, S, V] with what is left of every law, and its mass [B, G, S].
    """
    count = tokens.shape[-1]
    left = take_rows(q.probabilities, rows.flatten(1)).unflatten(1, tokens.shape[1:])
    if count > 1:
        # Sibling s + 1 loses the tokens 0..s; the last of them fills up the row.
        sibling = torch.arange(count - 1, device=tokens.device)
        earlier = torch.minimum(sibling, sibling[:, None])
        left[:, :, 1:].scatter_(-1, tokens[..., earlier], 0.0)
    return left, left.sum(-1)


def recursive_rejection(
    p: CategoricalLaw, q: CategoricalLaw, rows: Tensor, tokens: Tensor, there: Tensor
) -> tuple[Tensor, CategoricalLaw]:
    """How likely each sibling is kept once those before it are refused, and the law if all are.

    The target of a sibling is carried along unnormalised, next to its mass: a refusal then takes
    one subtraction over the vocabulary.

    Args:
        p: [B, G] target laws, one for each family of siblings.
        q: [B, M] laws.
        rows: int64 [B, G, S], law that each sibling was drawn from, without those before it.
        tokens: int64 [B, G, S], in the order they were drawn.
        there: bool [B, G, S], whether there is such a sibling.

    Returns:
        chances [B, G, S], and [B, G] laws of the token that replaces them.
    """
    left, mass = drawn_from(q, rows, tokens)
    drawn = left.gather(-1, tokens[..., None])[..., 0]
    made = there & (drawn > 0)
    share = made / mass.clamp(min=_TINY)  # a draft that was not made takes nothing away
    target = p.probabilities
    totals, wanted = [torch.ones_like(target[..., :1])], []
    laws = zip(left.unbind(2), tokens.split(1, -1), share.split(1, -1), strict=True)
    for law, token, weight in laws:
        wanted.append(target.gather(-1, token))
        target = torch.addcmul(target, law, totals[-1] * weight, value=-1).clamp_(min=0)
        totals.append(target.sum(-1, keepdim=True))
    before = torch.cat(totals[:-1], -1).clamp(min=_TINY)
    chances = ratio(torch.cat(wanted, -1) / before, drawn * share) * made
    return chances, p.or_instead(target)


def relaxed_rejection(
    rule: TableRule,
    p: CategoricalLaw,
    q: CategoricalLaw,
    rows: Tensor,
    tokens: Tensor,
    there: Tensor,
    depth: Tensor,
) -> tuple[Tensor, CategoricalLaw, Tensor]:
    """`recursive_rejection` by any rule: each sibling against the correction of those before it.

    What the rule spends is estimated by the sum over the siblings of `TableRule.bound`, each times
    the chance that all before it are refused. Its mean over the drafts is at least the total
    variation between the emitted law and p: every refusal passes the error of the law behind it on.

    Args:
        rule: tests a sibling, and says what replaces it.
        p: [B, 1] target laws.
        q: [B, M] laws.
        rows: int64 [B, 1, S], see `recursive_rejection`.
        tokens: int64 [B, 1, S].
        there: bool [B, 1, S].
        depth: int64 [1] or [B, 1], drafts kept in front of the siblings.

    Returns:
        chances [B, 1, S]; [B, 1] laws of the token that replaces them all; fp32 [B, 1] spent.
    """
    left, mass = drawn_from(q, rows, tokens)
    laws = left / mass.clamp(min=_TINY)[..., None]
    target, chances = p, []
    position = torch.zeros_like(tokens[:, 0, 0])
    spent = torch.zeros_like(mass[..., 0])
    reached = torch.ones_like(spent)
    for weights, token, exists in zip(
        laws.unbind(2), tokens.unbind(2), there.unbind(2), strict=True
    ):
        law = CategoricalLaw(probabilities=weights)
        made = exists & (law.prob(token) > 0)
        chances.append(rule.chance(target, law, token[..., None], depth)[..., 0] * made)
        spent = spent + reached * rule.bound(target, law, token, depth) * made
        reached = reached * (1 - chances[-1])
        refused = rule.correction(target, law, token, position)
        kept = torch.where(made[..., None], refused.probabilities, target.probabilities)
        target = CategoricalLaw(probabilities=kept)
    return torch.stack(chances, -1), target, spent
