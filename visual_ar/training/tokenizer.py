"""The training loop of a tokenizer, here with a code book; knows nothing about generators.

The losses are those of Esser et al. (2021), "Taming transformers", section 3.1, with the weights
and the order of appearance that the recipe says.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visual_ar.data.dataset import Dataset
from visual_ar.evaluation.distortion import psnr
from visual_ar.size import Size
from visual_ar.tokenizers.binary import BinaryTokenizer
from visual_ar.tokenizers.quantizers import Quantized
from visual_ar.tokenizers.vq import VQTokenizer
from visual_ar.training.codebook import CodebookUpkeep
from visual_ar.training.loop import Training
from visual_ar.training.losses import TokenizerLoss
from visual_ar.training.pixels import save_sheet, shifted, to_float, to_uint8
from visual_ar.training.progress import (
    Average,
    Clock,
    Log,
    build_optimisers,
    check_resumed,
    learning_rate,
    load_checkpoint,
    random_numbers,
    update,
)
from visual_ar.training.recipe import TokenizerRecipe

ORDER, START = 1, 2  # streams of random numbers: one draw a step, and the k-means start
TEST_SPLITS = {"emoji": "tokenizer-test", "cifar10": "test"}
TEST_PICTURES = 1000
MEASURE_BATCH = 50
SHEET_ROWS, SHEET_COLUMNS = 4, 12


class TokenizerTraining(Training[TokenizerRecipe]):
    """One run; `train` goes on from the last checkpoint in `output`.

    What depends on the kind of tokens is in methods that `binary_tokenizer` replaces.
    """

    def __init__(
        self, recipe: TokenizerRecipe, data: Dataset, output: Path, device: torch.device
    ) -> None:
        self.recipe, self.output, self.device = recipe, output, device
        self.sources = self._fingerprints()
        check_resumed(output, recipe, self.sources)
        pictures = torch.from_numpy(data.pictures)
        self.train_pictures = pictures[data.indices("train")]
        self.test_pictures = pictures[data.indices(TEST_SPLITS[recipe.dataset])][:TEST_PICTURES]
        torch.manual_seed(recipe.seed)
        model = self._build().to(device, memory_format=torch.channels_last)
        self.model: Any = model.train()
        self._prepare()
        self.loss = TokenizerLoss(recipe.loss, recipe.optimiser, device)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        (self.optimiser,) = build_optimisers(model, recipe.optimiser)
        self.average = Average(model, recipe.optimiser.ema)
        self.clock = Clock(recipe)
        self._restore()
        self.log = Log(output / "log.csv", self.clock.step)

    def _fingerprints(self) -> dict[str, str]:
        """Of what the recipe reads of other runs, see `check_resumed`."""
        return {}

    def _build(self) -> VQTokenizer | BinaryTokenizer:
        return VQTokenizer(**self.recipe.model)

    def _prepare(self) -> None:
        """Makes what looks after the tokens in training."""
        self.codebook = CodebookUpkeep(self.model.quantize, self.recipe.codebook)
        self.quantised = False

    def _look(self) -> dict[str, Any]:
        self.save_samples()
        return self.measure(self.test_pictures)

    def _batch(self) -> Tensor:
        """The pictures of this step, shifted at random: float [B, 3, H, W]."""
        draw = random_numbers(self.recipe.seed, ORDER, self.clock.step)
        count, shift = len(self.train_pictures), self.recipe.shift
        chosen = torch.randint(count, (self.recipe.batch,), generator=draw)
        pictures = self.train_pictures[chosen]
        if shift:
            pictures = shifted(pictures, shift, draw)
        return to_float(pictures.to(self.device))

    def _step(self) -> dict[str, Any]:
        progress = self.clock.progress
        rate = learning_rate(self.recipe.optimiser, self.clock)
        self._before_step(progress)
        pixels = self._batch()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bf16):
            codes, quantized = self._quantise(self.model.latents(pixels))
            drawn = self.model.reconstruct(codes).float()
        last_layer = self.model.decoder.conv_out.weight
        terms = self.loss.tokenizer(pixels, drawn, progress, last_layer)
        terms |= self._quantizer_terms(quantized, progress)
        loss = torch.stack(list(terms.values())).sum()
        loss.backward()
        norm = update([self.optimiser], self.parameters, rate, self.recipe.optimiser.clip)
        terms |= self.loss.discriminator_step(pixels, drawn.detach(), progress, rate)
        row: dict[str, Any] = {"step": self.clock.step + 1, "seconds": self.clock.seconds}
        row["progress"] = progress
        row |= {"learning_rate": rate, "gradient": norm}
        row |= {name: value.detach() for name, value in terms.items()}
        row |= self._after_step(quantized, progress)
        self.average.update(self.model, self.clock.step)
        return row

    def _before_step(self, progress: float) -> None:
        if not self.quantised and progress >= self.recipe.codebook.start:
            self._start_codebook()

    def _quantise(self, latents: Tensor) -> tuple[Tensor, Quantized]:
        """What the decoder is given for latents [B, C, h, w], and all that quantising gave."""
        quantized = self.model.quantize(latents)
        return quantized.codes if self.quantised else quantized.latents, quantized

    def _quantizer_terms(self, quantized: Quantized, progress: float) -> dict[str, Tensor]:
        """Weighted terms of the loss, each a scalar."""
        if not self.quantised:
            return {}
        return {"commitment": self.recipe.loss.commitment * quantized.losses["commitment"]}

    def _after_step(self, quantized: Quantized, progress: float) -> dict[str, Any]:
        """Looks after the tokens; returns what the log tells of them."""
        if not self.quantised:
            return {}
        tokens = quantized.tokens
        vectors = quantized.latents.detach().permute(0, 2, 3, 1).flatten(0, 2)
        self.codebook.update(vectors, tokens.flatten())
        revived = 0
        if progress < self.recipe.codebook.freeze:
            draw = random_numbers(self.recipe.seed, START, self.clock.step)
            revived = self.codebook.revive(vectors, draw)
        return {"revived": revived, **self._usage_of(tokens)}

    def _usage_of(self, tokens: Tensor) -> dict[str, Any]:
        """How evenly tokens are used. tokens: of any number of pictures."""
        return usage(tokens, self.model.codebook_size)

    @torch.no_grad()
    def _start_codebook(self) -> None:
        """k-means on the latents of enough pictures to give each code sixteen vectors."""
        draw = random_numbers(self.recipe.seed, START, self.clock.step)
        order = torch.randperm(len(self.train_pictures), generator=draw)
        vectors: list[Tensor] = []
        for part in order.split(self.recipe.batch):
            pixels = to_float(self.train_pictures[part].to(self.device))
            quantized = self.model.quantize(self.model.latents(pixels))
            vectors.append(quantized.latents.permute(0, 2, 3, 1).flatten(0, 2).float())
            if sum(map(len, vectors)) >= 16 * self.model.codebook_size:
                break
        self.codebook.start(torch.cat(vectors), draw)
        # The averaged code book must not remember the random one.
        self.average.model.quantize.load_state_dict(self.model.quantize.state_dict())
        self.quantised = True

    @torch.no_grad()
    def measure(self, pictures: Tensor) -> dict[str, Any]:
        """PSNR and use of the tokens of the averaged model. pictures: uint8 [M, H, W, 3]."""
        model = self.average.model
        ratios, tokens = [], []
        for part in pictures.split(MEASURE_BATCH):
            pixels = to_float(part.to(self.device))
            codes = model.encode(pixels)
            drawn = model.decode(codes, model.grid(Size(*pixels.shape[2:])))
            ratios.append(psnr(to_uint8(drawn), to_uint8(pixels)))
            tokens.append(codes)
        measured = self._usage_of(torch.cat(tokens))
        return {"psnr": float(torch.cat(ratios).mean())} | {
            f"held_out_{name}": value for name, value in measured.items()
        }

    def _encode(self, pictures: Tensor) -> Tensor:
        """Tokens of the averaged model. pictures: uint8 [M, H, W, 3]."""
        parts = pictures.split(MEASURE_BATCH)
        encode = self.average.model.encode
        return torch.cat([encode(to_float(part.to(self.device))) for part in parts])

    @torch.no_grad()
    def save_samples(self) -> None:
        """A sheet of held-out pictures, each row of originals above its reconstructions."""
        columns = min(SHEET_COLUMNS, len(self.test_pictures))
        shown = self.test_pictures[: len(self.test_pictures) // columns * columns]
        pixels = to_float(shown[: SHEET_ROWS * columns].to(self.device))
        model = self.average.model
        drawn = model.decode(model.encode(pixels), model.grid(Size(*pixels.shape[2:])))
        pairs = [side.unflatten(0, (-1, columns)) for side in (pixels, drawn)]
        save_sheet(self.output / "samples.png", torch.stack(pairs, dim=1).flatten(0, 2), columns)

    def save(self) -> None:
        """See `Training.save`."""
        self.average.model.save_pretrained(self.output / "model")

    def _finish(self) -> dict[str, Any]:
        tested = self.measure(self.test_pictures)
        trained = self._usage_of(self._encode(self.train_pictures))
        measured = {
            "held_out_psnr": tested["psnr"],
            "held_out_pictures": len(self.test_pictures),
            **{f"train_{name}": value for name, value in trained.items()},
        }
        self.save_samples()
        return measured

    def _state(self) -> dict[str, Any]:
        return {
            **self.sources,
            "recipe": dataclasses.asdict(self.recipe),
            "clock": self.clock.state(),
            "tokens": self._token_state(),
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "loss": self.loss.state(),
        }

    def _token_state(self) -> dict[str, Any]:
        return {"quantised": self.quantised, "codebook": self.codebook.state()}

    def _restore_tokens(self, state: dict[str, Any]) -> None:
        self.quantised = state["quantised"]
        self.codebook.restore(state["codebook"])

    def _restore(self) -> None:
        state = load_checkpoint(self.output)
        if state is None:
            return
        self.clock.restore(state["clock"])
        self.model.load_state_dict(state["model"])
        self.average.model.load_state_dict(state["average"])
        self._restore_tokens(state["tokens"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.loss.restore(state["loss"])


def usage(tokens: Tensor, codebook_size: int) -> dict[str, float]:
    """Share of codes that occur, and perplexity of their frequencies. tokens: int64 [B, N]."""
    counts = torch.bincount(tokens.flatten(), minlength=codebook_size).double()
    frequencies = counts / counts.sum()
    entropy = -(frequencies * frequencies.clamp(min=1e-12).log()).sum()
    return {"usage": float((counts > 0).double().mean()), "perplexity": float(entropy.exp())}
