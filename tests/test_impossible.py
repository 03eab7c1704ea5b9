"""Logits of minus infinity under guidance: what is ruled out is never drawn, the rest is exact."""

import pytest
import torch
from diffusers.configuration_utils import register_to_config

from visual_ar.accel.exact_match import ExactMatchJacobiDecoding
from visual_ar.accel.groups import GroupDecoding
from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.accel.sequential import SequentialDecoding
from visual_ar.accel.tree_decoding import TreeDecoding
from visual_ar.cast import Cast
from visual_ar.sampling import Sampling, guide
from visual_ar.testing import (
    ToyBitModel,
    ToyTokenModel,
    chi_square,
    decode_all,
    enumerate_law,
    sequence_index,
)

PICTURES = 4_000
INF = float("inf")
METHODS = {
    "sequential": SequentialDecoding(),
    "groups of one": GroupDecoding(),
    "exact-match": ExactMatchJacobiDecoding(window=3, init="uniform"),
    "maximal": SpeculativeJacobiDecoding(window=3),
    "gumbel": SpeculativeJacobiDecoding(window=3, coupling="gumbel"),
    "tree": TreeDecoding(window=3, tree="2"),
}


class Forbidding(ToyTokenModel):
    """A toy that rules out token 0 at even ranks, as models of several token kinds do."""

    @register_to_config
    def __init__(self, vocab_size: int = 3, grid: tuple[int, ...] = (5,), seed: int = 0) -> None:
        super(ToyTokenModel, self).__init__()
        self.register_to_config(prefix_length=1, hidden_size=6, sharpness=1.5, order="raster")
        self._build(vocab_size)

    def predict(self, hidden, ranks, present=None):
        logits = super().predict(hidden, ranks, present)
        logits[..., 0] = torch.where(ranks % 2 == 0, -torch.inf, logits[..., 0])
        return logits


class CertainBits(ToyBitModel):
    """A toy whose first bit is never set at even ranks."""

    @register_to_config
    def __init__(self, bits: int = 2, grid: tuple[int, ...] = (4,), seed: int = 0) -> None:
        super(ToyTokenModel, self).__init__()
        self.register_to_config(prefix_length=1, hidden_size=6, sharpness=1.5, order="raster")
        self._build(bits)

    def predict(self, hidden, ranks, present=None):
        log_odds = super().predict(hidden, ranks, present)
        log_odds[..., 0] = torch.where(ranks % 2 == 0, -torch.inf, log_odds[..., 0])
        return log_odds


@pytest.mark.parametrize("toy", [Forbidding, CertainBits])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_ruled_out_is_never_drawn(method, toy):
    """Half of a guided batch has guidance 1, which asks the conditional row alone."""
    if toy is CertainBits and method == "tree":
        pytest.skip("trees need a table of all tokens")
    model, half = toy(seed=2), PICTURES // 2
    scales = [1.0, 2.0]
    parts = [
        Sampling.create(list(range(k * half, (k + 1) * half)), guidance=scale)
        for k, scale in enumerate(scales)
    ]
    sampling = Sampling(*(torch.cat(fields) for fields in zip(*parts, strict=True)))
    cast = Cast(model, model.layout(model.config.grid))
    condition = model.condition([0] * PICTURES, True)
    tokens, _ = decode_all(METHODS[method], cast, condition, sampling)
    for k, scale in enumerate(scales):
        law = enumerate_law(model, 0, Sampling.create([0], guidance=scale))
        assert float(law.sum()) == pytest.approx(1.0, abs=1e-5)
        mine = sequence_index(tokens[k * half : (k + 1) * half], model.vocab_size)
        assert chi_square(mine, law) > 1e-4  # 0 where something impossible was drawn


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize(
    ("conditional", "unconditional"),
    [(-INF, -INF), (-INF, 1.0), (1.0, -INF), (INF, INF), (INF, 1.0), (-INF, INF), (INF, -INF)],
)
def test_guidance_of_what_is_certain_is_certain(conditional, unconditional, scale):
    both = (torch.tensor([[[x, 0.5]]]) for x in (conditional, unconditional))
    guided = guide(*both, torch.tensor([[scale]]))
    assert not bool(guided.isnan().any())
    sure = conditional if abs(conditional) == INF or scale == 1 else unconditional
    assert guided[0, 0].tolist() == [sure, 0.5]
