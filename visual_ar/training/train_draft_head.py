"""The training loop of a draft head beside its frozen generator; knows nothing about acceptance.

Li et al. (2024), "EAGLE: speculative sampling requires rethinking feature uncertainty", section
3.2: smooth L1 between foretold and true hidden states, cross-entropy between the laws read from
them. Laws are those that decoding draws from, u + s (c - u) of both rows over a temperature, and
later steps of a chain are trained on foretold states, as in decoding (Zhang et al. 2024, HASS).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from visual_ar import loading
from visual_ar.accel.draft_head import DraftHeadDecoding
from visual_ar.cache import KVCache
from visual_ar.cast import Cast
from visual_ar.data.dataset import Dataset
from visual_ar.models.draft_head import DraftHead
from visual_ar.models.llamagen import LlamaGen
from visual_ar.pipeline import VisualARPipeline
from visual_ar.sampling import Sampling, Warps, guide, warp
from visual_ar.tokens.kind import TABLE
from visual_ar.training.bundle import save_with_draft_head
from visual_ar.training.drawn_codes import cached_codes
from visual_ar.training.loop import Training
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
from visual_ar.training.recipe import DraftRecipe
from visual_ar.training.subjects import ClassConditions, Conditions, Given, TextConditions

ORDER, MEASURE = 1, 4  # streams of random numbers
HELD_OUT_PICTURES = 64
MEASURE_BATCH = 8
DRAWN_PICTURES = 8
WINDOW = 5  # of the pictures that are drawn to measure the accepted length: four drafts


class Lesson(NamedTuple):
    """What the generator thought of some pictures; rows R = 2B, conditional ones first.

    Attributes:
        embeddings: [R, N, D], of the last prefix token and of all tokens but the last.
        features: [R, N, D], hidden states after each of them; the head has to foretell them.
    """

    embeddings: Tensor
    features: Tensor


class DraftTraining(Training[DraftRecipe]):
    """One run; `train` goes on from the last checkpoint in `output`.

    The generator is looked for beside `output`, in the run that the recipe names.
    """

    def __init__(
        self, recipe: DraftRecipe, data: Dataset, output: Path, device: torch.device
    ) -> None:
        self.recipe, self.output, self.device = recipe, output, device
        base = output.parent / recipe.base / "pipeline"
        self.pipe = _load_base(base).to(device)
        self.sources = {"base": loading.fingerprint(base / "model")}
        check_resumed(output, recipe, self.sources)
        self.target: LlamaGen = self.pipe.model.requires_grad_(False)
        self.codes = cached_codes(
            self.pipe.image_tokenizer,
            torch.from_numpy(data.pictures),
            recipe.crops,
            recipe.shift,
            recipe.soft,
            recipe.seed,
            output,
            device,
        )
        self.train_indices = torch.from_numpy(data.indices(*recipe.splits))
        held_out = torch.from_numpy(data.indices(recipe.held_out))
        self.held_out = held_out[:: max(1, len(held_out) // HELD_OUT_PICTURES)][:HELD_OUT_PICTURES]
        self.conditions: Conditions
        if self.pipe.text_encoder is None:
            self.conditions = ClassConditions(data, device)
        else:
            self.conditions = TextConditions(data, recipe.alias)
        self.head = DraftHead.start_from(self.target).to(device).train()
        self.parameters = list(self.head.parameters())
        matrices = [p for p in self.parameters if p.ndim == 2]
        self.optimisers = build_optimisers(self.head, recipe.optimiser, matrices)
        self.average = Average(self.head, recipe.optimiser.ema)
        self.clock = Clock(recipe)
        self._restore()
        self.log = Log(output / "log.csv", self.clock.step)

    def _look(self) -> dict[str, Any]:
        return dict(self.measure())

    def save(self) -> None:
        """See `Training.save`."""
        save_with_draft_head(self.pipe, self.average.model, self.output / "pipeline")

    def _finish(self) -> dict[str, Any]:
        measured = self.measure() | {"accepted_length": self.accepted_length(), "window": WINDOW}
        return measured | {"held_out_pictures": len(self.held_out)}

    def _step(self) -> dict[str, Any]:
        recipe = self.recipe
        draw = random_numbers(recipe.seed, ORDER, self.clock.step)
        chosen = torch.randint(len(self.train_indices), (recipe.batch,), generator=draw)
        indices = self.train_indices[chosen]
        crops = torch.randint(recipe.crops, (recipe.batch,), generator=draw)
        tokens = self.codes.draw(crops, indices, draw).inputs.to(self.device)
        sampling = draw_options(recipe, draw, self.device)
        progress, rate = self.clock.progress, learning_rate(recipe.optimiser, self.clock)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.bf16):
            with torch.no_grad():
                given = self.conditions.vary(indices, self.pipe.text_encoder, draw)
                lesson = teach(self.target, tokens, given)
            law, features = losses(self.target, self.head, lesson, sampling, recipe.depth)
        (law + recipe.features * features).backward()
        norm = update(self.optimisers, self.parameters, rate, recipe.optimiser.clip)
        self.average.update(self.head, self.clock.step)
        return {
            "step": self.clock.step + 1,
            "seconds": self.clock.seconds,
            "progress": progress,
            "learning_rate": rate,
            "gradient": norm,
            "law": law.detach(),
            "features": features.detach(),
        }

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Chance that a draft is accepted, by its place in the chain, on held-out pictures.

        That is the sum of min(p, q) over the codes, with the averaged head and the sampling
        defaults of the pipeline, after the codes of the pictures themselves.
        """
        totals = torch.zeros(self.recipe.depth, dtype=torch.float64)
        for indices in self.held_out.split(MEASURE_BATCH):
            draw = random_numbers(self.recipe.seed, MEASURE, int(indices[0]))
            drawn = self.codes.draw(torch.zeros_like(indices), indices, draw).to(self.device)
            given = self.conditions.describe(indices, self.pipe.text_encoder)
            lesson = teach(self.target, drawn.inputs, given)
            sampling = self._defaults(len(indices))
            p = laws(self.target, lesson.features, sampling).softmax(-1)
            for step, states in enumerate(unroll(self.average.model, lesson, self.recipe.depth)):
                q = laws(self.target, states, sampling).softmax(-1)
                overlap = torch.minimum(p, q).sum(-1)[:, step:].mean()
                totals[step] += float(overlap) * len(indices)
        means = (totals / len(self.held_out)).tolist()
        return {f"acceptance_{step + 1}": mean for step, mean in enumerate(means)}

    @torch.no_grad()
    def accepted_length(self) -> float:
        """Tokens a pass commits with the averaged head, the one drawn anew included."""
        indices = self.held_out[:DRAWN_PICTURES]
        given = self.conditions.describe(indices, self.pipe.text_encoder)
        condition = self.target.condition(given.given, given.mask)
        side = self.target.config.grid_size
        layout = self.target.layout((side, side))
        cast = Cast(self.target, layout, draft_head=self.average.model)
        steps = DraftHeadDecoding(WINDOW).decode(cast, condition, self._defaults(len(indices)))
        runs = torch.cat([step.committed for step in steps])
        return float(runs[runs > 0].double().mean())

    def _defaults(self, pictures: int) -> Sampling:
        config = self.pipe.config
        options = (config.guidance_scale, config.temperature, config.top_k, config.top_p)
        return _to(Sampling.create(list(range(pictures)), *options), self.device)

    def _state(self) -> dict[str, Any]:
        return {
            **self.sources,
            "head": self.head.state_dict(),
            **progress_state(self.recipe, self.clock, self.average, self.optimisers),
        }

    def _restore(self) -> None:
        state = load_checkpoint(self.output)
        if state is None:
            return
        self.head.load_state_dict(state["head"])
        restore_progress(state, self.clock, self.average, self.optimisers)


class UnrolledCache(KVCache):
    """Keys and values of several steps side by side. They are new tensors, so gradients reach them,
    where a cache of fixed buffers would be overwritten."""

    def __init__(self) -> None:
        self._steps: list[tuple[Tensor, Tensor]] = []

    def update(self, layer: int, k: Tensor, v: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Those of all steps so far. k, v: [R, h, N, d_h]; returns two [R, h, steps N, d_h]."""
        self._steps.append((k, v))
        keys, values = zip(*self._steps, strict=True)
        return torch.cat(keys, 2), torch.cat(values, 2)


def teach(target: LlamaGen, tokens: Tensor, given: Given) -> Lesson:
    """The generator's view of whole pictures with and without their condition.

    Args:
        target: the generator.
        tokens: int64 [B, N] in decode order.
        given: conditions of the B pictures.
    """
    condition = target.condition(given.given, given.mask)
    rows = tokens.repeat(2, 1)
    features = target.features(rows, condition, target.same_columns(given.given))
    ranks = torch.arange(rows.shape[1], device=rows.device).expand_as(rows)
    embeddings = torch.cat([condition.prefix[:, -1:], target.embed(rows, ranks)[:, :-1]], dim=1)
    return Lesson(embeddings, features)


def unroll(head: DraftHead, lesson: Lesson, depth: int) -> list[Tensor]:
    """States foretold from every rank, by how many steps of the head lie behind them.

    Args:
        head: what foretells.
        lesson: of N ranks.
        depth: steps, at least 1.

    Returns:
        `depth` tensors [R, N, D]. The first sees true states only, the next the one it follows in
        the place of the newest true state, and so on. The first `step` columns of a later step
        follow nothing and mean nothing.
    """
    length = lesson.features.shape[1]
    ranks = torch.arange(-1, length - 1, device=lesson.features.device)[None]
    cache, states = UnrolledCache(), []
    known = lesson.features
    for step in range(depth):
        before = F.pad(known[:, :-1], (0, 0, 1, 0))
        visible = unrolled_mask(length, step, ranks.device)
        known = head(lesson.embeddings, before, ranks, cache, visible)
        states.append(known)
    return states


def unrolled_mask(length: int, step: int, device: torch.device) -> Tensor:
    """What a later step of a chain sees: true states up to where the chain began, then the chain.

    Returns:
        bool [1, 1, N, (step + 1) N].
    """
    column = torch.arange(length, device=device)
    query, key = column[:, None], column[None]
    parts = [key <= query - step]
    parts += [key == query - step + behind for behind in range(1, step + 1)]
    return torch.cat(parts, dim=1)[None, None]


def laws(target: LlamaGen, states: Tensor, sampling: Sampling) -> Tensor:
    """Guided, warped logits [B, N, V] from hidden states [2B, N, D], as decoding has them."""
    ranks = torch.arange(states.shape[1], device=states.device).expand(states.shape[:2])
    conditional, unconditional = target.predict(states, ranks).chunk(2)
    scale = sampling.guidance[:, None].expand(conditional.shape[:2])
    guided = guide(conditional, unconditional, scale)
    options = (sampling.temperature, sampling.top_k, sampling.top_p)
    return warp(guided, *options, Warps.of(sampling))


def losses(
    target: LlamaGen, head: DraftHead, lesson: Lesson, sampling: Sampling, depth: int
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the guided laws in nats, and smooth L1 of the states of both rows.

    Args:
        target: the generator.
        head: what is trained.
        lesson: of B pictures.
        sampling: their options, without top-k and top-p.
        depth: steps of the head; the losses are means over them.
    """
    with torch.no_grad():
        goal = laws(target, lesson.features, sampling).softmax(-1)
    law, features = [], []
    for step, states in enumerate(unroll(head, lesson, depth)):
        log_q = laws(target, states, sampling).log_softmax(-1)
        law.append(-(goal * log_q).sum(-1)[:, step:].mean())
        features.append(F.smooth_l1_loss(states[:, step:], lesson.features[:, step:]))
    return torch.stack(law).mean(), torch.stack(features).mean()


def draw_options(recipe: DraftRecipe, draw: torch.Generator, device: torch.device) -> Sampling:
    """Guidance and temperature of every picture, evenly distributed in the recipe's ranges."""
    count = recipe.batch

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=draw)

    sampling = Sampling(
        guidance=between(*recipe.guidance),
        temperature=between(*recipe.temperature),
        top_k=torch.zeros(count, dtype=torch.int64),
        top_p=torch.ones(count),
        seed=torch.zeros(count, dtype=torch.int64),
    )
    return _to(sampling, device)


def _to(sampling: Sampling, device: torch.device) -> Sampling:
    return Sampling(*(option.to(device) for option in sampling))


def _load_base(path: Path) -> VisualARPipeline:
    if not path.is_dir():
        raise FileNotFoundError(
            f"the generator must be trained first: recipe {path.parent.name} into {path.parent}"
        )
    pipe = VisualARPipeline.from_pretrained(path)
    if not isinstance(pipe.model, LlamaGen) or TABLE not in pipe.model.tokens.offers:
        raise ValueError(
            f"base must be of the family llamagen with a code book, {path} holds a "
            f"{type(pipe.model).__name__}"
        )
    return pipe
