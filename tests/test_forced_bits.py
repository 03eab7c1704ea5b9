"""Bits forced one by one: the law of the rest is exact, whatever method, draft, rule or head."""

import itertools

import pytest
import torch
from diffusers import SchedulerMixin  # noqa: F401
from torch import Tensor

from visual_ar.accel.exact_match import ExactMatchJacobiDecoding
from visual_ar.accel.groups import GroupDecoding
from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.accel.loop.contract import Decoding
from visual_ar.accel.sequential import SequentialDecoding
from visual_ar.cast import Cast
from visual_ar.models.bitwise import SubcodeLlamaGen
from visual_ar.sampling import Sampling
from visual_ar.testing import (
    ToyBitModel,
    chi_square,
    decode_all,
    enumerate_law,
    sequence_index,
)

ALARM, DETECTED = 1e-4, 1e-9
PICTURES = 6_000
LAYOUTS = {
    "second bit": [[-1, 1], [-1, -1]],
    "first bit": [[0, -1], [-1, -1]],
    "some of each": [[-1, 0], [1, -1], [-1, -1], [0, 1]],
}
INITS = ("uniform", "random", "left", "above", "left-law", "above-law")
METHODS: dict[str, Decoding] = {
    "sequential": SequentialDecoding(),
    "groups of one": GroupDecoding(),
    "exact-match": ExactMatchJacobiDecoding(window=2, init="uniform"),
    "exact-match left": ExactMatchJacobiDecoding(window=2, init="left"),
    **{f"jacobi {init}": SpeculativeJacobiDecoding(2, init=init) for init in INITS},
    **{
        f"{rule} {coupling}": SpeculativeJacobiDecoding(3, coupling, "uniform", rule)
        for rule in ("exact", "bitwise")
        for coupling in ("maximal", "independent", "gumbel")
    },
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("method", METHODS)
def test_the_law_of_the_free_bits_is_exact(method: str, name: str) -> None:
    forced = torch.tensor(LAYOUTS[name])
    model = ToyBitModel(2, (len(forced),), seed=len(name))
    layout = model.layout((len(forced),)).with_forced(forced.expand(PICTURES, -1, -1))
    condition = model.condition([0] * PICTURES, True)
    sampling = Sampling.create(list(range(PICTURES)), guidance=1.5)
    tokens, _ = decode_all(METHODS[method], Cast(model, layout), condition, sampling)
    law = enumerate_law(model, 0, Sampling.create([0], guidance=1.5), forced)
    assert float(law.sum()) == pytest.approx(1.0, abs=1e-5)
    assert chi_square(sequence_index(tokens, 4), law) > ALARM


BITS = 4  # of a token, in two sub-codes


def subcodes() -> SubcodeLlamaGen:
    """Two tokens of four bits, with a head whose sub-codes depend on each other."""
    torch.manual_seed(0)
    sizes = {"dim": 16, "n_layer": 1, "n_head": 2, "ffn_dim": 24, "num_classes": 3}
    model = SubcodeLlamaGen(bits=BITS, subcodes=2, grid_size=2, **sizes)
    for parameter in model.output.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    return model.eval()


@torch.inference_mode()
def law_of_subcodes(model: SubcodeLlamaGen, every: Tensor, forced: Tensor) -> Tensor:
    """Probability of token vectors: every sub-code's softmax over the values that agree.

    Args:
        model: of `BITS` bits.
        every: bool [S, N, d], pictures.
        forced: int64 [N, d].

    Returns:
        fp64 [S].
    """
    condition = model.condition(torch.zeros(len(every), dtype=torch.int64), guided=False)
    hidden, width = model.features(every, condition), BITS // 2
    values = torch.tensor([[v >> place & 1 for place in range(width)] for v in range(2**width)])
    total = torch.ones(len(every), dtype=torch.float64)
    for number in range(2):
        earlier = model.split(every)[..., :number]
        own = forced[:, number * width : (number + 1) * width]
        agrees = ((own[:, None] < 0) | (own[:, None] == values)).all(-1)  # [N, 2^w]
        logits = model.output(hidden, earlier).double().masked_fill(~agrees, -torch.inf)
        chosen = model.split(every)[..., number, None]
        total = total * logits.softmax(-1).gather(-1, chosen)[..., 0].prod(-1)
    return total


SUBCODES = {
    "second bits": [[-1, 1, -1, 0], [-1, -1, -1, -1]],
    "some of each": [[0, -1, -1, 1], [-1, 1, 1, 0]],
}


@pytest.mark.parametrize("name", SUBCODES)
@pytest.mark.parametrize("method", METHODS)
def test_the_law_of_sub_codes_is_exact(method: str, name: str) -> None:
    """The first two cells; the others are forced whole, so that all pictures can be enumerated."""
    model = subcodes()
    given = torch.tensor([[1, 0, 0, 1], [0, 0, 1, 1]])
    forced = torch.cat([torch.tensor(SUBCODES[name]), given])
    pairs = torch.tensor(list(itertools.product((False, True), repeat=2 * BITS)))
    every = torch.cat([pairs.view(-1, 2, BITS), given.bool().expand(len(pairs), -1, -1)], 1)
    exact = law_of_subcodes(model, every, forced)
    assert float(exact.sum()) == pytest.approx(1.0, abs=1e-5)
    layout = model.layout((2, 2)).with_forced(forced.expand(PICTURES, -1, -1))
    condition = model.condition(torch.zeros(PICTURES, dtype=torch.int64), guided=False)
    sampling = Sampling.create(list(range(PICTURES)))
    tokens, _ = decode_all(METHODS[method], Cast(model, layout), condition, sampling)
    places = torch.arange(2 * BITS - 1, -1, -1)
    index = (tokens[:, :2].flatten(1).long() << places).sum(1)
    assert chi_square(index, exact) > ALARM
    assert torch.equal(tokens[:, 2:], given.bool().expand(PICTURES, -1, -1))


def test_a_draft_recorded_as_uniform_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: only a token's first bit is asked, so a later forced bit counts as drawn."""
    from visual_ar.accel.drafts import initialise

    honest = initialise.first_drafts

    def first_bit_only(init, state, history, ranks, newest, u):
        tokens, q = honest(init, state, history, ranks, newest, u)
        forced = state.forced_at(ranks)
        late = (forced >= 0) & (forced[..., :1] < 0)
        return tokens, torch.where(late, 0.0, q.expand(*ranks.shape, -1))

    monkeypatch.setattr("visual_ar.accel.jacobi.first_drafts", first_bit_only)
    forced = torch.tensor(LAYOUTS["second bit"])
    model = ToyBitModel(2, (2,), seed=1)
    layout = model.layout((2,)).with_forced(forced.expand(20_000, -1, -1))
    condition, sampling = model.condition([0] * 20_000, False), Sampling.create(list(range(20_000)))
    method = SpeculativeJacobiDecoding(2)
    tokens, _ = decode_all(method, Cast(model, layout), condition, sampling)
    law = enumerate_law(model, 0, Sampling.create([0]), forced)
    assert chi_square(sequence_index(tokens, 4), law) < DETECTED
