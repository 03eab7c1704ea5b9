"""A static key-value cache written at absolute slots; knows nothing about decoding or models.

Rolling back is not advancing a length: a slot past the last committed rank is hidden by the causal
rule until something overwrites it, so no tensor ever grows, shrinks or moves.
"""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Keys and values of every layer in buffers of fixed shape.

    The KV slot of rank r is `prefix + r`; prefix token j has slot j. Scratch slots follow the last
    rank, so that drafts past the end of a picture have somewhere to be written.

    Attributes:
        prefix: number of prefix slots P.
        prefix_mask: bool [R, P], False marks a padding column of the prefix.
        extent: upper bound, known to the host, of the slots anyone may attend to. Attention reads
            only `[:, :, :extent]`; whoever advances the lengths keeps it large enough.
    """

    def __init__(
        self,
        layers: int,
        rows: int,
        heads: int,
        slots: int,
        head_dim: int,
        prefix: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        # Heads before slots: what a head reads lies together.
        shape = (layers, rows, heads, slots, head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.prefix = prefix
        self.prefix_mask = torch.ones(rows, prefix, dtype=torch.bool, device=device)
        self.extent = slots
        self._slots = torch.arange(slots, device=device)
        self._rows = torch.arange(rows, device=device)[:, None]
        first = torch.arange(0, rows * heads * slots, slots, device=device)
        self._heads = first.view(rows, heads, 1)  # where the slots of each head begin

    @property
    def slots(self) -> int:
        """Number of slots of every row."""
        return self.keys.shape[3]

    def update(self, layer: int, k: Tensor, v: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Writes new keys and values, returns all that may be attended to.

        Args:
            layer: index of the layer.
            k: [R, h, Q, d_h] new keys.
            v: [R, h, Q, d_h] new values.
            slots: int64 [R, Q], absolute slot of each query.

        Returns:
            keys and values, each [R, h, extent, d_h], views of the buffers.
        """
        return self.write(layer, k, v, self.index(slots))

    def index(self, slots: Tensor) -> Tensor:
        """Where `write` puts queries at some slots: int64 [R h Q]. slots: int64 [R, Q]."""
        return (slots[:, None] + self._heads).flatten()

    def write(self, layer: int, k: Tensor, v: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """`update` at places that were found before. index: int64 [R h Q], see `index`."""
        for buffer, new in ((self.keys, k), (self.values, v)):
            whole, width = buffer[layer], buffer.shape[-1]
            whole.view(-1, width).index_copy_(0, index, new.to(whole.dtype).reshape(-1, width))
        return self.keys[layer, :, :, : self.extent], self.values[layer, :, :, : self.extent]

    def visible(self, slots: Tensor, end: Tensor | None = None) -> Tensor:
        """The mask of queries at `slots`, with the padding columns of the prefix hidden.

        A query always sees its own slot, so that a row of padding never has nothing to attend to.

        Args:
            slots: int64 [R, Q].
            end: int64 [R, Q], first slot that each query does not see; None is the causal rule.

        Returns:
            bool [R, 1, Q, extent], True where attended.
        """
        columns = self._slots[: self.extent]
        own = slots[..., None]
        seen = columns <= own if end is None else columns < end[..., None]  # [R, Q, extent]
        seen[..., : self.prefix] &= self.prefix_mask[:, None]
        return (seen | (columns == own))[:, None]

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copies keys and values of every layer between slots of the same row.

        Args:
            source: int64 [R, M], slots read, all of them before any is written.
            target: int64 [R, M], slots written, different from each other.
        """
        for buffer in (self.keys, self.values):
            buffer[:, self._rows, :, target] = buffer[:, self._rows, :, source]

    def assign(self, rows: Tensor, part: KVCache) -> None:
        """Takes over the beginning of newly admitted rows, computed in a small cache of their own.

        Args:
            rows: int64 [r], the rows that receive it.
            part: a cache of r rows with the same prefix, all of whose slots are taken over.
        """
        self.keys[:, rows, :, : part.slots] = part.keys
        self.values[:, rows, :, : part.slots] = part.values
        self.prefix_mask[rows] = part.prefix_mask
