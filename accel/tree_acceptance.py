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


def without(law: Tensor, tokens: Tensor) -> Tensor:
    """Laws without some tokens, renormalised; all zero where no mass is left.

    Args:
        law: [B, G, V].
        tokens: int64 [B, G, M], M may be 0.

    Returns:
        [B, G, V].
    """
    if tokens.shape[-1] == 0:
        return law
    rest = law.scatter(-1, tokens, 0.0)
    return rest / rest.sum(-1, keepdim=True).clamp(min=1e-30)


def recursive_rejection(
    p: CategoricalLaw, q: CategoricalLaw, rows: Tensor, tokens: Tensor, there: Tensor
) -> tuple[Tensor, CategoricalLaw]:
    """How likely each sibling is kept once those before it are refused, and the law if all are.

    Args:
        p: [B, G] target laws, one for each family of siblings.
        q: [B, M] laws.
        rows: int64 [B, G, S], law that each sibling was drawn from, without those before it.
        tokens: int64 [B, G, S], in the order they were drawn.
        there: bool [B, G, S], whether there is such a sibling.

    Returns:
        chances [B, G, S], and [B, G] laws of the token that replaces them.
    """
    target = p.probabilities
    chances = []
    for s in range(tokens.shape[-1]):
        law = without(take_rows(q.probabilities, rows[..., s]), tokens[..., :s])
        token = tokens[..., s : s + 1]
        drawn = law.gather(-1, token)
        made = there[..., s : s + 1] & (drawn > 0)
        chances.append(acceptance.ratio(target.gather(-1, token), drawn) * made)
        rest = (target - law).clamp(min=0)
        refused = acceptance.normalised(rest, CategoricalLaw(probabilities=target))
        target = torch.where(made, refused.probabilities, target)
    return torch.cat(chances, -1), CategoricalLaw(probabilities=target)


def judge(tree: Tree, p: CategoricalLaw, draft: Draft, u: Tensor) -> Verdict:
    """Walks from column 0 to the first kept child, and on, until none is kept.

    Where there may be siblings it walks step by step; the rest, only children, is judged at once.

    Args:
        tree: of Q columns.
        p: [B, Q] target laws that the columns predict.
        draft: of the columns 1..Q - 1.
        u: [B, C] in (0, 1), C at least Q, one for every column.
    """
    tokens, rows = _with_root(draft.tokens), _with_root(draft.rows)
    current = torch.zeros_like(tokens[:, :1])
    alive = torch.ones_like(current, dtype=torch.bool)
    refused = p.probabilities[:, :1]
    path = tokens.new_zeros(len(tokens), tree.deepest + 2)
    for depth in range(1, tree.deepest_fork + 1):
        kids, chances, rest = _family(tree, p, draft.q, rows, tokens, current, tree.siblings)
        passes = _of(u, kids) < chances
        chosen = torch.where(passes.any(-1), _first(kids, passes), -1)
        stays = alive & (chosen < 0)
        refused = torch.where(stays[..., None], rest.probabilities, refused)
        alive = alive & ~stays
        current = torch.where(alive, chosen, current)
        path[:, depth : depth + 1] = torch.where(alive, chosen, 0)
    kept = u[:, : tree.columns] * _at(draft.q, rows, tokens) < _at(p, tree.parents, tokens)
    kept &= tree.exists
    reached = _descendants(tree, current, kept) & alive
    depth_of = torch.where(reached, tree.depth, -1)
    columns = torch.arange(tree.columns, device=u.device).expand_as(depth_of)
    path.scatter_(1, torch.where(reached, tree.depth, tree.deepest + 1), columns)
    last = torch.where(alive, depth_of.argmax(-1, keepdim=True), current)
    _, _, rest = _family(tree, p, draft.q, rows, tokens, last, 1)
    law = torch.where(alive[..., None], rest.probabilities, refused)
    run = tree.depth.gather(1, last)[:, 0]
    return Verdict(path[:, :-1], run, last[:, 0], CategoricalLaw(probabilities=law))


def _descendants(tree: Tree, current: Tensor, kept: Tensor) -> Tensor:
    """A column and those below it that are reached through kept only children.

    Args:
        tree: of Q columns.
        current: int64 [B, 1].
        kept: bool [B, Q], whether each column passes by itself.

    Returns:
        bool [B, Q].
    """
    here = current[..., None].expand(-1, tree.columns, -1)
    below = tree.sees.gather(2, here)[..., 0]
    above = tree.depth <= tree.depth.gather(1, current)
    return below & tree.exists & ~(tree.sees & ~(kept | above)[:, None]).any(-1)


def _family(
    tree: Tree,
    p: CategoricalLaw,
    q: CategoricalLaw,
    rows: Tensor,
    tokens: Tensor,
    parent: Tensor,
    most: int,
) -> tuple[Tensor, Tensor, CategoricalLaw]:
    """The first `most` children of a column, and `recursive_rejection` of them.

    Args:
        tree: of Q columns.
        p: [B, Q] target laws.
        q: [B, M] laws.
        rows: int64 [B, Q].
        tokens: int64 [B, Q].
        parent: int64 [B, 1].
        most: at least 1.

    Returns:
        columns int64 [B, 1, most], -1 where there is no child; chances [B, 1, most]; [B, 1] laws.
    """
    kids = tree.children.gather(1, parent[..., None].expand(-1, -1, tree.siblings))[..., :most]
    drawn = _of(rows, kids), _of(tokens, kids)
    chances, rest = recursive_rejection(p.rows(parent), q, *drawn, kids >= 0)
    return kids, chances, rest


def _first(kids: Tensor, passes: Tensor) -> Tensor:
    """The first column that passes. kids: int64 [B, 1, S]; passes: bool [B, 1, S]; [B, 1]."""
    return kids.gather(-1, passes.int().argmax(-1, keepdim=True))[..., 0]


def _of(values: Tensor, columns: Tensor) -> Tensor:
    """Values [B, C] of columns, int64 [B, G, S]; those of column 0 for -1."""
    return values.gather(1, columns.clamp(min=0).flatten(1)).view(columns.shape)


def _at(law: CategoricalLaw, rows: Tensor, tokens: Tensor) -> Tensor:
    """Probabilities of tokens under chosen laws. rows, tokens: int64 [B, Q]; returns [B, Q]."""
    return law.probabilities.flatten(1).gather(1, rows * law.vocabulary + tokens)


def _with_root(values: Tensor) -> Tensor:
    """Puts a 0 for column 0 before [B, K]."""
    return torch.cat([torch.zeros_like(values[:, :1]), values], 1)
