"""The pictures that a decoding method works on, in slots, and what one pass did to them.

Knows tokens, laws and the cache; knows nothing about how a method drafts or accepts, about families
or pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from visual_ar.accel.loop.graphs import CapturedSteps
from visual_ar.accel.loop.host_copy import OpenLength
from visual_ar.bits import BitLaw, SubcodeLaw
from visual_ar.cache import KVCache
from visual_ar.layout import FREE, Layout
from visual_ar.models.token_model import TokenModel
from visual_ar.sampling import (
    CategoricalLaw,
    Sampling,
    Warps,
    guide,
    gumbel_noise,
    logistic_noise,
    warp,
)


class Step(NamedTuple):
    """What one pass did. Device tensors; whoever reads them on the host decides when.

    Attributes:
        tokens: int64 [B, N] or bool [B, N, d] in decode order; drafts and zeros where not known.
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


@dataclass
class DecodeState:
    """Static buffers of B slots; a slot is idle until a picture is admitted to it.

    Tokens are int64 [B, Q] codes or, of a model of bits, bool [B, Q, d]; methods that read and
    write them with `take` and `put` need not know which.

    Attributes:
        model: the generator.
        layout: decode order, shared by the slots.
        cache: keys and values of R = B or 2B rows.
        guided: whether every slot has an unconditional row.
        tokens: int64 [B, N + scratch] or bool [B, N + scratch, d], committed tokens, then drafts.
        length: int64 [B], committed tokens. An idle slot has length N.
        passes: int64 [B], passes made for the picture in the slot.
        root: [R, 1, D], embedding of the last prefix token, the feed of rank -1.
        guidance: fp32 [B, N + scratch] by rank.
        temperature: fp32 [B].
        top_k: int64 [B].
        top_p: fp32 [B].
        seed: int64 [B].
        forced: int64, shaped as `tokens`, -1 where the model chooses; None when nothing is forced.
        noise: fp32 [B, N + scratch, V] Gumbel noise, or [B, N + scratch, d] logistic noise, fixed
            per rank, for the frozen modes only; the kernel makes its own.
        window: ranks that a pass predicts, W; there are as many scratch ranks.
        warps: warps that any admitted picture needs.
        open_length: largest length of an unfinished slot, as the host last saw it.
        fused: whether the verification kernel does the method's share of a pass here.
        captured: its passes as graphs; None where passes are run one operation at a time.
        method: buffers of the method's own.
        columns: int64 [N + scratch], 0, 1, 2, ... as every pass needs them.
        starts: int64 [B, 1], index of each slot's first row where [B, N + scratch] is one axis.
    """

    model: TokenModel
    layout: Layout
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
    method: Any = None
    columns: Tensor = field(init=False)
    starts: Tensor = field(init=False)

    def __post_init__(self) -> None:
        slots, width = self.tokens.shape[:2]
        device = self.tokens.device
        self.columns = torch.arange(width, device=device)
        self.starts = torch.arange(0, slots * width, width, device=device)[:, None]

    @property
    def slots(self) -> int:
        """Number of slots B."""
        return self.tokens.shape[0]

    @property
    def done(self) -> Tensor:
        """bool [B], idle or finished."""
        return self.length >= self.layout.length

    @property
    def bits(self) -> int:
        """Bits of a token d; 0 where tokens are codes."""
        return self.model.bits

    def take(self, ranks: Tensor) -> Tensor:
        """Tokens of some ranks. ranks: int64 [B, Q]; returns tokens [B, Q]."""
        return self.tokens.gather(1, self._index(ranks))

    def put(self, ranks: Tensor, tokens: Tensor) -> None:
        """Writes tokens. ranks: int64 [B, Q]; tokens: as `take` returns them."""
        self.tokens.scatter_(1, self._index(ranks), tokens)

    def _index(self, ranks: Tensor) -> Tensor:
        return ranks[..., None].expand(-1, -1, self.bits) if self.bits else ranks

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
        """One pass over some tokens of every slot.

        Args:
            tokens: int64 [B, Q] or bool [B, Q, d]. A feed of rank -1 may only stand in the first
                column.
            ranks: int64 [B, Q], from -1.
            visible: bool [R, 1, Q, extent], see `TokenModel.forward`; None is the model's own rule.
            slots: int64 [R, Q] of the cache, for models that can "trees"; None is P + rank.

        Returns:
            [R, Q, D] hidden states, or [R, Q, A, D] where ranks have A sources.
        """
        x, row_ranks = self.inputs(self.model.embed(tokens, ranks), ranks)
        return self.model.forward(x, row_ranks, self.cache, visible, slots)

    def inputs(self, x: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
        """What every row is fed: rank -1, which may only stand in the first column, has the root.

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
        """The guided, warped laws of `ranks`; forced ranks are point masses.

        Args:
            hidden: hidden states of their sources, as the model's `predict` takes them.
            ranks: int64 [B, Q], from 0.

        Returns:
            as of `warped`.
        """
        return self.warped(self.model.predict(hidden, self.row_ranks(ranks)), ranks)

    def warped(self, logits: Tensor, ranks: Tensor) -> Any:
        """The guided, warped laws out of a head's output; forced ranks are point masses.

        Args:
            logits: what the model's `predict` gave, fp32 [R, Q, V] of a code book.
            ranks: int64 [B, Q], from 0.

        Returns:
            a `CategoricalLaw`, or the law of the model's kind over bits.
        """
        if self.bits:
            return self._bit_law(logits, ranks)
        if self.guided:
            conditional, unconditional = logits[: len(ranks)], logits[len(ranks) :]
            logits = guide(conditional, unconditional, self.guidance.gather(1, ranks))
        logits = warp(logits, self.temperature, self.top_k, self.top_p, self.warps)
        if self.forced is not None:
            token = self.forced.gather(1, ranks)[..., None]
            codes = torch.arange(logits.shape[-1], device=logits.device)
            fixed = torch.where(codes == token, 0.0, -torch.inf)
            logits = torch.where(token >= 0, fixed, logits)
        return CategoricalLaw(logits=logits)

    def _bit_law(self, predicted: Tensor, ranks: Tensor) -> BitLaw | SubcodeLaw:
        conditional, unconditional = predicted.chunk(2) if self.guided else (predicted, None)
        scale = self.guidance.gather(1, ranks)
        law = self.model.bit_law(conditional, unconditional, scale, self.temperature, self.warps)
        if self.forced is None:
            return law
        return law.with_forced(self.forced.gather(1, self._index(ranks)))

    def noise_at(self, ranks: Tensor) -> Tensor:
        """Noise of some ranks. ranks: int64 [B, Q]; returns [B, Q, V] or [B, Q, d]."""
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
        forced = self.layout.forced
        if self.forced is None and bool((forced != FREE).any()):
            self.forced = torch.full_like(self.tokens, FREE, dtype=torch.int64)
        if self.forced is not None:
            given = forced[slots] if forced.dim() > 1 else forced
            by_token = self.bits and forced.dim() < 3  # then nothing is forced, see `check`
            self.forced[slots, :length] = given[..., None] if by_token else given
        if self.noise is not None:
            ranks = torch.arange(length, device=device)
            self.noise[slots, :length] = (
                logistic_noise(on_device.seed, ranks, self.bits)
                if self.bits
                else gumbel_noise(on_device.seed, ranks, self.model.vocab_size)
            )

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
        return Step(
            tokens=self.tokens[:, :limit].clone(),
            known=self.columns[:limit] < self.length[:, None],
            committed=committed,
            head_evaluations=head_evaluations * self.slots,
            done=self.done,
            spent=spent,
            draft_evaluations=draft_evaluations * self.slots,
        )

    def commit(self, tokens: Tensor, count: Tensor | int) -> Tensor:
        """Writes tokens behind the committed ones and advances the lengths.

        Args:
            tokens: int64 [B, Q] or bool [B, Q, d] for ranks length .. length + Q - 1; those past
                `count` are drafts.
            count: int64 [B], how many of them are committed; a number is that of every slot.

        Returns:
            int64 [B], the number committed that exist: 0 for idle slots, none past the end.
        """
        limit = self.layout.length
        ranks = self.length[:, None] + self.columns[: tokens.shape[1]]
        # An idle slot writes to its own scratch ranks, never to a finished picture.
        self.put(ranks, tokens)
        length = (self.length + count).clamp_(max=limit)
        committed = length - self.length
        self.passes += committed.sign()
        self.length = length
        return committed
