"""Known mistakes of speculative sampling: the tests of exactness must reject each of them."""

import pytest
import torch
from diffusers import SchedulerMixin  # noqa: F401
from diffusers.configuration_utils import register_to_config
from exactness import ALARM, DETECTED, Case, run

from visual_ar.accel.denoising import SpeculativeDenoisingDecoding
from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.accel.loop.chain import PassNumbers
from visual_ar.accel.rules.parse import parse_rule
from visual_ar.accel.rules.rule import redraw
from visual_ar.sampling import uniforms
from visual_ar.tokens import codes
from visual_ar.tokens.codes import CategoricalLaw
from visual_ar.tokens.law import Redrawn

EXACT = parse_rule("exact")


def nothing(q: CategoricalLaw) -> CategoricalLaw:
    """Laws without mass, so that the residual is the target itself."""
    return CategoricalLaw(probabilities=torch.zeros_like(q.probabilities))


class StaleLaw(SpeculativeJacobiDecoding):
    """Mutant: a kept tail draft keeps the law of the pass it was first drawn in."""

    @register_to_config
    def __init__(self) -> None:
        super().__init__(window=3, coupling="maximal")

    def _shift(self, state, p, first, newest, u):
        buffers = state.method
        old = buffers.q.clone()
        super()._shift(state, p, first, newest, u)
        row = (state.length - first)[:, None] + torch.arange(2)
        carried = old[torch.arange(len(old))[:, None], row.clamp(max=1)]
        kept = (row < 2) & (buffers.q.gather(-1, self._token(state))[..., 0] > 0)
        buffers.q = torch.where(kept[..., None], carried, buffers.q)

    def _token(self, state):
        return state.tokens.gather(1, state.length[:, None] + torch.arange(2))[..., None]


class ResidualFromTarget(SpeculativeJacobiDecoding):
    """Mutant: after a rejection the token is drawn from p instead of norm((p - q)+)."""

    @register_to_config
    def __init__(self) -> None:
        super().__init__(window=3, coupling="independent", init="left-law")

    def _judge(self, state, p, q, drafts, ranks, numbers):
        run, _ = super()._judge(state, p, q, drafts, ranks, numbers)
        return run, redraw(EXACT, p, nothing(q), drafts, run, numbers, p.draw(numbers.fresh))


class ResidualWarpedTwice(SpeculativeJacobiDecoding):
    """Mutant: temperature is applied to the residual once more."""

    @register_to_config
    def __init__(self) -> None:
        super().__init__(window=3, coupling="independent", init="left-law")

    def _judge(self, state, p, q, drafts, ranks, numbers):
        run, tail = super()._judge(state, p, q, drafts, ranks, numbers)
        rest = (p.first(2).probabilities - q.probabilities).clamp(min=0)
        again = rest ** (1 / state.temperature[:, None, None])
        again = again / again.sum(-1, keepdim=True).clamp(min=1e-9)
        shaped = CategoricalLaw(probabilities=torch.cat([again, p.last().probabilities], 1))
        fresh = shaped.draw(numbers.fresh)
        corrected = redraw(EXACT, shaped, nothing(q), drafts, run, numbers, fresh)
        here = torch.arange(3) == run[:, None]
        return run, Redrawn(torch.where(here, corrected.tokens, tail.tokens))


class GreedyDraftScoredAsSample(SpeculativeJacobiDecoding):
    """Mutant: drafts are the most likely tokens, but tested as if drawn from the law."""

    @register_to_config
    def __init__(self) -> None:
        super().__init__(window=3, coupling="independent")

    def _shift(self, state, p, first, newest, u):
        super()._shift(state, p, first, newest, u)
        ranks = state.length[:, None] + torch.arange(2)
        state.tokens.scatter_(1, ranks, state.method.q.argmax(-1))


class SlowestRowLeads(SpeculativeJacobiDecoding):
    """Mutant: pairs advance by their minimum; accepted tokens are tested again under the old q."""

    @register_to_config
    def __init__(self) -> None:
        super().__init__(window=3, coupling="independent", init="left-law")

    def _judge(self, state, p, q, drafts, ranks, numbers):
        self.accepted, redrawn = super()._judge(state, p, q, drafts, ranks, numbers)
        return self.accepted.view(-1, 2).amin(1).repeat_interleave(2), redrawn

    def _shift(self, state, p, first, newest, u):
        buffers = state.method
        old = buffers.q.clone()
        super()._shift(state, p, first, newest, u)
        row = (state.length - first)[:, None] + torch.arange(2)
        carried = old[torch.arange(len(old))[:, None], row.clamp(max=1)]
        again = row < self.accepted[:, None]
        buffers.q = torch.where(again[..., None], carried, buffers.q)


class BlockWithKeptDrafts(SpeculativeJacobiDecoding):
    """Mutant: block verification of drafts that a coupling has kept over several passes."""

    @register_to_config
    def __init__(self) -> None:
        super().__init__(window=4, coupling="independent", init="left-law", rule="block")
        self.register_to_config(coupling="maximal")


class NoisySlotsVerified(SpeculativeDenoisingDecoding):
    """Mutant: drafts are kept though they, and what follows them, were computed from noise."""

    @register_to_config
    def __init__(self) -> None:
        super().__init__(window=4, steps=4, clean=1)

    def _tested(self, state, passes, ranks):
        return passes


class NoisyDraftKeepsFirstLaw(SpeculativeDenoisingDecoding):
    """Mutant: q of a draft is the law of the pass before, not the one it was last drawn from."""

    @register_to_config
    def __init__(self) -> None:
        super().__init__(window=4, steps=2, clean=1)

    def _shift(self, state, p, first, newest, u):
        old = state.method.q.clone()
        super()._shift(state, p, first, newest, u)
        row = (state.length - first)[:, None] + torch.arange(3)
        stale = old[torch.arange(len(old))[:, None], row.clamp(max=2)]
        tokens = state.tokens.gather(1, state.length[:, None] + torch.arange(3))
        possible = stale.gather(-1, tokens[..., None]) > 0
        state.method.q = torch.where((row < 3)[..., None] & possible, stale, state.method.q)


MUTANTS = {
    "stale law": (StaleLaw, Case(seed=1)),
    "residual from p": (ResidualFromTarget, Case(seed=1)),
    "residual warped twice": (ResidualWarpedTwice, Case(temperature=0.5, seed=1)),
    "greedy draft": (GreedyDraftScoredAsSample, Case(seed=1)),
    "slowest row leads": (SlowestRowLeads, Case(seed=1)),
    "noisy slots verified": (NoisySlotsVerified, Case(seed=1)),
    "noisy draft's first law": (NoisyDraftKeepsFirstLaw, Case(seed=1)),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_known_mistakes_are_detected(name):
    mutant, case = MUTANTS[name]
    assert run(mutant(), case, pictures=60_000) < DETECTED


def test_block_verification_of_kept_drafts_is_detected():
    """Its bias is small, so it takes a short sequence and many pictures to see."""
    case = Case(seed=1, vocabulary=3, grid=(4,))
    assert run(BlockWithKeptDrafts(), case, pictures=300_000) < DETECTED
    fresh = SpeculativeJacobiDecoding(4, "independent", "left-law", rule="block")
    assert run(fresh, case, pictures=300_000) > ALARM


def test_group_acceptance_is_detected(monkeypatch):
    """Mutant: the test compares the mass of token pairs, as grouped acceptance does."""

    def grouped(p, q, drafts, u):
        """p, q: laws; drafts: int64 [B, K]; u: [B, K]."""
        other = (drafts + 1) % p.vocabulary
        return u * (q.prob(drafts) + q.prob(other)) < p.prob(drafts) + p.prob(other)

    monkeypatch.setattr(CategoricalLaw, "keep", grouped)
    method = SpeculativeJacobiDecoding(window=3, coupling="independent", init="left-law")
    assert run(method, Case(seed=1)) < DETECTED


def test_a_draft_that_sees_later_ranks_is_detected(monkeypatch):
    """Mutant: the uniform that drew a draft also decides whether it is kept."""
    true_numbers = PassNumbers.take

    def shared(numbers, state, offsets):
        taken = true_numbers(numbers, state, offsets)
        return taken._replace(test=taken.fresh)

    def forgetful(seed, ranks, attempt):
        """Uniform numbers that forget the attempt, so that a redraw repeats itself."""
        return uniforms(seed, ranks, torch.zeros_like(attempt))

    monkeypatch.setattr(PassNumbers, "take", shared)
    monkeypatch.setattr(codes, "uniforms", forgetful)
    method = SpeculativeJacobiDecoding(window=3, coupling="independent")
    assert run(method, Case(seed=1)) < DETECTED
