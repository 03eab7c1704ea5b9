"""Toys draw what they always drew, token for token; `.ci/same_drawings` asks the bundled models.

The fixture was drawn before tokens, casts and layouts had contracts of their own. No rounding of a
machine enters: the toys' laws are far from ties.
"""

import json
from pathlib import Path

import pytest
import torch

from visual_ar import accel
from visual_ar.cast import Cast
from visual_ar.sampling import Sampling
from visual_ar.testing import (
    ToyBitModel,
    ToyTokenModel,
    decode_all,
    random_draft_head,
    sequence_index,
)

FIXTURE = json.loads((Path(__file__).parent / "fixtures" / "toy_drawings.json").read_text())


def cast(toy: str) -> Cast:
    """The toy of a row, with a draft head where it can have one."""
    sizes = {"grid": (3, 4), "prefix_length": 2, "hidden_size": 8}
    if toy == "bits":
        model = ToyBitModel(3, seed=2, **sizes)
        return Cast(model, model.layout((3, 4)))
    model = ToyTokenModel(5, seed=1, **sizes)
    return Cast(model, model.layout((3, 4)), draft_head=random_draft_head(model))


def name(row: dict) -> str:
    """Of a row, for a report."""
    options = ",".join(f"{key}={value}" for key, value in row["options"].items())
    return f"{row['toy']}-{row['method']}:{options}-{row['guidance']}"


@pytest.mark.parametrize("row", FIXTURE, ids=name)
def test_toys_draw_what_they_drew(row):
    ours, method = cast(row["toy"]), accel.method(row["method"])(**row["options"])
    sampling = Sampling.create([5, 6], row["guidance"], 0.9)
    condition = ours.model.condition([0, 1], row["guidance"] != 1)
    tokens, committed = decode_all(method, ours, condition, sampling)
    if tokens.dtype == torch.bool:
        tokens = torch.stack([sequence_index(tokens[:, n : n + 1], 8) for n in range(12)], 1)
    assert ["".join(map(str, picture)) for picture in tokens.tolist()] == row["tokens"]
    assert (committed > 0).sum(0).tolist() == row["passes"]
