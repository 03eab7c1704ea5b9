"""Several drafts at one position: drawn without replacement, judged by recursive rejection.

Jeon et al. (2024), Recursive Speculative Decoding, arXiv 2402.14160, Algorithm 2: each sibling is
tested against what the target law keeps after the refusal of the siblings before it, with the law
it was truly drawn from. A lossy rule takes the place of the test and of what is left after it, as
LANTERN++ does on static trees (Park et al. 2025, arXiv 2502.06352). Pure functions over laws,
drafts and uniforms. Knows nothing about who drafted, nor about models.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from visual_ar.accel.drafts.drafter import Draft, Verdict
from visual_ar.accel.drafts.tree import Tree
from visual_ar.accel.rules import acceptance
from visual_ar.accel.rules.rule import TokenRule
from visual_ar.sampling import CategoricalLaw, take_rows

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
        # `CategoricalLaw.sample` without its views, for there may be dozens of siblings.
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
    chances = acceptance.ratio(torch.cat(wanted, -1) / before, drawn * share) * made
    return chances, acceptance.normalised(target, p)


def relaxed_rejection(
    rule: TokenRule,
    p: CategoricalLaw,
    q: CategoricalLaw,
    rows: Tensor,
    tokens: Tensor,
    there: Tensor,
    depth: Tensor,
) -> tuple[Tensor, CategoricalLaw, Tensor]:
    """`recursive_rejection` by any rule: each sibling against the correction of those before it.

    What the rule spends is estimated by the sum over the siblings of `TokenRule.bound`, each times
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


def judge(tree: Tree, p: CategoricalLaw, draft: Draft, u: Tensor, rule: TokenRule) -> Verdict:
    """Walks from column 0 to the first kept child, and on, until none is kept.

    Through the bush it walks step by step; the trunk behind it is judged at once.

    Args:
        tree: of Q columns.
        p: [B, Q] target laws that the columns predict.
        draft: of the columns 1..Q - 1.
        u: [B, C] in (0, 1), C at least Q, one for every column.
        rule: judges every draft.
    """
    tokens, rows = _with_root(draft.tokens), _with_root(draft.rows)
    walk = _through_bush(tree, p, draft.q, rows, tokens, u, rule)
    reached = walk.alive & (walk.current == tree.bush)
    further, cost = _trunk_run(tree, p, draft, u, rule)
    further = further * reached
    last, run = walk.current + further, walk.run + further
    columns = torch.arange(tree.bush + 1, tree.deepest + 1, device=u.device)
    columns = columns.clamp(max=tree.columns - 1).expand(len(u), -1)
    child = (last + 1).clamp(max=tree.columns - 1)
    there = (last >= tree.bush) & (last < tree.trunk[:, None])
    behind = rows.gather(1, child)[..., None], tokens.gather(1, child)[..., None]
    rest = _refused(rule, p.rows(last), draft.q, *behind, there[..., None], run)
    law = torch.where(walk.alive[..., None], rest.probabilities, walk.refused)
    spent = None
    if cost is not None:
        tested = reached & (torch.arange(cost.shape[1], device=u.device) <= further)
        spent = torch.cat([*walk.spent, cost * tested], 1)
    return Verdict(
        path=torch.cat([*walk.path, columns], 1),
        run=run[:, 0],
        last=last[:, 0],
        correction=CategoricalLaw(probabilities=law),
        spent=spent,
    )


class _Walk(NamedTuple):
    """Where a walk through the bush ended.

    Attributes:
        path: int64 [B, 1] of every depth, the column kept there; past the end the last one.
        run: int64 [B, 1], drafts kept.
        current: int64 [B, 1], the last kept column.
        alive: bool [B, 1], whether a draft was kept at every depth of the bush.
        refused: [B, 1, V], where not, the law of the token behind it.
        spent: fp32 [B, 1] of every depth from 1 on, by a lossy rule.
    """

    path: list[Tensor]
    run: Tensor
    current: Tensor
    alive: Tensor
    refused: Tensor
    spent: list[Tensor]


def _through_bush(
    tree: Tree,
    p: CategoricalLaw,
    q: CategoricalLaw,
    rows: Tensor,
    tokens: Tensor,
    u: Tensor,
    rule: TokenRule,
) -> _Walk:
    """From column 0 to the first kept child, and on, step by step.

    Args:
        tree: of Q columns.
        p: [B, Q] target laws.
        q: [B, M] laws.
        rows: int64 [B, Q], law that each column was drawn from.
        tokens: int64 [B, Q].
        u: [B, C] in (0, 1).
        rule: judges every draft.
    """
    current = torch.zeros_like(tokens[:, :1])
    alive = torch.ones_like(current, dtype=torch.bool)
    run = torch.zeros_like(current)
    path, refused = [current], p.probabilities[:, :1]
    spent: list[Tensor] = []
    for _ in range(tree.bush):
        kids = tree.children.gather(1, current[..., None].expand(-1, -1, tree.siblings))[:, 0]
        column = kids.clamp(min=0)
        drawn = rows.gather(1, column)[:, None], tokens.gather(1, column)[:, None]
        family = p.rows(current), q, *drawn, (kids >= 0)[:, None]
        if rule.lossless:
            chances, rest = recursive_rejection(*family)
        else:
            chances, rest, cost = relaxed_rejection(rule, *family, run)
            spent.append(cost * alive)
        passes = u.gather(1, column) < chances[:, 0]
        stays = alive & ~passes.any(-1, keepdim=True)
        refused = torch.where(stays[..., None], rest.probabilities, refused)
        alive = alive & ~stays
        first = kids.gather(1, passes.int().argmax(-1, keepdim=True))
        current = torch.where(alive, first, current)
        run = run + alive
        path.append(current)
    return _Walk(path, run, current, alive, refused, spent)


def _refused(
    rule: TokenRule,
    p: CategoricalLaw,
    q: CategoricalLaw,
    rows: Tensor,
    tokens: Tensor,
    there: Tensor,
    depth: Tensor,
) -> CategoricalLaw:
    """[B, 1] laws behind an only child that was refused. Arguments as of `relaxed_rejection`."""
    if rule.lossless:
        weights = q.rows(rows[..., 0]).probabilities * there
        return acceptance.residual(p, CategoricalLaw(probabilities=weights))
    return relaxed_rejection(rule, p, q, rows, tokens, there, depth)[1]


def _trunk_run(
    tree: Tree, p: CategoricalLaw, draft: Draft, u: Tensor, rule: TokenRule
) -> tuple[Tensor, Tensor | None]:
    """How many drafts of the trunk behind the bush are kept, were its first one reached.

    Args:
        tree: of Q columns.
        p: [B, Q] target laws.
        draft: of the columns 1..Q - 1.
        u: [B, C] in (0, 1).
        rule: judges every draft.

    Returns:
        int64 [B, 1], and what a lossy rule spends on each where it is tested, [B, K].
    """
    first, end = tree.bush, min(tree.deepest, tree.columns - 1)
    tokens, rows = draft.tokens[:, first:end], draft.rows[:, first:end]
    column = torch.arange(first + 1, end + 1, device=u.device)
    there = column <= tree.trunk[:, None]
    numbers = u[:, first + 1 : end + 1]
    cost: Tensor | None = None
    if rule.lossless:
        drawn = draft.q.probabilities.flatten(1).gather(1, rows * draft.q.vocabulary + tokens)
        target = p.probabilities[:, first:end].gather(-1, tokens[..., None])[..., 0]
        passes = numbers * drawn < target
    else:
        law, q = CategoricalLaw(probabilities=p.probabilities[:, first:end]), draft.q.rows(rows)
        passes = numbers < rule.chance(law, q, tokens[..., None], column - 1)[..., 0]
        cost = rule.bound(law, q, tokens, column - 1) * there
    return acceptance.leading_run(passes & there)[:, None], cost


def _with_root(values: Tensor) -> Tensor:
    """Puts a 0 for column 0 before [B, K]."""
    return torch.cat([torch.zeros_like(values[:, :1]), values], 1)
