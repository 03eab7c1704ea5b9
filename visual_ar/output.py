"""What drawing pictures gives back: the pictures, their tokens, and statistics from the passes.

Knows requests, layouts and steps; knows nothing about how pictures are decoded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from visual_ar.accel.loop.contract import Decoding
from visual_ar.accel.loop.state import Step
from visual_ar.cast import Cast
from visual_ar.layout import Layout
from visual_ar.request import Request
from visual_ar.tokens.kind import TokenKind

UNKNOWN = -1
"""Entry of the acceptance map of a cell that was not drawn."""


@dataclass(frozen=True)
class Stats:
    """How a batch of B pictures of N tokens was drawn.

    Attributes:
        method: class of the decoding method.
        options: its options.
        lossless: whether the output law is exactly that of next-token sampling.
        window: ranks that a pass predicted.
        seeds: one a picture.
        guided: whether a pass ran an unconditional row beside every conditional one.
        passes: one a picture, passes up to its last token; the prefill is not counted.
        prefill_passes: 1 when the prefix had a pass of its own, else 0.
        committed_tokens: of all pictures together.
        mean_accepted_length: tokens a pass commits, the one drawn anew included.
        accepted_lengths: accepted length -> passes of a picture that committed so many.
        head_evaluations: evaluations of the model's head, summed over the pictures.
        draft_evaluations: steps of a draft head, summed over the pictures; 0 without one.
        total_variation: what a lossy rule spent on a token on average, see `accel.rules`; None
            when lossless.
        step_compression: tokens of a picture over passes of the batch, whose slowest picture
            counts; sequential decoding has 1.
        acceptance_map: int64 [B, *grid], index of the pass that accepted the cell; -1 for none.
        seconds: by stage: "condition" (with the encoding of a picture to complete), "window" (the
            choice of a window, which measures once per device), "decode" (with the prefill) and
            "detokenise".
        interrupted: whether the drawing was stopped before every token was known.
    """

    method: str
    options: dict[str, Any]
    lossless: bool
    window: int
    seeds: list[int]
    guided: bool
    passes: list[int]
    prefill_passes: int
    committed_tokens: int
    mean_accepted_length: float
    accepted_lengths: dict[int, int]
    head_evaluations: int
    draft_evaluations: int
    total_variation: float | None
    step_compression: float
    acceptance_map: Tensor
    seconds: dict[str, float]
    interrupted: bool

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data that JSON can hold."""
        plain = {key: value for key, value in vars(self).items() if key != "acceptance_map"}
        lengths = {str(length): count for length, count in self.accepted_lengths.items()}
        rest = {"accepted_lengths": lengths, "acceptance_map": self.acceptance_map.tolist()}
        return {**plain, **rest}


@dataclass
class VisualAROutput(BaseOutput):
    """Result of a pipeline call for B pictures.

    Attributes:
        images: list of PIL pictures ("pil"), float array [B, H, W, 3] in [0, 1] ("np"), float
            tensor [B, 3, H, W] in [0, 1] ("pt"), code vectors [B, C, *grid] ("latent"), or the
            tokens ("tokens"). None where there are frames.
        tokens: [B, N, *] in raster order of the cells, blank where an interrupted call drew none:
            codes int64, -1 there; bits bool [B, N, d], False there.
        stats: how they were drawn.
        frames: of clips, as diffusers' video pipelines give them: a list of lists of PIL pictures
            ("pil"), float array [B, T, H, W, 3] ("np") or tensor [B, T, 3, H, W] ("pt") in [0, 1].
            None for pictures.
    """

    images: Any
    tokens: Tensor
    stats: Stats
    frames: Any = None


@dataclass(frozen=True)
class Tally:
    """What has to be remembered of the passes so far; a new one is made after every pass.

    Attributes:
        waited: int64 [B, N], passes that ended before the rank was known, in decode order.
        known: bool [B, N], in decode order.
        done: bool [B], pictures that are complete.
        passes: made for the batch.
        head_evaluations: summed over the pictures.
        draft_evaluations: summed over the pictures.
        spent: fp32 [], total variation spent so far; None when lossless.
    """

    waited: Tensor
    known: Tensor
    done: Tensor
    passes: int = 0
    head_evaluations: int = 0
    draft_evaluations: int = 0
    spent: Tensor | None = None

    @classmethod
    def start(cls, batch: int, layout: Layout, device: torch.device) -> Tally:
        """Nothing is known yet of `batch` pictures."""
        waited = torch.zeros(batch, layout.length, dtype=torch.int64, device=device)
        known = torch.zeros_like(waited, dtype=torch.bool)
        return cls(waited, known, torch.zeros_like(known[:, 0]))

    def after(self, step: Step) -> Tally:
        """The tally with one more pass. Reads nothing on the host."""
        spent = self.spent
        if step.spent is not None:
            spent = step.spent.sum() if spent is None else spent + step.spent.sum()
        return Tally(
            waited=self.waited + ~step.known,
            known=step.known,
            done=step.done,
            passes=self.passes + 1,
            head_evaluations=self.head_evaluations + step.head_evaluations,
            draft_evaluations=self.draft_evaluations + step.draft_evaluations,
            spent=spent,
        )

    def acceptance(self) -> Tensor:
        """int64 [B, N] on the host, in decode order: the pass that accepted the rank, or -1."""
        return self.waited.masked_fill(~self.known, UNKNOWN).cpu()


@dataclass(frozen=True)
class Run:
    """What is fixed for all passes of a call; turns tallies into `Stats`.

    Attributes:
        method: class of the decoding method.
        options: its options.
        lossless: as the method says.
        window: ranks that a pass predicts.
        seeds: one a picture.
        guided: whether there are unconditional rows.
        prefill_passes: 1 when the prefix has a pass of its own.
        layout: the decode order.
        kind: of the tokens.
    """

    method: str
    options: dict[str, Any]
    lossless: bool
    window: int
    seeds: list[int]
    guided: bool
    prefill_passes: int
    layout: Layout
    kind: TokenKind

    @classmethod
    def of(cls, method: Decoding, cast: Cast, request: Request, window: int) -> Run:
        """What is fixed when a method draws a request with a window."""
        return cls(
            method=type(method).__name__,
            options={k: v for k, v in method.config.items() if not k.startswith("_")},
            lossless=method.lossless,
            window=window,
            seeds=request.seeds,
            guided=request.guided,
            prefill_passes=int(cast.prefix > 1),
            layout=request.layout,
            kind=cast.model.tokens,
        )

    def stats(self, tally: Tally, seconds: dict[str, float]) -> Stats:
        """Statistics up to a tally. seconds: by stage. Waits for the device."""
        everything = tally.acceptance()
        accepted = everything[:, ~self.layout.fixed.cpu()]  # what passes drew
        finished = tally.done.cpu()
        # Passes after a picture's last token belong to slower pictures of the batch.
        last = accepted.amax(1) + 1
        passes = torch.where(finished, last, tally.passes).tolist()
        runs = [torch.bincount(row[row != UNKNOWN]) for row in accepted]
        lengths = Counter(length for run in runs for length in run.tolist() if length > 0)
        committed = int((accepted != UNKNOWN).sum())
        return Stats(
            **{key: value for key, value in vars(self).items() if key not in ("layout", "kind")},
            passes=passes,
            committed_tokens=committed,
            mean_accepted_length=committed / max(sum(passes), 1),
            accepted_lengths={length: lengths[length] for length in sorted(lengths)},
            head_evaluations=tally.head_evaluations,
            draft_evaluations=tally.draft_evaluations,
            total_variation=None if tally.spent is None else float(tally.spent) / max(committed, 1),
            step_compression=committed / len(accepted) / max(*passes, 1),
            acceptance_map=self.layout.cells(everything).unflatten(1, self.layout.grid),
            seconds=dict(seconds),
            interrupted=not bool(finished.all()),
        )


@dataclass(frozen=True)
class Preview:
    """The state of a batch of B pictures after one pass. Nothing is computed until it is asked for.

    Attributes:
        run: what is fixed for all passes.
        result: of the pass, in decode order.
        tally: up to the pass.
        committed: tokens settled in all pictures together; on a GPU as of the pass before.
        seconds: by stage so far.
        draw: turns tokens and known cells into pictures of an output type.
    """

    run: Run
    result: Step
    tally: Tally
    committed: int
    seconds: dict[str, float] = field(repr=False)
    draw: Callable[[Tensor, Tensor, str | None], Any] = field(repr=False)

    @property
    def step(self) -> int:
        """Index of the pass, from 0."""
        return self.tally.passes - 1

    @property
    def fraction(self) -> float:
        """Share of the tokens that no later pass changes, in [0, 1]."""
        return self.committed / self.tally.known.numel()

    @property
    def known(self) -> Tensor:
        """bool [B, N] in raster order: the cells that are final."""
        return self.run.layout.cells(self.result.known)

    @property
    def tokens(self) -> Tensor:
        """[B, N, *] in raster order, blank where not known, see `VisualAROutput.tokens`."""
        return self.run.kind.hidden(self.run.layout.cells(self.result.tokens), self.known)

    @property
    def stats(self) -> Stats:
        """Statistics up to this pass. Waits for the device."""
        return self.run.stats(self.tally, self.seconds)

    def images(self, output_type: str | None = None) -> Any:
        """Draws the pictures, cells that are not known with the mean code.

        Args:
            output_type: as of the pipeline call; None is what was given there.

        Returns:
            what `VisualAROutput.images` says.

        Raises:
            ValueError: unknown output type.
        """
        return self.draw(self.tokens, self.known, output_type)


class Stopwatch:
    """Adds up seconds by stage; on a GPU it waits at the borders of a stage when told to."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, wait: bool = True) -> Iterator[None]:
        """Times a block. wait: whether the device has to finish what it was given."""
        if wait:
            self._wait()
        start = perf_counter()
        yield
        if wait:
            self._wait()
        self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
