"""The training loop of a token generator over cached tokens; knows nothing about pixels.

Sun et al. (2024), "Autoregressive model beats diffusion: LlamaGen", section 3.2: cross-entropy over
the codes, or over the bits of tokens that are bit vectors, with the condition left out at times so
that guidance works (Ho and Salimans 2022).
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visual_ar import loading
from visual_ar.accel.groups import GroupDecoding
from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.cast import Cast
from visual_ar.companions import same_tokenizer
from visual_ar.data.dataset import Dataset
from visual_ar.models.bitwise import SubcodeLlamaGen
from visual_ar.models.llama_shared import CaptionEmbedder
from visual_ar.pipeline import VisualARPipeline
from visual_ar.sampling import Sampling
from visual_ar.size import Size
from visual_ar.text_encoder import TextEncoder
from visual_ar.tokenizers.binary import BinaryTokenizer
from visual_ar.tokenizers.vq import VQTokenizer
from visual_ar.training.bundle import save_delta, save_pipeline
from visual_ar.training.captions import CaptionModel, start_captions
from visual_ar.training.drawn_bits import CachedBits, DrawnBits
from visual_ar.training.drawn_codes import CachedCodes, Drawn
from visual_ar.training.head_kinds import HEADS, MODELS, Generator, matrices
from visual_ar.training.loop import Training
from visual_ar.training.pixels import save_sheet
from visual_ar.training.progress import (
    Average,
    Clock,
    Log,
    build_optimisers,
    check_resumed,
    derived_seed,
    has_checkpoint,
    learning_rate,
    load_checkpoint,
    progress_state,
    random_numbers,
    restore_progress,
    update,
)
from visual_ar.training.recipe import GeneratorRecipe
from visual_ar.training.subjects import ClassConditions, Conditions, Given, TextConditions
from visual_ar.training.trunk import bundle_name, find_trunk, start_from, start_text

ORDER, DROPOUT, MEASURE = 1, 2, 4  # streams of random numbers; 3 belongs to `captions`
HELD_OUT_PICTURES = 200
MEASURE_BATCH = 20
SHEET_COLUMNS = 8


class Trained(nn.Module):
    """All that one run trains: the transformer and, for captions, the encoder that reads them."""

    def __init__(self, model: Generator, captions: CaptionModel | None) -> None:
        super().__init__()
        self.model = model
        self.captions = captions

    @property
    def text_encoder(self) -> TextEncoder | None:
        """What reads the captions, if there are any."""
        return None if self.captions is None else self.captions.encoder


class GeneratorTraining(Training[GeneratorRecipe]):
    """One run; `train` goes on from the last checkpoint in `output`.

    The trained tokenizer is looked for beside `output`, in the run that the recipe names.
    """

    def __init__(
        self, recipe: GeneratorRecipe, data: Dataset, output: Path, device: torch.device
    ) -> None:
        self.recipe, self.output, self.device = recipe, output, device
        self.head = HEADS[recipe.head]
        self.trunk: VisualARPipeline | None = None
        if recipe.trunk:
            folder = find_trunk(recipe.trunk, output.parent)
            self.trunk = VisualARPipeline.from_pretrained(folder)
        self.tokenizer = self._load_tokenizer().to(device)
        self.sources = self._fingerprints()
        check_resumed(output, recipe, self.sources)
        pictures = torch.from_numpy(data.pictures)
        self.grid = self.tokenizer.grid(Size(*pictures.shape[1:3]))
        self.codes: CachedCodes | CachedBits = self.head.tokens_of(
            self.tokenizer, pictures, recipe, output, device
        )
        self.train_indices = torch.from_numpy(data.indices(*recipe.splits))
        groups = data.groups
        self.weights = balance([groups[i] for i in self.train_indices], recipe.balance)
        held_out = torch.from_numpy(data.indices(recipe.held_out))
        self.held_out = held_out[:: max(1, len(held_out) // HELD_OUT_PICTURES)][:HELD_OUT_PICTURES]
        self.class_names = data.classes if recipe.text is None else None
        torch.manual_seed(recipe.seed)
        self.conditions: Conditions
        captions: CaptionModel | None = None
        if recipe.text is None:
            self.conditions = ClassConditions(data, device)
            condition = {"num_classes": len(data.classes)}
        else:
            self.conditions = TextConditions(data, recipe.alias)
            words = self.conditions.words(self.train_indices)
            encoder = TextEncoder(words=words, **recipe.text).to(device)
            latents = self.codes.latents_of(self.tokenizer, device)
            captions = CaptionModel(encoder, latents, self.train_indices)
            condition = {
                "caption_dim": encoder.config.feature_dim,
                "caption_length": encoder.config.length,
            }
        options = {**recipe.model, **condition, "grid_size": self.grid[0]}
        make = MODELS[recipe.family, recipe.head]
        model = self.head.build(make, options, self.tokenizer)
        if recipe.head_alone:
            model.requires_grad_(False)
            model.output.requires_grad_(True)
        self.codes = self.codes.ordered(model.layout(self.grid).cell)
        if isinstance(model.cls_embedding, CaptionEmbedder):
            nothing = model.cls_embedding.uncond_embedding
            nothing.copy_(nothing[:1].clone())  # equal columns, like those of captions
        self.trained = Trained(model, captions).to(device).train()
        if self.trunk is not None:
            self._start_from(self.trunk)
        self.parameters = [p for p in self.trained.parameters() if p.requires_grad]
        self.optimisers = build_optimisers(
            self.trained, recipe.optimiser, matrices(model), captions, recipe.captions.rate
        )
        if captions is not None and not recipe.trunk and not has_checkpoint(output):
            assert isinstance(self.conditions, TextConditions)
            start_captions(
                captions,
                self.conditions,
                self.train_indices,
                self.weights,
                recipe.captions,
                recipe.seed,
                output,
            )
        self.average = Average(self.trained, recipe.optimiser.ema)
        self.clock = Clock(recipe)
        self._restore()
        self.log = Log(output / "log.csv", self.clock.step)

    def _load_tokenizer(self) -> VQTokenizer | BinaryTokenizer:
        """The tokenizer of the recipe, or where the head learns alone that of the trunk."""
        recipe = self.recipe
        if recipe.head_alone and self.trunk is not None:
            return self.trunk.image_tokenizer.requires_grad_(False)
        return self.head.load(self.output.parent / recipe.tokenizer / "model")

    def _fingerprints(self) -> dict[str, str]:
        """Of what the recipe reads of other runs."""
        recipe, runs = self.recipe, self.output.parent
        folders = {}
        if recipe.trunk:
            folders["trunk"] = find_trunk(recipe.trunk, runs) / "model"
        if not recipe.head_alone:
            folders["tokenizer"] = runs / recipe.tokenizer / "model"
        return {option: loading.fingerprint(folder) for option, folder in folders.items()}

    def _start_from(self, trunk: VisualARPipeline) -> None:
        """Takes over what the trunk knows; its text encoder stays as it is."""
        # A pipeline holds its tokenizer in float16.
        rounded = copy.deepcopy(self.tokenizer).half().cpu()
        same = self.recipe.head_alone or same_tokenizer(rounded, trunk.image_tokenizer)
        start_from(self.trained.model, trunk.model, same)
        if self.trained.captions is not None:
            start_text(self.trained.captions.encoder, trunk)
            self.trained.captions.requires_grad_(False)

    def _look(self) -> dict[str, Any]:
        self.save_samples()
        return {"held_out": self.measure()}

    def _finish(self) -> dict[str, Any]:
        self.save_samples()
        return {"held_out_loss": self.measure(), "held_out_pictures": len(self.held_out)}

    def _step(self) -> dict[str, Any]:
        recipe, step = self.recipe, self.clock.step
        draw = random_numbers(recipe.seed, ORDER, step)
        chosen = torch.multinomial(self.weights, recipe.batch, replacement=True, generator=draw)
        indices = self.train_indices[chosen]
        crops = torch.randint(recipe.crops, (recipe.batch,), generator=draw)
        drawn = self.codes.draw(crops, indices, draw)
        drawn = drawn.with_mistakes(recipe.wrong, recipe.flip, draw).to(self.device)
        drop = (torch.rand(recipe.batch, generator=draw) < recipe.drop).to(self.device)
        progress, rate = self.clock.progress, learning_rate(recipe.optimiser, self.clock)
        torch.manual_seed(derived_seed(recipe.seed, DROPOUT, step))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.bf16):
            given = self.conditions.vary(indices, self.trained.text_encoder, draw)
            loss = total = loss_of(self.trained.model, drawn, given, drop)
        if self.trained.captions is not None and not recipe.trunk:
            foretold = self.trained.captions.loss(given.given, indices)
            total = total + recipe.captions.weight * foretold
        total.backward()
        norm = update(self.optimisers, self.parameters, rate, recipe.optimiser.clip)
        self.average.update(self.trained, step)
        return {
            "step": step + 1,
            "seconds": self.clock.seconds,
            "progress": progress,
            "learning_rate": rate,
            "gradient": norm,
            "loss": loss.detach(),
        }

    @torch.no_grad()
    def measure(self) -> float:
        """Mean loss of the averaged model on held-out pictures, nats a token."""
        total = 0.0
        for indices in self.held_out.split(MEASURE_BATCH):
            draw = random_numbers(self.recipe.seed, MEASURE, int(indices[0]))
            drawn = self.codes.draw(torch.zeros_like(indices), indices, draw).to(self.device)
            given = self.conditions.describe(indices, self.average.model.text_encoder)
            total += float(loss_of(self.average.model.model, drawn, given)) * len(indices)
        return total / len(self.held_out)

    @torch.no_grad()
    def save_samples(self) -> None:
        """A sheet of pictures drawn for conditions of training above some for held-out ones."""
        count = 2 * SHEET_COLUMNS
        seen = self.train_indices[:: max(1, len(self.train_indices) // count)][:count]
        held = self.held_out[:: max(1, len(self.held_out) // SHEET_COLUMNS)][:SHEET_COLUMNS]
        given = self.conditions.describe(torch.cat((seen, held)), self.average.model.text_encoder)
        model = self.average.model.model
        condition = model.condition(given.given, given.mask)
        chosen = self.recipe.sampling
        sampling = Sampling.create(
            list(range(len(given.given))),
            chosen.guidance_scale,
            chosen.temperature,
            chosen.top_k,
            chosen.top_p,
        )
        layout = model.layout(self.grid)
        for step in GroupDecoding().decode(Cast(model, layout), condition, sampling):
            tokens = step.tokens
        pictures = self.tokenizer.decode(layout.cells(tokens), self.grid)
        save_sheet(self.output / "samples.png", pictures, SHEET_COLUMNS)

    def save(self) -> None:
        """See `Training.save`."""
        averaged = self.average.model
        save_pipeline(
            averaged.model,
            self.tokenizer,
            averaged.text_encoder,
            self.class_names,
            self.recipe.sampling,
            self.output / "pipeline",
        )
        if self.recipe.head_alone:
            assert isinstance(averaged.model, SubcodeLlamaGen)
            save_delta(
                averaged.model,
                bundle_name(self.recipe.trunk),
                self.sources["trunk"],
                SpeculativeJacobiDecoding(),
                self.output / "delta",
            )

    def _state(self) -> dict[str, Any]:
        return {
            **self.sources,
            "trained": self.trained.state_dict(),
            **progress_state(self.recipe, self.clock, self.average, self.optimisers),
        }

    def _restore(self) -> None:
        state = load_checkpoint(self.output)
        if state is None:
            return
        self.trained.load_state_dict(state["trained"])
        restore_progress(state, self.clock, self.average, self.optimisers)


def balance(groups: list[str], power: float) -> Tensor:
    """Chance of each picture: the size of its group to the power -`power`. float64 [M]."""
    sizes: dict[str, int] = {}
    for group in groups:
        sizes[group] = sizes.get(group, 0) + 1
    return torch.tensor([sizes[group] for group in groups], dtype=torch.float64) ** -power


def loss_of(
    model: Generator, drawn: Drawn | DrawnBits, given: Given, drop: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy, nats a token. drop: bool [B]."""
    condition = model.condition(given.given, given.mask, guided=False, drop=drop)
    return drawn.loss(model, condition, model.same_columns(given.given))
