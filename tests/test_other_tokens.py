"""A kind of token that the library does not know, real numbers, runs without an edit in it."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from diffusers.configuration_utils import register_to_config
from scipy import stats
from torch import Tensor

from visual_ar.accel.exact_match import ExactMatchJacobiDecoding
from visual_ar.accel.groups import GroupDecoding
from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.accel.sequential import SequentialDecoding
from visual_ar.accel.tree_decoding import TreeDecoding
from visual_ar.cast import Cast
from visual_ar.layout import FREE
from visual_ar.sampling import Sampling, Warps, guide, normal_noise, take_rows, uniforms
from visual_ar.testing import ToyTokenModel, decode_all
from visual_ar.tokens.kind import TokenKind
from visual_ar.tokens.law import Law
from visual_ar.tokens.numbers import Numbers

SPREAD = 0.5


class NormalLaw(Law):
    """Normal laws of one deviation. mean: fp32 [B, Q]."""

    def __init__(self, mean: Tensor) -> None:
        self.mean = mean

    @property
    def features(self) -> Tensor:
        return self.mean[..., None]

    def draw(self, u: Tensor) -> Tensor:
        return self.mean + SPREAD * torch.special.ndtri(u)

    def draw_frozen(self, noise: Tensor) -> Tensor:
        return self.mean + SPREAD * noise

    def rows(self, index: Tensor) -> "NormalLaw":
        return NormalLaw(take_rows(self.features, index)[..., 0])

    def first(self, count: int) -> "NormalLaw":
        return NormalLaw(self.mean[:, :count])

    def last(self) -> "NormalLaw":
        return NormalLaw(self.mean[:, -1:])

    def with_forced(self, forced: Tensor) -> "NormalLaw":
        raise ValueError("nothing is forced here")


@dataclass(frozen=True)
class Reals(TokenKind):
    """Real numbers: fp32 [B, N]."""

    dtype: ClassVar[torch.dtype] = torch.float32

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    @property
    def name(self) -> str:
        return "real numbers"

    def law(
        self,
        conditional: Tensor,
        unconditional: Tensor | None,
        scale: Tensor,
        options: Sampling,
        warps: Warps,
    ) -> Law:
        mean = conditional
        if unconditional is not None:
            mean = guide(conditional, unconditional, scale)
        return NormalLaw(mean[..., 0])

    def flat_tokens(self, u: Tensor) -> Tensor:
        return torch.special.ndtri(u)

    def uniforms(self, seed: Tensor, ranks: Tensor, attempt: Tensor) -> Tensor:
        return uniforms(seed, ranks, attempt)

    def numbers(self, u: Tensor, seed: Tensor, ranks: Tensor, attempt: Tensor) -> Numbers:
        return Numbers(u[0], u[1], u[2], u[3], seed, ranks, attempt)

    def noise(self, seed: Tensor, ranks: Tensor) -> Tensor:
        return normal_noise(seed, ranks, 1)[..., 0]

    def forces(self, forced: Tensor) -> Tensor:
        return torch.zeros_like(forced, dtype=torch.bool)

    def check_forced(self, forced: Tensor, who: str) -> None:
        if forced.is_floating_point() or bool((forced != FREE).any()):
            raise ValueError(f"the layout must force nothing for {who}")


class RealToy(ToyTokenModel):
    """The toy with real numbers for tokens, and a mean for its head's output."""

    capabilities = frozenset({"trees"})

    @register_to_config
    def __init__(
        self, grid: tuple[int, ...] = (6,), order: str = "raster", prefix_length: int = 2
    ) -> None:
        super(ToyTokenModel, self).__init__()
        self.register_to_config(vocab_size=2, hidden_size=6, sharpness=1.5, seed=3, order=order)
        self._build(1)

    @property
    def tokens(self) -> Reals:
        return Reals()

    def embed(self, tokens: Tensor, ranks: Tensor) -> Tensor:
        return tokens[..., None] * self.contributions[self._position(ranks), 0]


def residuals(model: RealToy, tokens: Tensor, pictures: int, scale: float) -> Tensor:
    """What the tokens differ by from their means given the tokens before: [B, N], in deviations."""
    means = [
        model.logits(tokens, model.condition([label] * pictures, False))[..., 0] for label in (0, 2)
    ]
    return (tokens - torch.lerp(means[1], means[0], scale)) / SPREAD


@pytest.mark.parametrize(
    ("method", "sizes"),
    [
        (SequentialDecoding(), {"grid": (6,)}),
        (GroupDecoding(), {"grid": (6,)}),
        (GroupDecoding(), {"grid": (2, 3), "order": "neighbour"}),
        (ExactMatchJacobiDecoding(window=3, init="uniform"), {"grid": (6,)}),
        (ExactMatchJacobiDecoding(window=2, init="left"), {"grid": (2, 3)}),
    ],
)
@torch.inference_mode()
def test_real_numbers_have_their_law(method, sizes):
    model, count = RealToy(**sizes), 2_000
    cast = Cast(model, model.layout(model.config.grid))
    sampling = Sampling.create(list(range(count)), guidance=1.7)
    tokens, committed = decode_all(method, cast, model.condition([0] * count, True), sampling)
    assert tokens.dtype == torch.float32 and committed.sum(0).tolist() == [6] * count
    deviations = residuals(model, tokens, count, 1.7)
    for rank in range(6):
        assert stats.kstest(deviations[:, rank].numpy(), "norm").pvalue > 1e-4
    together = torch.corrcoef(deviations.T) - torch.eye(6)
    assert float(together.abs().max()) < 0.1
    wrong = residuals(model, tokens, count, 1.0)  # known wrong: the law without guidance
    assert min(stats.kstest(wrong[:, r].numpy(), "norm").pvalue for r in range(6)) < 1e-9


@torch.inference_mode()
def test_frozen_noise_gives_the_sequential_numbers():
    model, count = RealToy(), 50
    cast = Cast(model, model.layout((6,)))
    condition, sampling = model.condition([0] * count, True), Sampling.create(list(range(count)))
    expected, _ = decode_all(SequentialDecoding(), cast, condition, sampling)
    noise = normal_noise(torch.arange(count), torch.arange(6), 1)[..., 0]
    ours = residuals(model, expected, count, 1.0)
    assert torch.allclose(ours, noise, atol=1e-4)
    for init in ("uniform", "left"):
        method = ExactMatchJacobiDecoding(window=3, init=init)
        tokens, _ = decode_all(method, cast, condition, sampling)
        assert torch.allclose(tokens, expected, atol=1e-5)


def test_methods_that_need_more_of_a_law_say_so():
    model = RealToy()
    cast = Cast(model, model.layout((6,)))
    with pytest.raises(ValueError, match=r"laws tell an exact test of drafts, .* real numbers"):
        SpeculativeJacobiDecoding().check(cast)
    with pytest.raises(ValueError, match=r"laws tell a table of all tokens, .* real numbers"):
        TreeDecoding().check(cast)
    forced = cast.with_layout(replace(cast.layout, forced=torch.zeros(6)))
    with pytest.raises(ValueError, match="must force nothing for RealToy"):
        SequentialDecoding().check(forced)
