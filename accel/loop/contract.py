"""The contract of a decoding method.

A method owns the loop, because speculation decides how many passes are made. It knows nothing
about families or pixels; progress bars, previews and statistics consume its steps.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import ConfigMixin, SchedulerMixin
from torch import Tensor

from visual_ar.accel.loop.graphs import CapturedSteps, extent_for, lent_state
from visual_ar.accel.loop.host_copy import OpenLength
from visual_ar.accel.loop.state import DecodeState, Step
from visual_ar.accel.loop.structure import Structure
from visual_ar.cast import Cast
from visual_ar.conditioning.condition import Condition
from visual_ar.layout import Layout
from visual_ar.plain_numbers import whole
from visual_ar.sampling import Sampling
from visual_ar.tokens.kind import TABLE

Choices = Mapping[str, Sequence[str]]


class Decoding(SchedulerMixin, ConfigMixin):
    """Base class of every decoding method. Options are constructor arguments kept in the config.

    Attributes:
        lossless: whether the output law is exactly that of next-token sampling.
        needs: what laws of tokens must tell, see `TokenKind.offers`.
        requires: capabilities a model must have.
        needs_noise: whether the method reads noise that is fixed per rank.
        skips: whether layouts may have ranks that no pass draws.
        capturable: whether on CUDA a step is run as a captured graph. Then it must keep all that
            changes in tensors of the state, and read nothing on the host.
        kept: the last call's state with its graphs, for `graphs.lent_state`.
        choices: option -> values that a person may pick from a list; what else it takes is typed.
    """

    config_name = "scheduler_config.json"
    lossless: bool = False
    needs: frozenset[str] = frozenset()
    requires: frozenset[str] = frozenset()
    needs_noise: bool = False
    skips: bool = False
    capturable: bool = False
    kept: Any = None
    choices: ClassVar[Choices] = {}

    def fuses(self, device: torch.device) -> bool:
        """Whether the verification kernel does this method's share of a pass on a device."""
        return False

    def check(self, cast: Cast) -> None:
        """Raises ValueError when this method cannot serve a cast."""
        model, layout, name = cast.model, cast.layout, type(self).__name__
        kind, family = model.tokens, type(model).__name__
        missing = self.requires - model.capabilities
        if missing:
            raise ValueError(
                f"{name} needs a model with {sorted(missing)}, "
                f"{family} has {sorted(model.capabilities)}"
            )
        untold = self.needs - kind.offers
        if untold:
            raise ValueError(
                f"{name} needs a model whose laws tell {' and '.join(sorted(untold))}, "
                f"the tokens of {family} are {kind.name}"
            )
        kind.check_forced(layout.forced, family)
        self._check_structure(cast)
        self.check_layout(layout)

    def _check_structure(self, cast: Cast) -> None:
        layout, count = cast.layout, cast.model.tokens.count
        if layout.following is None:
            return
        if not self.skips:
            raise ValueError(
                f"{type(self).__name__} needs a layout in which every rank is drawn, this one of "
                f"grid {layout.grid} has {int(layout.fixed.sum())} ranks that are not"
            )
        if layout.beginning == layout.length:
            raise ValueError(f"the layout must leave some rank to draw, got all of {layout.grid}")
        ids = layout.structure[layout.structure >= 0]
        if ids.numel() and "structure" not in cast.model.capabilities:
            raise ValueError(
                f"the layout of grid {layout.grid} needs a model that knows structural ranks, "
                f"{type(cast.model).__name__} has {sorted(cast.model.capabilities)}"
            )
        if count is not None and ids.numel() and int(ids.min()) < count:
            raise ValueError(
                f"structural ids must lie beyond the {count} codes, got {int(ids.min())}"
            )

    def check_layout(self, layout: Layout) -> None:
        """Raises ValueError when this method cannot decode in such an order."""
        if not layout.is_chain:
            raise ValueError(
                f"{type(self).__name__} needs a next-token layout, "
                f"this one of grid {layout.grid} predicts several tokens at once"
            )

    def init(self, cast: Cast, slots: int, guided: bool = True, window: int = 1) -> DecodeState:
        """Static buffers with every slot idle.

        Args:
            cast: the generator, which decides device and dtype, and whoever is with it.
            slots: number of pictures B decoded at a time, at least 1.
            guided: whether to keep an unconditional row for every slot.
            window: ranks a pass predicts, at least 1.

        Raises:
            ValueError: the method cannot serve the cast; slots or window is below 1.
        """
        slots, window = whole("slots", slots, 1), whole("window", window, 1)
        self.check(cast)
        model, layout = cast.model, cast.layout.to(cast.model.device)
        kind, device, length = model.tokens, model.device, layout.length
        structure = Structure.of(layout, length + window)
        width = length + window + (0 if structure is None else structure.lead)
        rows = 2 * slots if guided else slots

        def full(value: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.full(shape, value, dtype=dtype, device=device)

        fused = TABLE in kind.offers and self.fuses(device)
        noise = None
        if self.needs_noise and not fused:
            noise = full(0, slots, width, *kind.noise_shape, dtype=torch.float32)
        return DecodeState(
            cast=cast.with_layout(layout),
            cache=model.new_cache(rows, cast.prefix + width, cast.prefix),
            guided=guided,
            tokens=kind.blank(slots, width, device=device),
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
            structure=structure,
            end=full(length, slots) if kind.can_end else None,
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
        state.set_options(slots, sampling)
        state.length[slots] = state.layout.beginning
        state.passes[slots] = 0
        state.tokens[slots] = 0
        if state.end is not None:
            state.end[slots] = state.layout.length
        if state.structure is not None:
            assert state.forced is not None
            state.tokens[slots] = state.kind.force(state.tokens[slots], state.forced[slots])
        self._prefill(state, slots, rows, condition)
        self.prepare(state, slots)
        for _ in range(1 + state.open_length.lag):
            self._publish(state)

    def _prefill(
        self, state: DecodeState, slots: Tensor, rows: Tensor, condition: Condition
    ) -> None:
        """Runs the prefix but for its last token, or, where ranks are given first, all of both."""
        model, prefix, given = state.model, condition.prefix, state.layout.beginning
        length = state.cast.prefix
        part = model.new_cache(len(rows), length + given, length)
        part.prefix_mask = condition.mask
        state.root[rows] = prefix[:, -1:].to(state.root.dtype)
        x, last = prefix[:, :-1], -1
        if given:
            ranks = torch.arange(given, device=prefix.device).expand(len(slots), -1)
            known = state.embed(state.tokens[slots, :given], ranks)
            if state.guided:
                known = torch.cat([known, known])
            x, last = torch.cat([prefix, known.to(prefix.dtype)], dim=1), given
        if x.shape[1]:
            ranks = torch.arange(-length, last, device=prefix.device).expand(len(rows), -1)
            self.prefilled(state, rows, model.forward(x, ranks, part), ranks)
        state.cache.assign(rows, part)

    def prefilled(self, state: DecodeState, rows: Tensor, hidden: Tensor, ranks: Tensor) -> None:
        """Sees the hidden states of the prefill, [r, Q, D] of ranks int64 [r, Q] of some rows."""

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
        longest = state.window + state.layout.longest_run
        reach = max(state.open_length.read(), 0) + (lag + 1) * longest
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

    def choose_window(self, cast: Cast, condition: Condition, sampling: Sampling) -> int:
        """Ranks to predict in a pass over these pictures."""
        return 1

    def decode(
        self,
        cast: Cast,
        condition: Condition,
        sampling: Sampling,
        window: int | None = None,
    ) -> Iterator[Step]:
        """Decodes pictures, yielding every pass that did something.

        Args:
            cast: the generator, its layout with the forced tokens, and whoever is with it.
            condition: R = B or 2B rows.
            sampling: options of the B pictures.
            window: ranks that a pass predicts; None is what `choose_window` says.

        Raises:
            ValueError: the method cannot serve the cast.
        """
        self.check(cast)
        batch = len(sampling.seed)
        guided = len(condition.prefix) == 2 * batch
        if window is None:
            window = self.choose_window(cast, condition, sampling)
        with lent_state(self, cast, batch, guided, window) as state:
            self.admit(state, torch.arange(batch, device=cast.model.device), condition, sampling)
            made: list[Step] = []
            while state.open_length.read() >= 0:
                made.append(self.advance(state))
                # The host learns late that pictures are complete, and makes passes for nobody.
                if len(made) > state.open_length.lag:
                    yield made.pop(0)


def check_method(method: Any) -> None:
    """Raises ValueError for what would take the place of the saved method and is none."""
    if method is not None and not isinstance(method, Decoding):
        raise ValueError(
            f"scheduler must be a decoding method of visual_ar.accel, got {type(method).__name__}"
        )
