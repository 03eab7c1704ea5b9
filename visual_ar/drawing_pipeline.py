"""What a pipeline does with pictures that were asked for: it conditions, decodes and draws them.

Knows neither how they were asked for nor how methods accept.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from visual_ar.accel.loop.contract import Decoding
from visual_ar.accel.loop.host_copy import HostCopy
from visual_ar.cast import Cast
from visual_ar.conditioning.choose import conditioner_of
from visual_ar.conditioning.condition import Condition
from visual_ar.conditioning.conditioner import Conditioner
from visual_ar.eight_bit_linear import number_format
from visual_ar.layout import Layout
from visual_ar.models.token_model import TokenModel
from visual_ar.output import Preview, Run, Stopwatch, Tally
from visual_ar.rendering import render
from visual_ar.request import Request, check_output_type
from visual_ar.size import Size
from visual_ar.tokenizers.visual_tokenizer import VisualTokenizer


class DrawingPipeline(DiffusionPipeline):
    """A pipeline whose components are in place; `VisualARPipeline` puts them there.

    Attributes:
        model: the generator.
        image_tokenizer: turns its tokens into pixels.
        scheduler: the decoding method.
    """

    model: TokenModel
    image_tokenizer: VisualTokenizer
    scheduler: Decoding
    _interrupt: bool
    _drafts: DrawingPipeline | None

    @property
    def interrupt(self) -> bool:
        """Whether the call in progress was asked to stop, by setting `pipe._interrupt = True`."""
        return self._interrupt

    @property
    def number_format(self) -> torch.dtype:
        """In which numbers the model multiplies: int8, or the type of its weights."""
        return number_format(self.model)

    @property
    def size(self) -> Size:
        """What is drawn by default."""
        config = self.config
        return Size(config.height, config.width, config.get("frames"), config.get("length"))

    @property
    def conditioner(self) -> Conditioner:
        """What the pictures are conditioned on, and how that is asked for."""
        device = self._execution_device
        return conditioner_of(self.model, self.text_encoder, self.config.class_names, device)

    def cast(self, layout: Layout) -> Cast:
        """Who takes part when this pipeline draws in a decode order."""
        return Cast(
            self.model,
            layout,
            self.image_tokenizer,
            self.draft_head,
            self.draft_model,
            self.conditioner.prefix_length,
        )

    @property
    def draft_model(self) -> TokenModel | None:
        """The model that drafts for this pipeline's own, see `draft_with`."""
        return None if self._drafts is None else self._drafts.model

    def encode_condition(self, request: Request, guided: bool | None = None) -> Condition:
        """The prefix of every picture, and of its unconditional twin when guided.

        Args:
            request: the pictures.
            guided: whether there are twins; None is what the request needs.
        """
        guided = request.guided if guided is None else guided
        condition = self._prefix(request, guided)
        if self._drafts is None:
            return condition
        return condition._replace(draft=self._drafts._prefix(request, guided))

    def _prefix(self, request: Request, guided: bool) -> Condition:
        """The prefixes of this pipeline's own model."""
        conditioner = self.conditioner
        for name in conditioner.components:
            self._onload(name)
        values, mask = conditioner.features(request.conditions)
        self._onload("model")
        return self.model.condition(values, mask, guided=guided)

    def render(
        self,
        tokens: Tensor,
        known: Tensor,
        grid: tuple[int, ...],
        output_type: str,
        seeds: Tensor | None = None,
    ) -> Any:
        """Turns tokens into pictures; cells that are not known have the mean code.

        Args:
            tokens: [B, N, *] in raster order; not read where not known.
            known: bool [B, N] in raster order.
            grid: in cells.
            output_type: see `VisualAROutput`.
            seeds: int64 [B], of the pictures, for decoders that draw.

        Raises:
            ValueError: unknown output type.
        """
        check_output_type(output_type)
        if output_type == "latent":
            self._onload("image_tokenizer")
        codes = self.model.tokens.readable(tokens)
        return render(self.image_tokenizer, codes, known, grid, output_type, seeds)

    def _previews(self, request: Request) -> Iterator[Preview]:
        """The one generator behind `stream` and `__call__`."""
        try:
            yield from self._passes(request)
        finally:
            self.maybe_free_model_hooks()

    @torch.inference_mode()
    def _passes(self, request: Request) -> Iterator[Preview]:
        self._interrupt = False
        device = self._execution_device
        watch = Stopwatch(device)
        with watch.stage("condition"):
            layout = self._forced(request)
            condition = self.encode_condition(request)
        cast = self.cast(layout)
        with watch.stage("window"):
            window = self.scheduler.choose_window(cast, condition, request.sampling)
        run = Run.of(self.scheduler, cast, request, window)
        steps = self.scheduler.decode(cast, condition, request.sampling, window)
        tally = Tally.start(len(request.conditions), layout, device)
        committed = HostCopy(device, 0)
        draw = partial(self._draw, request, watch)
        while True:
            self._onload("model")
            with watch.stage("decode", wait=False):
                step = next(steps, None)
            if step is None:
                break
            tally = tally.after(step)
            committed.push(step.settled.sum())
            yield Preview(run, step, tally, committed.read(), watch.seconds, draw)
            if self._interrupt:
                break
        with watch.stage("decode"):
            pass  # waits for what the passes left to the device

    def _draw(
        self,
        request: Request,
        watch: Stopwatch,
        tokens: Tensor,
        known: Tensor,
        output_type: str | None = None,
    ) -> Any:
        """Draws tokens, as of `render`, and known bool [B, N], both in raster order."""
        kind = request.output_type if output_type is None else output_type
        with watch.stage("detokenise"):
            shown = tokens if kind != "tokens" else self.model.tokens.hidden(tokens, known)
            return self.render(shown, known, request.layout.grid, kind, request.sampling.seed)

    def _forced(self, request: Request) -> Layout:
        """The layout with the tokens of the cells that are kept."""
        completion = request.completion
        if completion is None:
            return request.layout
        tokenizer = self.image_tokenizer
        self._onload("image_tokenizer")
        codes = tokenizer.encode(completion.pixels.to(tokenizer.device, tokenizer.dtype))
        kept = completion.keep.to(codes.device)
        forced = self.model.tokens.forced_to(codes, kept)
        pictures = len(request.conditions)
        return request.layout.with_forced(forced.expand(pictures, *forced.shape[1:]))

    def _layout(self, size: Size) -> Layout:
        grid = self.image_tokenizer.grid(size)  # whose errors name the side that is wrong
        try:
            return self.model.layout(grid)
        except ValueError as error:
            raise ValueError(
                f"{' and '.join(size.named)} must be a size this model was trained for, "
                f"got {size}: {error}"
            ) from None

    def _onload(self, name: str) -> None:
        """Brings an offloaded component back before it is used outside of its forward."""
        component = getattr(self, name)
        hook = getattr(component, "_hf_hook", None)
        if hook is not None:
            hook.pre_forward(component)
