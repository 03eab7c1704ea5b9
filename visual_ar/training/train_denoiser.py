"""The fine-tuning of a trained generator on noisy token embeddings; knows nothing about pixels.

Teng et al. (2025), SJD2, arXiv 2510.08994: next-clean-token prediction. The embeddings of runs of
ranks are normalised and put under Gaussian noise, and the cross-entropy to the clean next token is
lowered. Only the denoiser of the model learns, so that its law of clean tokens stays what it was.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visual_ar import loading
from visual_ar.accel.denoising import SpeculativeDenoisingDecoding
from visual_ar.cast import Cast
from visual_ar.data.dataset import Dataset
from visual_ar.models.denoising import DenoisingLlamaGen
from visual_ar.models.llamagen import LlamaGen
from visual_ar.pipeline import VisualARPipeline
from visual_ar.sampling import Sampling
from visual_ar.size import Size
from visual_ar.training.bundle import save_delta, save_pipeline
from visual_ar.training.drawn_codes import cached_codes, mislead, soft_cross_entropy
from visual_ar.training.generator import (
    HELD_OUT_PICTURES,
    MEASURE_BATCH,
    SHEET_COLUMNS,
    balance,
)
from visual_ar.training.loop import Training
from visual_ar.training.pixels import save_sheet
from visual_ar.training.progress import (
    Average,
    Clock,
    Log,
    build_optimisers,
    check_resumed,
    learning_rate,
    load_checkpoint,
    progress_state,
    random_numbers,
    restore_progress,
    update,
)
from visual_ar.training.recipe import DenoisingRecipe, GeneratorRecipe, SamplingDefaults
from visual_ar.training.recipe_file import finished_recipe
from visual_ar.training.subjects import ClassConditions, Conditions, Given, TextConditions

ORDER, START, MEASURE = 1, 2, 4  # streams of random numbers


class DenoisingTraining(Training[DenoisingRecipe]):
    """One run; `train` goes on from the last checkpoint in `output`.

    The trained generator is looked for beside `output`, in the run that the recipe names.
    """

    def __init__(
        self, recipe: DenoisingRecipe, data: Dataset, output: Path, device: torch.device
    ) -> None:
        self.recipe, self.output, self.device = recipe, output, device
        run = output.parent / recipe.base
        base = finished_recipe(run)
        if not isinstance(base, GeneratorRecipe):
            raise ValueError(f"base must name a recipe of kind generator, got {base.kind}")
        if base.family != "llamagen":
            raise ValueError(f"base must be of the family llamagen, got {base.family}")
        if base.head != "categorical":
            raise ValueError(f"base must have a categorical head, got head {base.head!r}")
        if base.dataset != data.name:
            raise ValueError(f"base must be trained on {data.name}, got {base.dataset}")
        self.base = base
        self.sources = {"base": loading.fingerprint(run / "pipeline" / "model")}
        check_resumed(output, recipe, self.sources)
        self.pipe = VisualARPipeline.from_pretrained(run / "pipeline").to(device)
        self.pipe.set_progress_bar_config(disable=True)
        self.tokenizer, self.encoder = self.pipe.image_tokenizer, self.pipe.text_encoder
        pictures = torch.from_numpy(data.pictures)
        self.grid = self.tokenizer.grid(Size(*pictures.shape[1:3]))
        self.codes = cached_codes(
            self.tokenizer, pictures, base.crops, base.shift, base.soft, base.seed, output, device
        )
        self.train_indices = torch.from_numpy(data.indices(*base.splits))
        groups = data.groups
        self.weights = balance([groups[i] for i in self.train_indices], base.balance)
        held_out = torch.from_numpy(data.indices(base.held_out))
        self.held_out = held_out[:: max(1, len(held_out) // HELD_OUT_PICTURES)][:HELD_OUT_PICTURES]
        self.conditions: Conditions
        if self.encoder is None:
            self.conditions = ClassConditions(data, device)
        else:
            self.conditions = TextConditions(data, base.alias)
        self.model = _start(self.pipe.model, recipe)
        self.parameters = list(self.model.denoiser.parameters())
        matrices = [p for p in self.model.denoiser.adapters.parameters() if p.ndim == 2]
        self.optimisers = build_optimisers(self.model.denoiser, recipe.optimiser, matrices)
        self.average = Average(self.model.denoiser, recipe.optimiser.ema)
        self.averaged = copy.deepcopy(self.model)
        self.averaged.denoiser = self.average.model
        self.clock = Clock(recipe)
        self._restore()
        self.log = Log(output / "log.csv", self.clock.step)

    def _look(self) -> dict[str, Any]:
        return {"held_out": self.measure()}

    def _finish(self) -> dict[str, Any]:
        return {
            "held_out_loss": self.measure(),
            "held_out_pictures": len(self.held_out),
            "passes": self.save_samples(),
        }

    def _step(self) -> dict[str, Any]:
        recipe, step = self.recipe, self.clock.step
        draw = random_numbers(recipe.seed, ORDER, step)
        chosen = torch.multinomial(self.weights, recipe.batch, replacement=True, generator=draw)
        indices = self.train_indices[chosen]
        crops = torch.randint(self.base.crops, (recipe.batch,), generator=draw)
        drop = (torch.rand(recipe.batch, generator=draw) < self.base.drop).to(self.device)
        progress, rate = self.clock.progress, learning_rate(recipe.optimiser, self.clock)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.bf16):
            with torch.no_grad():
                given = self.conditions.vary(indices, self.encoder, draw)
            loss = self._loss(self.model, crops, indices, given, draw, drop)
        loss.backward()
        norm = update(self.optimisers, self.parameters, rate, recipe.optimiser.clip)
        self.average.update(self.model.denoiser, step)
        return {
            "step": step + 1,
            "seconds": self.clock.seconds,
            "progress": progress,
            "learning_rate": rate,
            "gradient": norm,
            "loss": loss.detach(),
        }

    def _loss(
        self,
        model: DenoisingLlamaGen,
        crops: Tensor,
        indices: Tensor,
        given: Given,
        draw: torch.Generator,
        drop: Tensor | None = None,
    ) -> Tensor:
        """Mean cross-entropy of clean tokens after noisy ones, nats a token.

        Args:
            model: with the denoiser that learns or its average.
            crops: int64 [B], cached versions of the pictures.
            indices: int64 [B], pictures.
            given: what they are conditioned on.
            draw: of the codes and the noise.
            drop: bool [B], pictures whose condition is left out.
        """
        drawn = self.codes.draw(crops, indices, draw)
        batch, length = drawn.inputs.shape
        starts, levels = noisy_runs(batch, length - 1, self.recipe.longest, draw)
        noise = torch.randn(batch, length - 1, model.hidden_size, generator=draw)
        # In decoding what lies under the noise is a guess, so some of it is wrong here as well.
        drafts = mislead(drawn, self.base.wrong, draw).inputs[:, :-1].to(self.device)
        drawn = drawn.to(self.device)
        with torch.no_grad():
            condition = model.condition(given.given, given.mask, guided=False, drop=drop)
        logits = model.noisy_logits(
            drawn.inputs,
            drafts,
            noise.to(self.device),
            model.noise_ratio(levels.to(self.device)),
            starts.to(self.device),
            condition,
        )
        return soft_cross_entropy(logits, drawn.labels[:, 1:], drawn.chances[:, 1:])

    @torch.no_grad()
    def measure(self) -> float:
        """Mean loss of the averaged model on held-out pictures, nats a token."""
        total = 0.0
        for indices in self.held_out.split(MEASURE_BATCH):
            draw = random_numbers(self.recipe.seed, MEASURE, int(indices[0]))
            given = self.conditions.describe(indices, self.encoder)
            loss = self._loss(self.averaged, torch.zeros_like(indices), indices, given, draw)
            total += float(loss) * len(indices)
        return total / len(self.held_out)

    @torch.no_grad()
    def save_samples(self) -> float:
        """Draws a sheet of held-out conditions and returns the mean number of passes."""
        held = self.held_out[:: max(1, len(self.held_out) // SHEET_COLUMNS)][:SHEET_COLUMNS]
        given = self.conditions.describe(held, self.encoder)
        condition = self.averaged.condition(given.given, given.mask)
        sampling = Sampling.create(list(range(len(held))), *dataclasses.astuple(self._sampling))
        layout, passes = self.averaged.layout(self.grid), 0
        method = SpeculativeDenoisingDecoding()
        for step in method.decode(Cast(self.averaged, layout), condition, sampling):
            tokens = step.tokens
            passes += int((step.committed > 0).sum())
        pictures = self.tokenizer.decode(layout.cells(tokens), self.grid)
        save_sheet(self.output / "samples.png", pictures, SHEET_COLUMNS)
        return passes / len(held)

    @property
    def _sampling(self) -> SamplingDefaults:
        """Those of the generator's pipeline."""
        names = [field.name for field in dataclasses.fields(SamplingDefaults)]
        return SamplingDefaults(**{name: self.pipe.config[name] for name in names})

    def save(self) -> None:
        """See `Training.save`."""
        scheduler = SpeculativeDenoisingDecoding()
        save_pipeline(
            self.averaged,
            self.tokenizer,
            self.encoder,
            self.pipe.config.class_names,
            self._sampling,
            self.output / "pipeline",
            scheduler,
        )
        save_delta(
            self.averaged, self.recipe.base, self.sources["base"], scheduler, self.output / "delta"
        )

    def _state(self) -> dict[str, Any]:
        return {
            **self.sources,
            "denoiser": self.model.denoiser.state_dict(),
            **progress_state(self.recipe, self.clock, self.average, self.optimisers),
        }

    def _restore(self) -> None:
        state = load_checkpoint(self.output)
        if state is None:
            return
        self.model.denoiser.load_state_dict(state["denoiser"])
        restore_progress(state, self.clock, self.average, self.optimisers)


def _start(base: LlamaGen, recipe: DenoisingRecipe) -> DenoisingLlamaGen:
    """The generator, frozen, with a denoiser that is drawn from the recipe's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random_numbers(recipe.seed, START).initial_seed())
        model = DenoisingLlamaGen.from_base(base, recipe.model)
    model.eval().requires_grad_(False)
    model.denoiser.requires_grad_(True)
    return model


def noisy_runs(
    batch: int, length: int, longest: int, draw: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Cuts sequences into runs whose noise grows from left to right, as in decoding.

    Args:
        batch: sequences B.
        length: ranks N of each.
        longest: lengths of runs are evenly distributed from 1 to this.
        draw: of lengths and levels.

    Returns:
        first rank of every rank's run, int64 [B, N], and noise levels in [0, 1], fp32 [B, N], that
        rise linearly over a run between two numbers drawn for it.
    """
    lengths = torch.randint(1, longest + 1, (batch, length), generator=draw)
    ends = lengths.cumsum(1)
    ranks = torch.arange(length).expand(batch, -1).contiguous()
    run = torch.searchsorted(ends, ranks, right=True)
    starts = (ends - lengths).gather(1, run)
    bounds = torch.rand(batch, length, 2, generator=draw).sort(-1).values
    low, high = bounds.gather(1, run[..., None].expand(-1, -1, 2)).unbind(-1)
    part = (ranks - starts) / (lengths.gather(1, run) - 1).clamp(min=1)
    return starts, low + part * (high - low)
