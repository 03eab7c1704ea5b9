"""How tests hold a method to the exact law of the toy: the cases, and the p value of a fit."""

from dataclasses import dataclass

import pytest
import torch

from visual_ar.accel.draft_head import DraftHeadDecoding
from visual_ar.accel.loop.contract import Decoding
from visual_ar.cast import Cast
from visual_ar.sampling import Sampling
from visual_ar.testing import (
    ToyTokenModel,
    chi_square,
    decode_all,
    enumerate_law,
    random_draft_head,
    sequence_index,
)

PICTURES = 24_000
ALARM = 1e-4
"""A correct method falls below this once in ten thousand tests; seeds are fixed, so never here."""
DETECTED = 1e-9


@dataclass(frozen=True)
class Case:
    """One corner of guidance x warping x prefix x forced, on a grid longer than three windows."""

    guidance: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    vocabulary: int = 3
    grid: tuple[int, ...] = (7,)
    prefix: int = 1
    forced: tuple[tuple[int, int], ...] = ()
    seed: int = 0


CASES = {
    "plain": Case(),
    "guided": Case(guidance=2.5, prefix=3),
    "temperature": Case(temperature=0.6, guidance=1.5, seed=1),
    "top-k": Case(top_k=2, guidance=1.5, seed=2),
    "top-p": Case(top_p=0.75, seed=3),
    "all warps": Case(guidance=1.7, temperature=1.3, top_k=2, top_p=0.9, prefix=2, seed=4),
    "forced": Case(guidance=1.5, forced=((0, 1), (3, 2), (6, 0)), seed=5),
    "grid": Case(vocabulary=2, grid=(3, 3), guidance=1.5, prefix=2, seed=6),
    "video": Case(vocabulary=2, grid=(2, 2, 2), seed=7),
}


def toy(method: Decoding, *arguments, **options) -> Cast:
    """A toy, and whoever the method needs beside it. Arguments: see `ToyTokenModel`."""
    headed = isinstance(method, DraftHeadDecoding) or method.config.get("drafter") == "head"
    size = {"hidden_size": 8} if headed else {}
    model = ToyTokenModel(*arguments, **size, **options)
    head = random_draft_head(model) if headed else None
    return Cast(model, model.layout(model.config.grid), draft_head=head)


def run(method: Decoding, case: Case, pictures: int = PICTURES) -> float:
    """Decodes the toy many times in one batch; p value of the fit to the enumerated law."""
    cast = toy(method, case.vocabulary, case.grid, case.prefix, seed=case.seed)
    model, options = cast.model, (case.guidance, case.temperature, case.top_k, case.top_p)
    forced = None
    if case.forced:
        forced = torch.full((cast.layout.length,), -1)
        for rank, token in case.forced:
            forced[rank] = token
        cast = cast.with_layout(cast.layout.with_forced(forced))
    sampling = Sampling.create(list(range(pictures)), *options)
    condition = model.condition([0] * pictures, guided=case.guidance != 1)
    tokens, _ = decode_all(method, cast, condition, sampling)
    law = enumerate_law(model, 0, Sampling.create([0], *options), forced)
    assert float(law.sum()) == pytest.approx(1.0, abs=1e-5)
    return chi_square(sequence_index(tokens, case.vocabulary), law)
