"""The pictures that a decoding method works on, in slots, and what one pass did to them.

Knows tokens by their kind, laws and the cache; knows nothing about how a method drafts or accepts,
about families or pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from visual_ar.accel.loop.graphs import CapturedSteps
from visual_ar.accel.loop.host_copy import OpenLength
from visual_ar.accel.loop.structure import Structure
from visual_ar.cache import KVCache
from visual_ar.cast import Cast
from visual_ar.layout import Layout
from visual_ar.models.token_model import TokenModel
from visual_ar.sampling import Sampling, Warps
from visual_ar.tokens.kind import TokenKind


class Step(NamedTuple):
    """What one pass did. Device tensors; whoever reads them on the host decides when.

    Attributes:
        tokens: [B, N, *] of the model's kind in decode order; drafts and blanks where not known.
        known: bool [B, N], the committed ranks.
        committed: int64 [B], tokens committed by this pass; 0 for idle slots.
        head_evaluations: evaluations of the model's head by this pass, summed over pictures.
        done: bool [B].
        spent: fp32 [B], total variation that a lossy rule spent on the committed tokens, summed;
            None when the method is lossless.
        draft_evaluations: steps of a draft head before this pass, summed over pictures; each reads
            the model's head once more.
    """

    tokens: Tensor
    known: Tensor
    committed: Tensor
    head_evaluations: int
    done: Tensor
    spent: Tensor | None = None
    draft_evaluations: int = 0

    @property
    def settled(self) -> Tensor:
        """bool [B, N], ranks that no later pass changes: known, or behind the end of a picture."""
        return self.known | self.done[:, None]


@dataclass
class DecodeState:
    """Static buffers of B slots; a slot is idle until a picture is admitted to it.

    Tokens are [B, Q, *] of the model's kind; methods read and write them with `take` and `put`.

    Attributes:
        cast: the generator and whoever is with it; its layout is on the device.
        cache: keys and values of R = B or 2B rows.
        guided: whether every slot has an unconditional row.
        tokens: [B, N + scratch, *], committed tokens, then drafts; blank at structural ranks.
        length: int64 [B], ranks that are done with. An idle slot has length N.
        passes: int64 [B], passes made for the picture in the slot.
        root: [R, 1, D], embedding of the last prefix token, the feed of rank -1.
        guidance: fp32 [B, N + scratch] by rank.
        temperature: fp32 [B].
        top_k: int64 [B].
        top_p: fp32 [B].
        seed: int64 [B].
        forced: shaped as `TokenKind.no_force`, [B, N + scratch, *]; None when nothing is forced.
        noise: fp32 [B, N + scratch, *] fixed per rank, for the frozen modes only; the kernel makes
            its own.
        window: ranks that a pass predicts, W; there are as many scratch ranks.
        open_length: largest length of an unfinished slot, as the host last saw it.
        warps: warps that any admitted picture needs.
        fused: whether the verification kernel does the method's share of a pass here.
        captured: its passes as graphs; None where passes are run one operation at a time.
        structure: tables of ranks that no pass draws; None where every rank is drawn.
        end: int64 [B], ranks of the picture; None where no token ends one.
        method: buffers of the method's own.
        kind: of the tokens.
        columns: int64 [N + scratch], 0, 1, 2, ... as every pass needs them.
        starts: int64 [B, 1], index of each slot's first row where [B, N + scratch] is one axis.
    """

    cast: Cast
    cache: KVCache
    guided: bool
    tokens: Tensor
    length: Tensor
    passes: Tensor
    root: Tensor
    guidance: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    seed: Tensor
    forced: Tensor | None
    noise: Tensor | None
    window: int
    open_length: OpenLength
    warps: Warps = field(default_factory=Warps)
    fused: bool = False
    captured: CapturedSteps | None = None
    structure: Structure | None = None
    end: Tensor | None = None
    method: Any = None
    kind: TokenKind = field(init=False)
    columns: Tensor = field(init=False)
    starts: Tensor = field(init=False)

    def __post_init__(self) -> None:
        slots, width = self.tokens.shape[:2]
        device = self.tokens.device
        self.kind = self.cast.model.tokens
        self.columns = torch.arange(width, device=device)
        self.starts = torch.arange(0, slots * width, width, device=device)[:, None]

    @property
    def model(self) -> TokenModel:
        """The generator."""
        return self.cast.model

    @property
    def layout(self) -> Layout:
        """The decode order."""
        return self.cast.layout

    @property
    def slots(self) -> int:
        """Number of slots B."""
        return self.tokens.shape[0]

    @property
    def done(self) -> Tensor:
        """bool [B], idle or finished."""
        return self.length >= self.layout.length

    def take(self, ranks: Tensor) -> Tensor:
        """Tokens of some ranks. ranks: int64 [B, Q]; returns tokens [B, Q, *]."""
        return self.tokens.gather(1, self.kind.index(ranks))

    def put(self, ranks: Tensor, tokens: Tensor) -> None:
        """Writes tokens. ranks: int64 [B, Q]; tokens: as `take` returns them."""
        self.tokens.scatter_(1, self.kind.index(ranks), tokens)

    def rows(self, slots: Tensor) -> Tensor:
        """Rows of some slots, conditional ones first. slots: int64 [b]; returns [b] or [2b]."""
        return torch.cat([slots, slots + self.slots]) if self.guided else slots

    def twice(self, per_slot: Tensor) -> Tensor:
        """Repeats [B, ...] for the unconditional rows if there are any."""
        return torch.cat([per_slot, per_slot]) if self.guided else per_slot

    def row_ranks(self, ranks: Tensor) -> Tensor:
        """`twice` for what nobody writes to: no copy where there is one picture."""
        return ranks.expand(len(self.root) // self.slots, -1, -1).flatten(0, 1)

    def forward(
        self,
        tokens: Tensor,
        ranks: Tensor,
        visible: Tensor | None = None,
        slots: Tensor | None = None,
    ) -> Tensor:
        """One pass over some tokens of every slot, those behind the last pass's first.

        Ranks that were committed without a pass of their own, just before `ranks`, are fed with
        them; see `Structure.lead`.

        Args:
            tokens: [B, Q, *]. A feed of rank -1 may only stand in the first column.
            ranks: int64 [B, Q], from -1.
            visible: bool [R, 1, Q, extent], see `TokenModel.forward`; None is the model's own rule.
            slots: int64 [R, Q] of the cache, for models that can "trees"; None is P + rank.

        Returns:
            [R, Q, D] hidden states, or [R, Q, A, D] where ranks have A sources.
        """
        structure = self.structure
        if structure is None or structure.lead == 0:
            return self.forward_alone(tokens, ranks, visible, slots)
        before = structure.ranks_before(ranks)
        lead = self.take(before.clamp(min=0))
        if visible is not None:
            rows = self.twice(before) + self.cache.prefix
            visible = torch.cat([self.cache.visible(rows), visible], dim=2)
            assert slots is not None
            slots = torch.cat([rows, slots], dim=1)
        both = torch.cat([lead, tokens], dim=1), torch.cat([before, ranks], dim=1)
        return self.forward_alone(*both, visible, slots)[:, structure.lead :]

    def forward_alone(
        self,
        tokens: Tensor,
        ranks: Tensor,
        visible: Tensor | None = None,
        slots: Tensor | None = None,
    ) -> Tensor:
        """`forward` over exactly these ranks, any of them."""
        x, row_ranks = self.inputs(self.embed(tokens, ranks), ranks)
        return self.model.forward(x, row_ranks, self.cache, visible, slots)

    def embed(self, tokens: Tensor, ranks: Tensor) -> Tensor:
        """Embeddings [B, Q, D]; structural ranks have those of their ids. [B, Q, *], [B, Q]."""
        x = self.model.embed(tokens, ranks)
        return x if self.structure is None else self.structure.embed(self.model, x, ranks)

    def inputs(self, x: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
        """What every row is fed: rank -1 has the root.

        Args:
            x: [B, Q, D] embeddings.
            ranks: int64 [B, Q], from -1.

        Returns:
            [R, Q, D] embeddings, and int64 [R, Q].
        """
        root = self.root.unflatten(0, (-1, self.slots))  # [1 or 2, B, 1, D]
        x = torch.where((ranks < 0)[..., None], root, x)  # repeats x for the unconditional rows
        return x.flatten(0, 1), self.row_ranks(ranks)

    def law(self, hidden: Tensor, ranks: Tensor) -> Any:
        """The guided, warped laws of `ranks`; what is forced is certain.

        Args:
            hidden: hidden states of their sources, as the model's `predict` takes them.
            ranks: int64 [B, Q], from 0.

        Returns:
            [B, Q] laws of the model's kind of token.
        """
        return self.warped(self.model.predict(hidden, self.row_ranks(ranks)), ranks)

    def warped(self, raw: Tensor, ranks: Tensor) -> Any:
        """The laws out of a head's output. raw: [R, Q, *]; ranks: int64 [B, Q], from 0."""
        conditional, unconditional = raw.chunk(2) if self.guided else (raw, None)
        scale = self.guidance.gather(1, ranks)
        options = Sampling(scale, self.temperature, self.top_k, self.top_p, self.seed)
        law = self.kind.law(conditional, unconditional, scale, options, self.warps)
        return law if self.forced is None else law.with_forced(self.forced_at(ranks))

    def law_from(self, features: Tensor) -> Any:
        """The laws of features that were kept. features: fp32 [B, Q, F]."""
        return self.kind.law_from(features, self.temperature)

    @property
    def law_width(self) -> int:
        """Numbers F of a law that is kept, see `TokenKind.width`."""
        return self.kind.width(self.guided)

    def forced_at(self, ranks: Tensor) -> Tensor:
        """What is forced at some ranks: [B, Q, *]. Only where something is. ranks: int64 [B, Q]."""
        assert self.forced is not None
        return self.forced.gather(1, self.kind.index(ranks))

    def noise_at(self, ranks: Tensor) -> Tensor:
        """Noise of some ranks. ranks: int64 [B, Q]; returns fp32 [B, Q, *]."""
        assert self.noise is not None
        rows = (ranks + self.starts).flatten()
        return self.noise.flatten(0, 1).index_select(0, rows).unflatten(0, ranks.shape)

    def set_options(self, slots: Tensor, sampling: Sampling) -> None:
        """Options, forced tokens and noise of new pictures. slots: int64 [b]; sampling: of b."""
        device, length = self.tokens.device, self.layout.length
        on_device = Sampling(*(option.to(device) for option in sampling))
        self.warps = self.warps.union(Warps.of(sampling))
        scales = on_device.guidance
        self.guidance[slots, :length] = scales if scales.dim() == 2 else scales[:, None]
        self.temperature[slots] = on_device.temperature
        self.top_k[slots] = on_device.top_k
        self.top_p[slots] = on_device.top_p
        self.seed[slots] = on_device.seed
        self._set_forced(slots)
        if self.noise is not None:
            ranks = torch.arange(length, device=device)
            self.noise[slots, :length] = self.kind.noise(on_device.seed, ranks)

    def _set_forced(self, slots: Tensor) -> None:
        """What the layout forces on new pictures: nothing drawn at structural ranks either."""
        forced, length, width = self.layout.forced, self.layout.length, self.tokens.shape[1]
        something = bool(self.kind.forces(forced).any())
        if self.forced is None and (something or self.structure is not None):
            self.forced = self.kind.no_force(self.slots, width, device=self.tokens.device)
        if self.forced is None:
            return
        self.forced[slots] = self.kind.no_force(len(slots), width, device=self.tokens.device)
        if something:
            self.forced[slots, :length] = forced[slots] if forced.dim() > 1 else forced
        if self.structure is not None:
            self.forced[slots[:, None], self.structure.ranks] = 0

    def report(
        self,
        committed: Tensor,
        head_evaluations: int,
        spent: Tensor | None = None,
        draft_evaluations: int = 0,
    ) -> Step:
        """The step's result.

        Args:
            committed: int64 [B].
            head_evaluations: ranks evaluated a slot.
            spent: fp32 [B], total variation spent.
            draft_evaluations: steps of a draft head a slot.
        """
        limit = self.layout.length
        known = self.columns[:limit] < self.length[:, None]
        if self.end is not None:
            known = known & (self.columns[:limit] < self.end[:, None])
        return Step(
            tokens=self.tokens[:, :limit].clone(),
            known=known,
            committed=committed,
            head_evaluations=head_evaluations * self.slots,
            done=self.done,
            spent=spent,
            draft_evaluations=draft_evaluations * self.slots,
        )

    def commit(self, tokens: Tensor, count: Tensor | int) -> Tensor:
        """Writes tokens behind the committed ones and advances the lengths.

        A token that ends a picture finishes it; ranks that no pass draws are passed over.

        Args:
            tokens: [B, Q, *] for ranks length .. length + Q - 1; those past `count` are drafts.
            count: int64 [B], how many of them are committed; a number is that of every slot.

        Returns:
            int64 [B], the number committed that exist: 0 for idle slots, none past the end.
        """
        limit = self.layout.length
        ranks = self.length[:, None] + self.columns[: tokens.shape[1]]
        if self.structure is not None:  # drafts behind `count` may be anything
            tokens = self.kind.force(tokens, self.forced_at(ranks))
        # An idle slot writes to its own scratch ranks, never to a finished picture.
        self.put(ranks, tokens)
        before = self.length
        length = (before + count).clamp_(max=limit)
        self.passes += before < limit
        if self.end is not None:
            ended = self.kind.ends(tokens) & (ranks >= before[:, None]) & (ranks < length[:, None])
            if self.structure is not None:  # which holds a 0, no token
                ended = ended & self.structure.are_cells(ranks)
            first = torch.where(ended, ranks + 1, limit).amin(1)
            length = torch.minimum(length, first)
            self.end = torch.where(before < limit, torch.minimum(self.end, first), self.end)
        if self.structure is None:
            committed = length - before
        else:
            committed = self.structure.drawn(before, length)
            length = self.structure.following[length]
        if self.end is not None:
            length = torch.where(self.end < limit, limit, length)
        self.length = length
        return committed
