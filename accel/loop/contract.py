"""The contract of a decoding method.

A method owns the loop, because speculation decides how many passes are made. It knows nothing
about families or pixels; progress bars, previews and statistics consume its steps.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from torch import Tensor

from visual_ar.accel.loop.graphs import CapturedSteps, extent_for, lent_state
from visual_ar.accel.loop.host_copy import OpenLength
from visual_ar.accel.loop.state import DecodeState, Step
from visual_ar.conditioning import Condition
from visual_ar.layout import FREE, Layout
from visual_ar.models.token_model import TokenModel
from visual_ar.sampling import Sampling
from visual_ar.tokenizers.visual_tokenizer import VisualTokenizer


class Decoding(SchedulerMixin, ConfigMixin):
    """Base class of every decoding method. Options are constructor arguments kept in the config.

    Attributes:
        lossless: whether the output law is exactly that of next-token sampling.
        requires: capabilities a model must have.
        also_serves: capabilities that a model may have instead of "categorical".
        needs_noise: whether the method reads Gumbel noise that is fixed per rank.
        capturable: whether on CUDA a step is run as a captured graph. Then it must keep all that
            changes in tensors of the state, and read nothing on the host.
        kept: the last call's state with its graphs, for `graphs.lent_state`.
    """

    config_name = "scheduler_config.json"
    lossless: bool = False
    requires: frozenset[str] = frozenset({"categorical"})
    also_serves: frozenset[str] = frozenset()
    needs_noise: bool = False
    capturable: bool = False
    kept: Any = None

    def fuses(self, device: torch.device) -> bool:
        """Whether the verification kernel does this method's share of a pass on a device."""
        return False

    def check(
        self, model: TokenModel, layout: Layout, tokenizer: VisualTokenizer | None = None
    ) -> None:
        """Raises ValueError when this method cannot serve the model, the layout or the tokenizer.

        Args:
            model: the generator.
            layout: the decode order.
            tokenizer: whose codes are generated; methods that compare codes need it.
        """
        served = {"categorical"} if self.also_serves & model.capabilities else set()
        missing = self.requires - model.capabilities - served
        if missing:
            raise ValueError(
                f"{type(self).__name__} needs a model with {sorted(missing)}, "
                f"{type(model).__name__} has {sorted(model.capabilities)}"
            )
        by_bit = layout.forced.dim() == 3
        if by_bit != bool(model.bits) and bool((layout.forced != FREE).any()):
            kind = "every bit [B, N, d]" if model.bits else "one code a cell, [N] or [B, N]"
            raise ValueError(
                f"the layout must force {kind} for {type(model).__name__}, "
                f"got forced of shape {list(layout.forced.shape)}"
            )
        most = 1 if model.bits else model.vocab_size - 1
        if bool(((layout.forced < FREE) | (layout.forced > most)).any()):
            raise ValueError(
                f"the layout must force tokens from 0 to {most}, or {FREE} for none, got "
                f"{int(layout.forced.min())} to {int(layout.forced.max())}"
            )
        self.check_layout(layout)

    def check_layout(self, layout: Layout) -> None:
        """Raises ValueError when this method cannot decode in such an order."""
        if not layout.is_chain:
            raise ValueError(
                f"{type(self).__name__} needs a next-token layout, "
                f"this one of grid {layout.grid} predicts several tokens at once"
            )

    def init(
        self,
        model: TokenModel,
        layout: Layout,
        slots: int,
        guided: bool = True,
        window: int = 1,
        tokenizer: VisualTokenizer | None = None,
    ) -> DecodeState:
        """Static buffers with every slot idle.

        Args:
            model: the generator; decides device and dtype.
            layout: the decode order.
            slots: number of pictures B decoded at a time, at least 1.
            guided: whether to keep an unconditional row for every slot.
            window: ranks a pass predicts, at least 1.
            tokenizer: whose codes are generated, for methods that compare codes.

        Raises:
            ValueError: the method cannot serve the model, layout or tokenizer; slots or window is
                below 1.
        """
        for name, value in (("slots", slots), ("window", window)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.check(model, layout, tokenizer)
        device = model.device
        length, width = layout.length, layout.length + window
        rows = 2 * slots if guided else slots
        cache = model.new_cache(rows, model.prefix_length + width)

        def full(value: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.full(shape, value, dtype=dtype, device=device)

        bits = (model.bits,) if model.bits else ()
        fused = not bits and self.fuses(device)
        noise = None
        if self.needs_noise and not fused:
            noise = full(0, slots, width, *(bits or (model.vocab_size,)), dtype=torch.float32)
        return DecodeState(
            model=model,
            layout=layout.to(device),
            cache=cache,
            guided=guided,
            tokens=full(0, slots, width, *bits, dtype=torch.bool if bits else torch.int64),
            length=full(length, slots),
            passes=full(0, slots),
            root=full(0, rows, 1, model.hidden_size, dtype=model.dtype),
            guidance=full(1, slots, width, dtype=torch.float32),
            temperature=full(1, slots, dtype=torch.float32),
            top_k=full(0, slots),
            top_p=full(1, slots, dtype=torch.float32),
            seed=full(0, slots),
            forced=None,
            noise=noise,
            window=window,
            open_length=OpenLength(device, slots, length),
            fused=fused,
            captured=CapturedSteps.on(device) if self.capturable else None,
        )

    @torch.inference_mode()
    def admit(
        self, state: DecodeState, slots: Tensor, condition: Condition, sampling: Sampling
    ) -> None:
        """Puts pictures into slots, whatever was there before, and runs their prefix.

        Args:
            state: from `init`.
            slots: int64 [b], where the pictures go.
            condition: [b] or, when the state is guided, [2b] rows.
            sampling: options of the b pictures.
        """
        rows = state.rows(slots)
        if len(condition.prefix) != len(rows):
            raise ValueError(
                f"condition must have {len(rows)} rows for {len(slots)} pictures "
                f"{'with' if state.guided else 'without'} guidance, got {len(condition.prefix)}"
            )
        self._prefill(state, rows, condition)
        state.set_options(slots, sampling)
        state.length[slots] = 0
        state.passes[slots] = 0
        state.tokens[slots] = 0
        self.prepare(state, slots)
        for _ in range(1 + state.open_length.lag):
            self._publish(state)

    @staticmethod
    def _prefill(state: DecodeState, rows: Tensor, condition: Condition) -> None:
        model, prefix = state.model, condition.prefix
        length = model.prefix_length
        part = model.new_cache(len(rows), length)
        part.prefix_mask = condition.mask
        if length > 1:
            ranks = torch.arange(-length, -1, device=prefix.device).expand(len(rows), -1)
            model.forward(prefix[:, :-1], ranks, part)
        state.cache.assign(rows, part)
        state.root[rows] = prefix[:, -1:].to(state.root.dtype)

    def prepare(self, state: DecodeState, slots: Tensor) -> None:
        """Fills the method's own buffers for newly admitted slots. slots: int64 [b]."""

    @abstractmethod
    def step(self, state: DecodeState) -> Step:
        """One pass for all slots: static shapes, no host read.

        Args:
            state: from `init`, changed in place.
        """

    @torch.inference_mode()
    def advance(self, state: DecodeState) -> Step:
        """`step`, with the host's share of it: how far attention has to read."""
        lag = state.open_length.lag
        reach = max(state.open_length.read(), 0) + (lag + 1) * state.window
        state.cache.extent = extent_for(
            state.cache.prefix + reach, state.cache.slots, state.captured is not None
        )
        step = self.run(state)
        self._publish(state)
        return step

    @torch.inference_mode()
    def run(self, state: DecodeState) -> Step:
        """`step`, as a captured graph where the state has them.

        Args:
            state: from `init`, changed in place; its cache's `extent` reaches far enough.
        """
        if state.captured is None:
            return self.step(state)
        return state.captured.run(self.step, state)

    @staticmethod
    def _publish(state: DecodeState) -> None:
        state.open_length.push(state.length)

    def choose_window(
        self,
        model: TokenModel,
        layout: Layout,
        condition: Condition,
        sampling: Sampling,
        tokenizer: VisualTokenizer | None = None,
    ) -> int:
        """Ranks to predict in a pass over these pictures."""
        return 1

    def decode(
        self,
        model: TokenModel,
        layout: Layout,
        condition: Condition,
        sampling: Sampling,
        window: int | None = None,
        tokenizer: VisualTokenizer | None = None,
    ) -> Iterator[Step]:
        """Decodes pictures, yielding every pass.

        Args:
            model: the generator.
            layout: the decode order and forced tokens.
            condition: R = B or 2B rows.
            sampling: options of the B pictures.
            window: ranks that a pass predicts; None is what `choose_window` says.
            tokenizer: whose codes are generated, for methods that compare codes.

        Raises:
            ValueError: the method cannot serve the model, layout or tokenizer.
        """
        self.check(model, layout, tokenizer)
        batch = len(sampling.seed)
        guided = len(condition.prefix) == 2 * batch
        if window is None:
            window = self.choose_window(model, layout, condition, sampling, tokenizer)
        with lent_state(self, model, layout, batch, guided, window, tokenizer) as state:
            self.admit(state, torch.arange(batch, device=model.device), condition, sampling)
            while state.open_length.read() >= 0:
                yield self.advance(state)
