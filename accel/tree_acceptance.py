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

    All columns are judged at once, each as if its parent were reached; the path is read off behind.

    Args:
        tree: of Q columns.
        p: [B, Q] target laws that the columns predict.
        draft: of the columns 1..Q - 1.
        u: [B, C] in (0, 1), C at least Q, one for every column.
    """
    tokens, rows = _with_root(draft.tokens), _with_root(draft.rows)
    kept = u[:, : tree.columns] * _at(draft.q, rows, tokens) < _at(p, tree.parents, tokens)
    kept &= tree.exists
    if tree.forks.shape[1]:
        kept = _judge_forks(tree, p, draft.q, rows, tokens, u, kept)
    kept[:, 0] = True
    reached = tree.exists & ~(tree.sees & ~kept[:, None]).any(-1)
    depth = torch.where(reached, tree.depth, -1)
    run, last = depth.max(-1)
    path = tokens.new_zeros(len(tokens), tree.deepest + 2)
    columns = torch.arange(tree.columns, device=u.device).expand_as(depth)
    path.scatter_(1, torch.where(reached, depth, tree.deepest + 1), columns)
    here = last[:, None]
    kids, *family = _families(tree, rows, tokens, here)
    _, correction = recursive_rejection(p.rows(here), draft.q, *family, kids >= 0)
    return Verdict(path[:, :-1], run, last, correction)


def _judge_forks(
    tree: Tree,
    p: CategoricalLaw,
    q: CategoricalLaw,
    rows: Tensor,
    tokens: Tensor,
    u: Tensor,
    kept: Tensor,
) -> Tensor:
    """`kept`, bool [B, Q], with at most one child of every fork, the first that passes."""
    kids, *family = _families(tree, rows, tokens, tree.forks)
    chances, _ = recursive_rejection(p.rows(tree.forks), q, *family, kids >= 0)
    passes = _of(u, kids) < chances
    first = passes & (passes.cumsum(-1) == 1)
    nowhere = torch.where(kids >= 0, kids, tree.columns).flatten(1)
    wide = torch.cat([kept, kept[:, :1]], 1)
    return wide.scatter(1, nowhere, first.flatten(1))[:, :-1]


def _families(
    tree: Tree, rows: Tensor, tokens: Tensor, parents: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Columns, laws and tokens of the children of some columns.

    Args:
        tree: of Q columns.
        rows: int64 [B, Q].
        tokens: int64 [B, Q].
        parents: int64 [B, G].

    Returns:
        int64 [B, G, S] three times; -1 in the first where there is no child.
    """
    index = parents[..., None].expand(-1, -1, tree.siblings)
    kids = tree.children.gather(1, index)
    return kids, _of(rows, kids), _of(tokens, kids)


def _of(values: Tensor, columns: Tensor) -> Tensor:
    """Values [B, C] of columns, int64 [B, G, S]; those of column 0 for -1."""
    return values.gather(1, columns.clamp(min=0).flatten(1)).view(columns.shape)


def _at(law: CategoricalLaw, rows: Tensor, tokens: Tensor) -> Tensor:
    """Probabilities of tokens under chosen laws. rows, tokens: int64 [B, Q]; returns [B, Q]."""
    return law.probabilities.flatten(1).gather(1, rows * law.vocabulary + tokens)


def _with_root(values: Tensor) -> Tensor:
    """Puts a 0 for column 0 before [B, K]."""
    return torch.cat([torch.zeros_like(values[:, :1]), values], 1)
