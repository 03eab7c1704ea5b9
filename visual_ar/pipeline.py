"""The pipeline: checks what is asked, conditions, decodes, draws; knows not how methods accept.

Follows the conventions of diffusers pipelines (arguments, callbacks, saving, swapping components).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch
from diffusers import DiffusionPipeline
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import is_accelerate_available
from torch import Tensor

from visual_ar import loading
from visual_ar.accel.loop.contract import Decoding
from visual_ar.accel.loop.host_copy import HostCopy
from visual_ar.cast import Cast
from visual_ar.companions import Companion, check_drafter
from visual_ar.conditioning.choose import conditioner_of
from visual_ar.conditioning.condition import Condition
from visual_ar.conditioning.conditioner import Conditioner
from visual_ar.layout import Layout
from visual_ar.models.draft_head import DraftHead
from visual_ar.models.token_model import TokenModel
from visual_ar.output import Preview, Run, Stopwatch, Tally, VisualAROutput
from visual_ar.rendering import render
from visual_ar.request import (
    Asked,
    Prompt,
    Request,
    check_callback_inputs,
    check_completion,
    check_names,
    check_output_type,
    check_whole,
    draw_seeds,
    make_sampling,
)
from visual_ar.sampling import Sampling, Warps
from visual_ar.size import Size
from visual_ar.tokenizers.visual_tokenizer import VisualTokenizer

OPTIONS = ("guidance_scale", "guidance_schedule", "temperature", "top_k", "top_p")

Callback = Callable[["VisualARPipeline", int, int, dict[str, Tensor]], Any]


class VisualARPipeline(DiffusionPipeline):
    """Draws pictures with a token generator, an image tokenizer and a decoding method.

    The method is the component `scheduler`; another one takes its place with
    `pipe.scheduler = X.from_config(pipe.scheduler.config)`.

    Args:
        model: the generator.
        image_tokenizer: turns its tokens into pixels.
        scheduler: the decoding method.
        text_encoder: its `encode` turns B texts into features [B, P, C] and their mask bool [B, P];
            None for class-conditional models.
        draft_head: drafts tokens for the model, for methods that need one.
        class_names: one a class, for models whose classes have names.
        height: default height of a picture in pixels.
        width: default width.
        frames: default frames of a clip; None for pictures.
        length: default number of tokens of an ordered code; None for others.
        guidance_scale: default of the call, like the four options below.
        guidance_schedule: see `guidance_by_rank`.
        temperature: above 0.
        top_k: at least 0, 0 is off.
        top_p: in (0, 1], 1 is off.

    Raises:
        ValueError: the components do not fit each other or a default is outside its range.
    """

    model_cpu_offload_seq = "text_encoder->model->image_tokenizer"
    # Read by diffusers as class lists. A draft head takes turns with the model in every pass.
    _optional_components = ["text_encoder", "draft_head"]  # noqa: RUF012
    _exclude_from_cpu_offload = ["draft_head"]  # noqa: RUF012
    _callback_tensor_inputs = ["tokens", "known"]  # noqa: RUF012  (likewise)

    def __init__(
        self,
        model: TokenModel,
        image_tokenizer: VisualTokenizer,
        scheduler: Decoding,
        text_encoder: ModelMixin | None = None,
        draft_head: DraftHead | None = None,
        class_names: list[str] | None = None,
        height: int = 256,
        width: int = 256,
        guidance_scale: float = 1.0,
        guidance_schedule: str = "constant",
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        frames: int | None = None,
        length: int | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            model=model,
            image_tokenizer=image_tokenizer,
            scheduler=scheduler,
            text_encoder=text_encoder,
            draft_head=draft_head,
        )
        self.register_to_config(
            class_names=class_names,
            height=height,
            width=width,
            guidance_scale=guidance_scale,
            guidance_schedule=guidance_schedule,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            frames=frames,
            length=length,
        )
        self._interrupt = False
        self._drafts: VisualARPipeline | None = None
        self._check_components()

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        token: str | None = None,
        local_files_only: bool = False,
    ) -> VisualARPipeline:
        """Loads a pipeline that `save_pretrained` wrote. Reads safetensors and JSON only.

        Args:
            name: a bundled model such as "emoji", a folder, or OWNER/NAME on the Hugging Face hub.
                What only adds to another pipeline, or shares a component of it, finds that one.
            dtype: of the weights; by default float32.
            revision: branch, tag or commit on the hub, of this pipeline alone.
            token: for hub repositories that are not public, those it finds included.
            local_files_only: use only what the hub's cache holds, for those it finds too.

        Raises:
            FileNotFoundError: nothing of that name.
            ValueError: no such pipeline is there, or its files are damaged.
            OSError: the hub cannot be reached.
        """
        folder = loading.find(name, revision, token, local_files_only)
        delta = loading.read_delta(folder, cls.__name__)
        if delta is not None:
            base = loading.find(delta.base, None, token, local_files_only)
            loading.check_base(delta, base)
            pipe = cls.from_pretrained(base, dtype, token=token, local_files_only=local_files_only)
            pipe.register_modules(model=delta.extend(pipe.model), scheduler=delta.scheduler)
            named: tuple[Any, ...] = (pipe, pipe.model, pipe.scheduler)
        else:
            loading.check(folder, cls.__name__)
            borrowed = {
                name: part.load(loading.holder(part.base, name, token, local_files_only), dtype)
                for name, part in loading.shared(folder).items()
            }
            pipe = super().from_pretrained(
                str(folder),
                **borrowed,
                dtype=dtype,
                use_safetensors=True,
                low_cpu_mem_usage=is_accelerate_available(),
            )
            named = (pipe, *pipe.components.values())
        for part in named:
            if part is not None:  # what is saved again must not tell where it once lay
                part.register_to_config(_name_or_path=folder.name)
        return pipe

    @property
    def interrupt(self) -> bool:
        """Whether the call in progress was asked to stop, by setting `pipe._interrupt = True`."""
        return self._interrupt

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

    def check_inputs(self, prompt: Prompt = None, **asked: Unpack[Asked]) -> Request:
        """Checks everything a call is given, before any work.

        Args:
            prompt: text, one or several, for text-conditional models.
            **asked: see `Asked`.

        Returns:
            the pictures to draw, as plain data. Seeds that were not given have been drawn.

        Raises:
            ValueError: an argument breaks a rule; the message names it, the rule and the value.
            TypeError: there is no such argument.
        """
        check_names(asked)
        output_type = asked.get("output_type", "pil")
        check_output_type(output_type)
        conditions = self.conditioner.check(
            prompt, asked.get("class_labels"), asked.get("num_images_per_prompt", 1)
        )
        given: dict[str, Any] = {name: asked.get(name) for name in Size._fields}
        size = self.size._replace(**{k: side for k, side in given.items() if side is not None})
        layout = self._layout(size)
        self.scheduler.check(self.cast(layout))
        completion = check_completion(
            asked.get("image"), asked.get("mask"), layout.grid, size, len(conditions)
        )
        options: dict[str, Any] = {
            name: self.config[name] if asked.get(name) is None else asked.get(name)
            for name in OPTIONS
        }
        # Checked before seeds are drawn, which would change the generator.
        self._check_sampling(make_sampling([0], layout.length, **options))
        drawn = draw_seeds(asked.get("seeds"), asked.get("generator"), len(conditions))
        sampling = make_sampling(drawn, layout.length, **options)
        return Request(conditions, sampling, layout, size, completion, output_type)

    def stream(self, prompt: Prompt = None, **asked: Unpack[Asked]) -> Iterator[Preview]:
        """Decodes pictures, yielding a preview after every pass; the last one is complete.

        A preview draws its pictures only when asked, so that whoever shows them decides how often.

        Args:
            prompt: text, one or several, for text-conditional models.
            **asked: see `Asked`.

        Raises:
            ValueError: an argument breaks a rule; at once, not when the first preview is asked for.
        """
        return self._previews(self.check_inputs(prompt, **asked))

    def __call__(
        self,
        prompt: Prompt = None,
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("tokens",),
        **asked: Unpack[Asked],
    ) -> VisualAROutput | tuple[Any, ...]:
        """Draws B pictures, `num_images_per_prompt` of every prompt or class, in that order.

        Options left out have the defaults of the pipeline. A picture depends on its seed and its
        options, not on the others of the batch. Where the method has an automatic window, the
        number of pictures chooses it, once per device, and it is one of the options: `stats` tells.

        Args:
            prompt: text, one or several, for text-conditional models.
            return_dict: return a `VisualAROutput` rather than a tuple of its entries.
            callback_on_step_end: called after every pass as f(pipe, pass index, tokens settled in
                all pictures together, tensors). What it returns is not read: accepted tokens are
                final. It may set `pipe._interrupt = True`.
            callback_on_step_end_tensor_inputs: which of "tokens" ([B, N, *] in raster order, blank
                where not known) and "known" (bool [B, N]) the callback gets.
            **asked: class_labels, seeds, height, ... as `Asked` lists them.

        Raises:
            ValueError: an argument breaks a rule; names it, the rule and the value.
            TypeError: there is no such argument.
        """
        check_callback_inputs(callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        request = self.check_inputs(prompt, **asked)
        total = len(request.conditions) * request.layout.length
        with self.progress_bar(total=total) as bar:
            for preview in self._previews(request):
                bar.update(preview.committed - bar.n)
                if callback_on_step_end is not None:
                    names = callback_on_step_end_tensor_inputs
                    tensors = {name: getattr(preview, name) for name in names}
                    callback_on_step_end(self, preview.step, preview.committed, tensors)
        drawn = preview.images()
        self.maybe_free_model_hooks()
        clip = request.size.frames is not None and request.output_type in ("pil", "np", "pt")
        shown = {"images": None, "frames": drawn} if clip else {"images": drawn}
        output = VisualAROutput(**shown, tokens=preview.tokens, stats=preview.stats)
        return output if return_dict else output.to_tuple()

    def draft_with(self, drafter: VisualARPipeline | None) -> None:
        """Lets another pipeline's model draft for this one's, for the method "hybrid".

        The drafter is neither saved nor moved with this pipeline.

        Args:
            drafter: draws the same subjects with the same tokenizer; None takes it away.

        Raises:
            ValueError: the two do not share a tokenizer, a device or a kind of subject, or the
                drafter cannot order the grid or tell the laws of its drafts.
        """
        if drafter is not None:
            check_drafter(self._companion, drafter._companion)
            drafter._layout(self.size)
        self._drafts = drafter

    @property
    def draft_model(self) -> TokenModel | None:
        """The model that drafts for this pipeline's own, see `draft_with`."""
        return None if self._drafts is None else self._drafts.model

    @property
    def _companion(self) -> Companion:
        return Companion(self.model, self.image_tokenizer, self.conditioner)

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
        for name, side in size.named.items():
            check_whole(name, side, least=1)
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

    def _check_components(self) -> None:
        config, model, tokenizer = self.config, self.model, self.image_tokenizer
        if not model.tokens.fits(tokenizer.tokens):
            raise ValueError(
                f"model and image_tokenizer must have the same tokens, got {model.tokens.name} and "
                f"{tokenizer.tokens.name}"
            )
        classes = model.config.get("num_classes")
        if config.class_names is not None and len(config.class_names) != classes:
            raise ValueError(
                f"class_names must have one name for each of {classes} classes, "
                f"got {len(config.class_names)}"
            )
        if self.draft_head is not None:
            self.draft_head.check(model)
        layout = self._layout(self.size)
        self.cast(layout)
        options = {key: config[key] for key in OPTIONS}
        self._check_sampling(make_sampling([0], layout.length, **options))

    def _check_sampling(self, sampling: Sampling) -> None:
        """Raises ValueError for options that the laws of the model cannot have."""
        self.model.tokens.check_warps(Warps.of(sampling))
