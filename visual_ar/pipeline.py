"""The pipeline: its components, and what is asked of it; knows not how pictures are drawn.

Follows the conventions of diffusers pipelines (arguments, callbacks, saving, swapping components).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

import torch
from diffusers import DiffusionPipeline
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import is_accelerate_available
from torch import Tensor

from visual_ar import loading
from visual_ar.accel.loop.contract import Decoding, check_method
from visual_ar.companions import Companion, check_drafter
from visual_ar.component_files import reading
from visual_ar.diffusers_habits import (
    LoadOptions,
    Unsupported,
    check_loading,
    check_saving,
    one_dtype,
)
from visual_ar.drawing_pipeline import DrawingPipeline
from visual_ar.eight_bit_linear import check_saved, compute_in_8_bits
from visual_ar.hub import Hub
from visual_ar.models.draft_head import DraftHead
from visual_ar.models.token_model import TokenModel
from visual_ar.output import Preview, VisualAROutput
from visual_ar.plain_numbers import real, whole
from visual_ar.request import (
    Asked,
    Prompt,
    Request,
    check_callback_inputs,
    check_completion,
    check_names,
    check_output_type,
    draw_seeds,
    make_sampling,
)
from visual_ar.sampling import Sampling, Warps
from visual_ar.size import Size
from visual_ar.tokenizers.visual_tokenizer import VisualTokenizer
from visual_ar.write_beside import naming

OPTIONS = ("guidance_scale", "guidance_schedule", "temperature", "top_k", "top_p")

Callback = Callable[["VisualARPipeline", int, int, dict[str, Tensor]], Any]


class VisualARPipeline(Unsupported, DrawingPipeline):
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
            height=whole("height", height, 1),
            width=whole("width", width, 1),
            guidance_scale=real("guidance_scale", guidance_scale),
            guidance_schedule=guidance_schedule,
            temperature=real("temperature", temperature),
            top_k=whole("top_k", top_k, 0),
            top_p=real("top_p", top_p),
            frames=None if frames is None else whole("frames", frames, 1),
            length=None if length is None else whole("length", length, 1),
        )
        self._interrupt = False
        self._drafts: VisualARPipeline | None = None
        self._check_components()

    @classmethod
    def from_pretrained(
        cls,
        name: str | PathLike[str],
        dtype: torch.dtype | str | None = None,
        revision: str | None = None,
        token: str | None = None,
        local_files_only: bool = False,
        **options: Unpack[LoadOptions],
    ) -> VisualARPipeline:
        """Loads a pipeline that `save_pretrained` wrote. Reads safetensors and JSON only.

        Args:
            name: a bundled model such as "emoji", a folder, or OWNER/NAME on the Hugging Face hub.
                What only adds to another pipeline, or shares a component of it, finds that one.
            dtype: of the weights, float32 by default; "int8" multiplies with 8-bit weights.
            revision: branch, tag or commit on the hub, of this pipeline alone.
            token: for hub repositories that are not public, those it finds included.
            local_files_only: use only what the hub's cache holds, for those it finds too.
            **options: what users of diffusers give, see `LoadOptions`.

        Raises:
            FileNotFoundError: nothing of that name.
            ValueError: no such pipeline is there, its files are damaged, or an option has a value
                that it cannot have.
            TypeError: there is no such option.
            OSError: the hub cannot be reached.
        """
        check_loading(options)
        number = one_dtype(dtype, options.get("torch_dtype"))
        eight_bits = number == torch.int8
        method = options.get("scheduler")
        check_method(method)
        again = options.get("force_download", False)
        hub = Hub(token, local_files_only, options.get("cache_dir"), again)
        with reading(folder := loading.find(name, revision, hub)):
            pipe = cls._load(folder, None if eight_bits else number, hub)
        if eight_bits:
            compute_in_8_bits(pipe.model)
        if method is not None:
            pipe.register_modules(scheduler=method)
        return pipe

    @classmethod
    def _load(cls, folder: Path, dtype: torch.dtype | None, hub: Hub) -> VisualARPipeline:
        """The pipeline in a folder, with the method that was saved."""
        delta = loading.read_delta(folder, cls.__name__)
        if delta is not None:
            base = loading.find_named(delta.base, hub)
            loading.check_base(delta, base)
            pipe = cls._load(base, dtype, hub)
            pipe.register_modules(model=delta.extend(pipe.model), scheduler=delta.scheduler)
            named: tuple[Any, ...] = (pipe, pipe.model, pipe.scheduler)
        else:
            loading.check(folder, cls.__name__)
            borrowed = {
                name: part.load(loading.holder(part.base, name, hub), dtype)
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

    @classmethod
    def from_pipe(
        cls, pipeline: DiffusionPipeline, scheduler: Decoding | None = None
    ) -> VisualARPipeline:
        """A second pipeline of the same components, which are not copied.

        Args:
            pipeline: whose components and defaults it has.
            scheduler: its decoding method; None shares that one's.

        Raises:
            ValueError: the pipeline is of another class, or the method is none.
        """
        check_method(scheduler)
        if not isinstance(pipeline, VisualARPipeline):
            raise ValueError(
                f"pipeline must be a VisualARPipeline, whose parts diffusers' own pipelines do "
                f"not have, got a {type(pipeline).__name__}"
            )
        parts = {**pipeline.components, **({} if scheduler is None else {"scheduler": scheduler})}
        defaults = {name: pipeline.config[name] for name in (*OPTIONS, *Size._fields)}
        return cls(**parts, **defaults, class_names=pipeline.config.class_names)

    def save_pretrained(
        self,
        save_directory: str | PathLike[str],
        safe_serialization: bool = True,
        variant: None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
    ) -> None:
        """Writes a folder that `from_pretrained` reads.

        Args:
            save_directory: the folder.
            safe_serialization: must be True, only safetensors are read.
            variant: must be None.
            max_shard_size: the largest file of weights, as 1000 bytes or "2GB".
            push_to_hub: must be False.

        Raises:
            ValueError: an option has a value that it cannot have.
            OSError: a file has that name, or the disk is full; says which file.
        """
        check_saving(save_directory, safe_serialization, variant, push_to_hub)
        check_saved(self.model)
        with naming(Path(save_directory)):
            super().save_pretrained(str(save_directory), max_shard_size=max_shard_size)

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
        size = self.size._replace(
            **{name: whole(name, side, 1) for name, side in given.items() if side is not None}
        )
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
    def _companion(self) -> Companion:
        return Companion(self.model, self.image_tokenizer, self.conditioner)

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
        self.conditioner.check_model(model)
        layout = self._layout(self.size)
        self.cast(layout)
        options = {key: config[key] for key in OPTIONS}
        self._check_sampling(make_sampling([0], layout.length, **options))

    def _check_sampling(self, sampling: Sampling) -> None:
        """Raises ValueError for options that the laws of the model cannot have."""
        self.model.tokens.check_warps(Warps.of(sampling))
