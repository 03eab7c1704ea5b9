"""Turns timed trials into numbers that a report can print; knows arithmetic, measures nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Trial(NamedTuple):
    """One batch of B pictures, drawn by one method.

    Attributes:
        condition: seconds to encode what the pictures are conditioned on.
        decode: seconds to prefill and to decode all tokens.
        detokenise: seconds from tokens to pixels.
        committed: int64 [passes, B], tokens committed by every pass.
        head_evaluations: evaluations of the model's head, summed over the pictures.
        tokens: int64 [B, N] or, of bits, bool [B, N, d], in decode order.
        peak_memory: bytes allocated on the device at most, None where that cannot be told.
        spent: total variation that a lossy rule spent, summed over all tokens; None if lossless.
        draft_evaluations: steps of a draft head, summed over the pictures.
    """

    condition: float
    decode: float
    detokenise: float
    committed: Tensor
    head_evaluations: int
    tokens: Tensor
    peak_memory: int | None
    spent: float | None = None
    draft_evaluations: int = 0

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return self.condition + self.decode + self.detokenise

    @property
    def pictures(self) -> int:
        """Number of pictures B."""
        return self.tokens.shape[0]

    @property
    def token_count(self) -> int:
        """Number of tokens B N; one of bits counts once, however many bits it has."""
        return self.tokens.shape[0] * self.tokens.shape[1]


Rounds = Sequence[Sequence[Trial]]
"""The trials of one method at one batch size, round by round."""

STAGES = ("condition", "decode", "detokenise", "total")


def summarise(rounds: Rounds, baseline: Rounds) -> dict[str, Any]:
    """What one method did at one batch size, beside what the baseline did in the same rounds.

    Args:
        rounds: the method's trials.
        baseline: the baseline's trials of the same pictures; both have the same shape.

    Returns:
        a JSON-able dictionary; seconds are of a batch, passes and evaluations of a picture.
    """
    trials = [trial for some in rounds for trial in some]
    pictures = sum(trial.pictures for trial in trials)
    passes = mean_passes(rounds)
    memory = [trial.peak_memory for trial in trials if trial.peak_memory is not None]
    seconds = {stage: spread([getattr(trial, stage) for trial in trials]) for stage in STAGES}
    return {
        "passes_per_picture": passes,
        "passes_per_batch": fmean(len(trial.committed) for trial in trials),
        "step_compression": mean_passes(baseline) / passes,
        "head_evaluations_per_picture": sum(t.head_evaluations for t in trials) / pictures,
        "draft_evaluations_per_picture": sum(t.draft_evaluations for t in trials) / pictures,
        "accepted_length": accepted_length(trials),
        "seconds": seconds,
        "pictures_per_second": trials[0].pictures / seconds["total"]["median"],
        "speedup": speedup(rounds, baseline, "total"),
        "decode_speedup": speedup(rounds, baseline, "decode"),
        "peak_memory_bytes": max(memory, default=None),
        "total_variation": total_variation(trials),
    }


def mean_passes(rounds: Rounds) -> float:
    """Passes of a picture on average; passes after its last token are not its own."""
    own = torch.cat([(trial.committed > 0).sum(0) for some in rounds for trial in some])
    return float(own.double().mean())


def accepted_length(trials: Sequence[Trial]) -> dict[str, Any]:
    """Tokens committed by a pass, the one drawn anew included: mean, and passes by length."""
    runs = torch.cat([trial.committed.flatten() for trial in trials])
    lengths = Counter(runs[runs > 0].tolist())
    passes = sum(lengths.values())
    return {
        "mean": sum(length * count for length, count in lengths.items()) / passes,
        "histogram": {str(length): lengths[length] for length in sorted(lengths)},
    }


def total_variation(trials: Sequence[Trial]) -> float | None:
    """What a lossy rule spent on a token on average, see `Rule.spent`; None if lossless."""
    spent = [trial.spent for trial in trials if trial.spent is not None]
    return sum(spent) / sum(trial.token_count for trial in trials) if spent else None


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 10th and 90th percentile."""
    low, middle, high = np.percentile(np.asarray(values, dtype=np.float64), [10, 50, 90])
    return {"median": float(middle), "p10": float(low), "p90": float(high)}


def speedup(rounds: Rounds, baseline: Rounds, stage: str) -> dict[str, float]:
    """Baseline's time over the method's, a ratio a round, so that both met the same machine."""

    def seconds(trials: Sequence[Trial]) -> float:
        return sum(getattr(trial, stage) for trial in trials)

    pairs = zip(rounds, baseline, strict=True)
    ratios = [seconds(theirs) / seconds(ours) for ours, theirs in pairs]
    return {"median": median(ratios), "min": min(ratios), "max": max(ratios)}


def identical(rounds: Rounds, baseline: Rounds) -> dict[str, float]:
    """Shares of tokens and of pictures that equal the baseline's with the same seeds."""
    equal = torch.cat(
        [
            _equal(ours.tokens, theirs.tokens)
            for some, others in zip(rounds, baseline, strict=True)
            for ours, theirs in zip(some, others, strict=True)
        ]
    )
    tokens = float(equal.double().mean())
    return {
        "pictures": float(equal.all(1).double().mean()),
        "tokens": tokens,
        "mismatch_rate": 1.0 - tokens,
    }


def _equal(ours: Tensor, theirs: Tensor) -> Tensor:
    """Which tokens are the same, all bits of a token together: bool [B, N]."""
    same = ours == theirs
    return same.all(-1) if same.dim() == 3 else same
