"""What a recipe says, as typed dataclasses; knows nothing about files, models or data."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Optimiser:
    """AdamW with a linear warm-up and a cosine decay, and the averaging of the weights.

    Attributes:
        learning_rate: peak of the schedule.
        final: learning rate at the end, as a fraction of the peak.
        warmup: steps of linear warm-up.
        betas: AdamW's two decay rates.
        weight_decay: of the matrices; vectors have none.
        clip: largest norm of the whole gradient.
        ema: decay of the averaged weights.
        muon: whether the matrices inside a generator's blocks are trained by Muon (Jordan 2024).
    """

    learning_rate: float
    final: float = 0.02
    warmup: int = 100
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.999
    muon: bool = False


@dataclass(frozen=True)
class Logging:
    """How often, in steps, things are written: a CSV row, a measurement, a checkpoint."""

    row: int = 20
    measure: int = 500
    checkpoint: int = 250


@dataclass(frozen=True)
class Codebook:
    """The k-means start and the upkeep of the code book.

    Attributes:
        start: progress in 0..1 at which codes replace the continuous latents.
        freeze: progress after which dead codes are no longer replaced.
        decay: of the running averages that the codes are.
        dead: a code is replaced when it is drawn less often a step than this fraction of its share.
    """

    start: float
    freeze: float = 0.7
    decay: float = 0.99
    dead: float = 0.03


BINARY_QUANTIZERS = ("lfq", "grouped-lfq", "bsq")
FAMILIES = ("llamagen", "nar")
HEADS = ("categorical", "bits", "subcodes")


@dataclass(frozen=True)
class Binary:
    """How a tokenizer of bits is quantised in training; its groups are those of the model.

    Attributes:
        quantizer: "lfq", "grouped-lfq" or "bsq"; what is trained decodes the signs whichever it is.
        inverse_temperature: k of the soft bits in the entropy loss, see `binary_quantizers`.
        entropy: weight of the entropy of a sample minus that of the batch average, in nats.
        ramp: progress in 0..1 over which that weight falls from three times its value, as in the
            training of BSQ-ViT.
    """

    quantizer: str
    inverse_temperature: float
    entropy: float = 0.01
    ramp: float = 0.0

    def __post_init__(self) -> None:
        if self.quantizer not in BINARY_QUANTIZERS:
            raise ValueError(
                f"binary: quantizer must be one of {', '.join(BINARY_QUANTIZERS)}, "
                f"got {self.quantizer!r}"
            )


@dataclass(frozen=True)
class ReconstructionLoss:
    """Weights of the terms of a tokenizer's loss; a late term starts at a progress in 0..1."""

    l1: float = 1.0
    l2: float = 1.0
    likelihood: float = 0.0
    likelihood_start: float = 0.0
    commitment: float = 0.25
    perceptual: float = 0.0
    perceptual_start: float = 0.0
    perceptual_stages: tuple[int, ...] = (0, 1, 2)
    adversarial: float = 0.0
    adversarial_start: float = 1.0
    discriminator_channels: int = 32


@dataclass(frozen=True)
class Captions:
    """The start of a text encoder, which learns to foretell the latents of the pictures.

    Attributes:
        steps: before the generator is trained.
        batch: captions a step.
        learning_rate: peak of a schedule of its own.
        embedding_rate: factor for the embeddings, whose rows are seen rarely.
        weight: of the same loss while the generator is trained.
        rate: factor of the generator's learning rate for the text encoder.
    """

    steps: int = 1500
    batch: int = 128
    learning_rate: float = 2e-3
    embedding_rate: float = 10.0
    weight: float = 0.5
    rate: float = 0.1


@dataclass(frozen=True)
class SamplingDefaults:
    """How pictures are drawn unless the user asks otherwise; see `Sampling.create`."""

    guidance_scale: float = 2.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """What every recipe has.

    Attributes:
        name: of the run; also the name of the recipe file.
        kind: "tokenizer", "generator", "draft" or "denoising".
        dataset: name of the prepared dataset.
        seed: of weights, order of the data and every other draw.
        steps: length of the run.
        minutes: time to fit the run in; it ends early when the clock is ahead of the steps.
        batch: pictures a step.
        bf16: whether to run the network under bfloat16 autocast.
        model: constructor arguments of the model; none for a draft head, which its generator sizes.
    """

    name: str
    kind: str
    dataset: str
    steps: int
    batch: int
    optimiser: Optimiser
    model: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    minutes: float | None = None
    bf16: bool = False
    logging: Logging = field(default_factory=Logging)


@dataclass(frozen=True)
class TokenizerRecipe(Recipe):
    """A tokenizer's training.

    Attributes:
        encoder: name of the recipe of a tokenizer of bits whose trained encoder this one keeps; its
            run lies beside this one's. The decoder alone goes on learning from there, so that
            generators of those tokens can draw with this tokenizer. Nothing trains both anew.
        binary: of a tokenizer of bits; None for one with a code book.
        codebook: of the other one.
        loss: weights.
        shift: largest translation of a picture, in pixels.
    """

    encoder: str = ""
    binary: Binary | None = None
    codebook: Codebook = field(default_factory=lambda: Codebook(start=0.05))
    loss: ReconstructionLoss = field(default_factory=ReconstructionLoss)
    shift: int = 0

    def __post_init__(self) -> None:
        if self.encoder and self.binary is None:
            raise ValueError(f"{self.name}: encoder needs a tokenizer of bits, a table [binary]")


@dataclass(frozen=True)
class GeneratorRecipe(Recipe):
    """A generator's training.

    Attributes:
        family: "llamagen" for next-token, "nar" for next-neighbour prediction.
        trunk: name of the recipe whose trained model this one starts from; its run lies beside
            this one's, or it is bundled. Its text encoder stays as it is, so that a bundle can
            share it. Nothing starts from random weights.
        tokenizer: name of the tokenizer's recipe; its run lies beside this one's. Left out where
            the head learns alone, for the tokens of its trunk.
        head: "categorical" over a code book; for a tokenizer of bits "bits" (one classifier each)
            or "subcodes" (a few softmaxes one after the other).
        splits: splits of the dataset that are trained on.
        held_out: split that is measured only.
        text: arguments of the text encoder; None for a class-conditional generator.
        head_alone: the head is trained and the rest stays that of the trunk, so that a bundle can
            share it; for sub-codes, whose trunk has classifiers of the same bits.
        captions: how the text encoder is started; no use without `text`.
        alias: chance that a prompt is replaced by another name of its picture.
        drop: chance that the condition is left out, for guidance.
        balance: a picture is drawn with the size of its group to the power -`balance`.
        crops: cached versions of each picture's codes; all but the first are shifted.
        shift: largest translation of such a version, in pixels.
        soft: temperature of soft labels and of the codes drawn by them (Lee et al. 2022, section
            3.2.3); 0 for the nearest code alone, as bits always have.
        wrong: largest share of a picture's input codes that are replaced by another picture's.
        flip: largest share of the input bits of a picture that are flipped; the labels stay.
        sampling: of the sample sheets, and the defaults of the pipeline.
    """

    family: str = "llamagen"
    trunk: str = ""
    tokenizer: str = ""
    head: str = "categorical"
    splits: tuple[str, ...] = ("train",)
    held_out: str = "test"
    text: dict[str, Any] | None = None
    head_alone: bool = False
    captions: Captions = field(default_factory=Captions)
    alias: float = 0.0
    drop: float = 0.1
    balance: float = 0.0
    crops: int = 1
    shift: int = 0
    soft: float = 0.0
    wrong: float = 0.0
    flip: float = 0.0
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)

    def __post_init__(self) -> None:
        for option, known in (("family", FAMILIES), ("head", HEADS)):
            if getattr(self, option) not in known:
                raise ValueError(
                    f"{self.name}: {option} must be one of {', '.join(known)}, "
                    f"got {getattr(self, option)!r}"
                )
        if self.family != "llamagen" and self.head != "categorical":
            raise ValueError(
                f"{self.name}: head must be 'categorical' with family {self.family!r}, "
                f"got {self.head!r}"
            )
        if self.head_alone and not (self.trunk and self.head == "subcodes"):
            raise ValueError(f"{self.name}: head_alone needs a trunk and head 'subcodes'")
        if self.head_alone and self.tokenizer:
            raise ValueError(
                f"{self.name}: tokenizer must be left out with head_alone, which learns the tokens "
                f"of its trunk, got {self.tokenizer!r}"
            )
        unused = "flip" if self.head == "categorical" else "soft"
        if getattr(self, unused):
            raise ValueError(
                f"{unused} must be 0 with head {self.head!r}, got {getattr(self, unused)}"
            )


@dataclass(frozen=True)
class DraftRecipe(Recipe):
    """The training of a draft head for a generator.

    Attributes:
        base: name of the generator's recipe; its run lies beside this one's.
        splits: splits of the dataset that are trained on.
        held_out: split that is measured only.
        alias: see `GeneratorRecipe`, like the three below.
        crops: cached versions of each picture's codes.
        shift: of such versions, in pixels.
        soft: temperature of the codes drawn.
        depth: steps of a chain that are trained, each on the states that the one before foretold.
        features: weight of the loss of the hidden states; that of the laws has weight 1.
        guidance: range of the guidance scales under which laws are compared.
        temperature: range of the temperatures.
    """

    base: str = ""
    splits: tuple[str, ...] = ("train",)
    held_out: str = "test"
    alias: float = 0.0
    crops: int = 1
    shift: int = 0
    soft: float = 0.0
    depth: int = 2
    features: float = 1.0
    guidance: tuple[float, float] = (1.0, 3.0)
    temperature: tuple[float, float] = (0.5, 1.0)

    def __post_init__(self) -> None:
        if self.model:
            raise ValueError(
                f"{self.name}: model must be left out, a draft head has the sizes of its "
                f"generator, got {self.model}"
            )
        if self.depth < 1:
            raise ValueError(f"{self.name}: depth must be at least 1, got {self.depth}")
        for option, least, rule in (
            ("guidance", 0.0, "at least 0"),
            ("temperature", 0.1, "at least 0.1"),
        ):
            low, high = getattr(self, option)
            if not least <= low <= high:
                raise ValueError(
                    f"{self.name}: {option} must be a range from low to high, {rule}, "
                    f"got {[low, high]}"
                )


@dataclass(frozen=True)
class DenoisingRecipe(Recipe):
    """What makes a trained generator read noisy embeddings; `model` holds options of the denoiser.

    Attributes:
        base: name of the generator's recipe; its finished run lies beside this one's. Its data,
            captions and sampling defaults are used again.
        longest: most ranks of a run of noisy embeddings, at least 1.
    """

    base: str = ""
    longest: int = 32

    def __post_init__(self) -> None:
        if self.longest < 1:
            raise ValueError(f"longest must be at least 1, got {self.longest}")


KINDS: dict[str, type[Recipe]] = {
    "tokenizer": TokenizerRecipe,
    "generator": GeneratorRecipe,
    "draft": DraftRecipe,
    "denoising": DenoisingRecipe,
}


def check_options(options: dict[str, Any], function: Callable[..., Any], where: str) -> None:
    """Raises ValueError when a table has a key that is not a parameter of `function`."""
    known = inspect.signature(function).parameters
    for key in options:
        if key not in known:
            raise ValueError(f"{where}: unknown key {key!r}; known keys are {', '.join(known)}")
