"""Several drafts at one position: drawn without replacement, judged by recursive rejection.

Jeon et al. (2024), Recursive Speculative Decoding, arXiv 2402.14160, Algorithm 2: each sibling is
tested against what the target law keeps after the refusal of the siblings before it, with the law
it was truly drawn from. Pure functions over laws, drafts and uniforms. Knows nothing about who
drafted, nor about models.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visual_ar.accel import acceptance
from visual_ar.accel.drafting import Draft, Verdict
from visual_ar.accel.tree import Tree
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
    turns = laws.shape[2]
    drawn = first[..., None].repeat(1, 1, u.shape[-1])
    left = laws.clone()
    for s in range(1, u.shape[-1]):
        left.scatter_(-1, drawn[..., None, s - 1 : s].expand(-1, -1, turns, -1), 0.0)
        # The inverse CDF takes weights of any sum.
        weights = CategoricalLaw(probabilities=left[:, :, s % turns])
        drawn[..., s] = weights.sample(u[..., s])
    return drawn


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
    total = torch.ones_like(target[..., :1])
    wanted = []
    for s, law in enumerate(left.unbind(2)):
        wanted.append(target.gather(-1, tokens[..., s : s + 1]) / total.clamp(min=_TINY))
        taken = total * share[..., s : s + 1]
        target = torch.addcmul(target, law, taken, value=-1).clamp_(min=0)
        total = target.sum(-1, keepdim=True)
    chances = acceptance.ratio(torch.cat(wanted, -1), drawn * share) * made
    return chances, acceptance.normalised(target, p)


def judge(tree: Tree, p: CategoricalLaw, draft: Draft, u: Tensor) -> Verdict:
    """Walks from column 0 to the first kept child, and on, until none is kept.

    Through the bush it walks step by step; the trunk behind it is judged at once.

    Args:
        tree: of Q columns.
        p: [B, Q] target laws that the columns predict.
        draft: of the columns 1..Q - 1.
        u: [B, C] in (0, 1), C at least Q, one for every column.
    """
    tokens, rows = _with_root(draft.tokens), _with_root(draft.rows)
    current = torch.zeros_like(tokens[:, :1])
    alive = torch.ones_like(current, dtype=torch.bool)
    run = torch.zeros_like(current)
    path, refused = [current], p.probabilities[:, :1]
    for _ in range(tree.bush):
        kids = tree.children.gather(1, current[..., None].expand(-1, -1, tree.siblings))
        drawn = _of(rows, kids), _of(tokens, kids)
        chances, rest = recursive_rejection(p.rows(current), draft.q, *drawn, kids >= 0)
        passes = _of(u, kids) < chances
        stays = alive & ~passes.any(-1)
        refused = torch.where(stays[..., None], rest.probabilities, refused)
        alive = alive & ~stays
        current = torch.where(alive, _first(kids, passes), current)
        run = run + alive
        path.append(current)
    further = _trunk_run(tree, p, draft, u) * (alive & (current == tree.bush))
    last, run = current + further, run + further
    columns = torch.arange(tree.bush + 1, tree.deepest + 1, device=u.device)
    path.append(columns.clamp(max=tree.columns - 1).expand(len(u), -1))
    child = (last + 1).clamp(max=tree.columns - 1)
    there = (last >= tree.bush) & (last < tree.trunk[:, None])
    behind = rows.gather(1, child)[..., None], tokens.gather(1, child)[..., None]
    _, rest = recursive_rejection(p.rows(last), draft.q, *behind, there[..., None])
    law = torch.where(alive[..., None], rest.probabilities, refused)
    return Verdict(torch.cat(path, 1), run[:, 0], last[:, 0], CategoricalLaw(probabilities=law))


def _trunk_run(tree: Tree, p: CategoricalLaw, draft: Draft, u: Tensor) -> Tensor:
    """How many drafts of the trunk behind the bush are kept, were its first one reached.

    Args:
        tree: of Q columns.
        p: [B, Q] target laws.
        draft: of the columns 1..Q - 1.
        u: [B, C] in (0, 1).

    Returns:
        int64 [B, 1].
    """
    first, end = tree.bush, min(tree.deepest, tree.columns - 1)
    tokens, rows = draft.tokens[:, first:end], draft.rows[:, first:end]
    drawn = draft.q.probabilities.flatten(1).gather(1, rows * draft.q.vocabulary + tokens)
    target = p.probabilities[:, first:end].gather(-1, tokens[..., None])[..., 0]
    column = torch.arange(first + 1, end + 1, device=u.device)
    there = column <= tree.trunk[:, None]
    passes = there & (u[:, first + 1 : end + 1] * drawn < target)
    return acceptance.leading_run(passes)[:, None]


def _first(kids: Tensor, passes: Tensor) -> Tensor:
    """The first column that passes. kids: int64 [B, 1, S]; passes: bool [B, 1, S]; [B, 1]."""
    return kids.gather(-1, passes.int().argmax(-1, keepdim=True))[..., 0]


def _of(values: Tensor, columns: Tensor) -> Tensor:
    """Values [B, C] of columns, int64 [B, G, S]; those of column 0 for -1."""
    return values.gather(1, columns.clamp(min=0).flatten(1)).view(columns.shape)


def _with_root(values: Tensor) -> Tensor:
    """Puts a 0 for column 0 before [B, K]."""
    return torch.cat([torch.zeros_like(values[:, :1]), values], 1)
