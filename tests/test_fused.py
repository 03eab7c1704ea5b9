"""Methods that leave their share of a pass to the operator draw the same pictures as without it.

On a CPU the operator is the torch reference, so that the wiring is tested where there is no GPU:
options, random numbers, forced tokens, tables, and laws that go to the next pass.
"""

from types import SimpleNamespace

import pytest
import torch

from visual_ar.accel.exact_match import ExactMatchJacobiDecoding
from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.accel.kernels import dispatch
from visual_ar.accel.sequential import SequentialDecoding
from visual_ar.cast import Cast
from visual_ar.sampling import Sampling
from visual_ar.testing import ToyTokenModel

PICTURES, CODES, GRID = 6, 5, (3, 5)
METHODS = {
    "sequential": SequentialDecoding,
    "exact-match": lambda: ExactMatchJacobiDecoding(window=4),
    **{
        f"{coupling} {rule}": lambda coupling=coupling, rule=rule: SpeculativeJacobiDecoding(
            4, coupling, rule=rule
        )
        for coupling in ("independent", "maximal", "gumbel")
        for rule in ("exact", "lantern/neighbours=2/delta=0.4")
    },
    "typical": lambda: SpeculativeJacobiDecoding(4, "maximal", rule="typical"),
    "omega": lambda: SpeculativeJacobiDecoding(4, "maximal", rule="omega/omega=1.4"),
    "grouped": lambda: SpeculativeJacobiDecoding(4, "maximal", rule="grouped/size=2/gap=0.3"),
    "above-law": lambda: SpeculativeJacobiDecoding(4, init="above-law"),
    "one rank": lambda: SpeculativeJacobiDecoding(1),
    "measured": lambda: SpeculativeJacobiDecoding(4, rule="omega", measure_tv=True),
}


def draw(method, guided=True):
    """Every step of a decode, as (tokens, committed, spent)."""
    model = ToyTokenModel(CODES, GRID, seed=4)
    layout = model.layout(GRID)
    layout.forced[6] = 1
    sampling = Sampling.create(list(range(PICTURES)), 1.6 if guided else 1.0, 0.9)
    sampling.top_k[::2], sampling.top_p[1:] = 3, 0.9
    generator = torch.Generator().manual_seed(0)
    vectors = 0.4 * torch.rand(CODES, 3, generator=generator)
    nearest = torch.cdist(vectors, vectors).argsort(-1)[:, 1:]
    tokenizer = SimpleNamespace(
        codebook_size=CODES, neighbours=lambda k: nearest[:, :k], code_vectors=lambda: vectors
    )
    condition = model.condition([0, 1] * (PICTURES // 2), guided)
    steps = method.decode(Cast(model, layout, tokenizer), condition, sampling)
    return [(step.tokens * step.known, step.committed, step.spent) for step in steps]


@pytest.mark.parametrize("name", METHODS)
def test_the_operator_gives_the_same_pictures(monkeypatch, name):
    expected = draw(METHODS[name]())
    asked = []
    verify = dispatch.verify
    monkeypatch.setattr(dispatch, "verify", lambda *a, **k: asked.append(1) or verify(*a, **k))
    method = METHODS[name]()
    monkeypatch.setattr(type(method), "fuses", lambda self, device: True)
    found = draw(method)
    assert len(asked) == len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine[0], theirs[0]) and torch.equal(mine[1], theirs[1])
        assert (mine[2] is None) == (theirs[2] is None)
        if mine[2] is not None:
            torch.testing.assert_close(mine[2], theirs[2])


def test_without_guidance(monkeypatch):
    expected = draw(SpeculativeJacobiDecoding(4), guided=False)
    monkeypatch.setattr(SpeculativeJacobiDecoding, "fuses", lambda self, device: True)
    found = draw(SpeculativeJacobiDecoding(4), guided=False)
    assert torch.equal(found[-1][0], expected[-1][0])


def test_the_kernel_serves_the_rules_it_has(monkeypatch):
    device = torch.device("cpu")
    methods = [SequentialDecoding(), ExactMatchJacobiDecoding(), SpeculativeJacobiDecoding()]
    assert not any(method.fuses(device) for method in methods)
    monkeypatch.setattr(dispatch, "choose", lambda device: dispatch.Choice("cuda", ""))
    assert all(method.fuses(device) for method in methods)
    assert not SpeculativeJacobiDecoding(coupling="independent", rule="block").fuses(device)
    model = ToyTokenModel(CODES, GRID)
    state = SequentialDecoding().init(Cast(model, model.layout(GRID)), 1)
    assert state.fused and state.noise is None  # the kernel makes its own
