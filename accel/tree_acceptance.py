"""Judges a tree of drafts: from its root to the first kept child, and on, until none is kept.

Recursive rejection (Jeon et al. 2024, arXiv 2402.14160) at every fork, the trunk behind them at
once. Pure functions over trees, laws, drafts and uniforms. Knows nothing about who drafted, nor
about models.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from visual_ar.accel.drafts.drafter import Draft, Verdict
from visual_ar.accel.drafts.tree import Tree
from visual_ar.accel.rules.rule import TableRule, leading_run
from visual_ar.accel.rules.siblings import recursive_rejection, relaxed_rejection
from visual_ar.tokens.codes import CategoricalLaw


def judge(tree: Tree, p: CategoricalLaw, draft: Draft, u: Tensor, rule: TableRule) -> Verdict:
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
    rule: TableRule,
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
    rule: TableRule,
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
        return p.residual_law(CategoricalLaw(probabilities=weights))
    return relaxed_rejection(rule, p, q, rows, tokens, there, depth)[1]


def _trunk_run(
    tree: Tree, p: CategoricalLaw, draft: Draft, u: Tensor, rule: TableRule
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
    return leading_run(passes & there)[:, None], cost


def _with_root(values: Tensor) -> Tensor:
    """Puts a 0 for column 0 before [B, K]."""
    return torch.cat([torch.zeros_like(values[:, :1]), values], 1)
