"""A tiny generator whose law over whole sequences can be enumerated, and a goodness-of-fit test.

Public, so that whoever adds a decoding method can prove it lossless: decode many pictures of the
toy, count the sequences, compare with `enumerate_law`. Knows nothing about any decoding method's
inside; it does exercise the cache, absolute slots and masks the way a transformer does.
"""

from __future__ import annotations

import torch
from diffusers import ModelMixin  # noqa: F401  (diffusers looks for it in a component's module)
from diffusers.configuration_utils import register_to_config
from scipy import stats
from torch import Tensor

from visual_ar.accel.decoding import Decoding
from visual_ar.cache import KVCache
from visual_ar.conditioning import Condition
from visual_ar.layout import Layout, raster_layout
from visual_ar.models.base import TokenModel
from visual_ar.sampling import Sampling, Warps, guide, warp
from visual_ar.tokenizers.bit_codes import bits_to_codes, codes_to_bits


class ToyTokenModel(TokenModel):
    """Sums what every earlier (rank, token) pair contributes, and reads logits off the sum.

    Args:
        vocab_size: V, at least 2.
        grid: cells along each axis.
        prefix_length: P, at least 1.
        hidden_size: D.
        sharpness: spread of the logits; the laws grow peaked with it.
        seed: of the random parameters.
    """

    capabilities = frozenset({"categorical"})

    @register_to_config
    def __init__(
        self,
        vocab_size: int = 3,
        grid: tuple[int, ...] = (7,),
        prefix_length: int = 1,
        hidden_size: int = 6,
        sharpness: float = 1.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._build(vocab_size)

    def _build(self, outputs: int) -> None:
        """The random tables. outputs: of the head for a token."""
        config = self.config
        generator = torch.Generator().manual_seed(config.seed)
        length = raster_layout(tuple(config.grid)).length

        def table(*shape: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.randn(*shape, generator=generator))

        self.contributions = table(length, self.vocab_size, config.hidden_size)
        self.head = table(length, config.hidden_size, outputs)
        self.classes = table(3, config.prefix_length, config.hidden_size)

    @property
    def vocab_size(self) -> int:
        """Number of codes V."""
        return self.config.vocab_size

    @property
    def prefix_length(self) -> int:
        """Number of prefix tokens P."""
        return self.config.prefix_length

    @property
    def hidden_size(self) -> int:
        """Width D."""
        return self.config.hidden_size

    def layout(self, grid: tuple[int, ...]) -> Layout:
        """The raster order of the configured grid."""
        if tuple(grid) != tuple(self.config.grid):
            raise ValueError(f"grid must be {tuple(self.config.grid)}, got {tuple(grid)}")
        return raster_layout(tuple(grid))

    def condition(self, labels: list[int], guided: bool) -> Condition:
        """Prefixes of classes 0 and 1; class 2 stands for no class. labels: one a picture."""
        rows = labels + [2] * len(labels) if guided else labels
        prefix = self.classes[torch.tensor(rows)].detach()
        return Condition(prefix, prefix.new_ones(prefix.shape[:2], dtype=torch.bool))

    def new_cache(self, rows: int, slots: int) -> KVCache:
        """One layer with one head."""
        width = self.hidden_size
        return KVCache(1, rows, 1, slots, width, self.prefix_length, self.dtype, self.device)

    def embed(self, tokens: Tensor, ranks: Tensor) -> Tensor:
        """What a token contributes at its rank. tokens, ranks: int64 [R, Q]; [R, Q, D]."""
        return self.contributions[self._position(ranks), tokens]

    def forward(
        self,
        x: Tensor,
        ranks: Tensor,
        cache: KVCache | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """The sum over visible positions, squashed. x: [R, Q, D]; ranks: int64 [R, Q]."""
        if cache is None:
            return torch.tanh(x.cumsum(1) * 0.6)
        slots = ranks + cache.prefix
        _, values = cache.update(0, x[:, None], x[:, None], slots)
        mask = cache.visible(slots) if visible is None else visible
        return torch.tanh((mask.to(values.dtype) @ values)[:, 0] * 0.6)

    def predict(self, hidden: Tensor, ranks: Tensor) -> Tensor:
        """Logits of `ranks`. hidden: [R, Q, D]; ranks: int64 [R, Q]; returns [R, Q, V]."""
        logits = hidden[..., None, :] @ self.head[self._position(ranks)]
        return logits[..., 0, :].float() * self.config.sharpness

    def _position(self, ranks: Tensor) -> Tensor:
        return ranks.clamp(0, len(self.contributions) - 1)


class ToyBitModel(ToyTokenModel):
    """The toy with tokens of a few bits, independent given the tokens before.

    Args:
        bits: d, at least 1; few, because whole sequences are enumerated.
        grid: see `ToyTokenModel`, like what follows.
        prefix_length: P.
        hidden_size: D.
        sharpness: spread of the log-odds.
        seed: of the random parameters.
    """

    capabilities = frozenset({"bits"})

    @register_to_config
    def __init__(
        self,
        bits: int = 2,
        grid: tuple[int, ...] = (5,),
        prefix_length: int = 1,
        hidden_size: int = 6,
        sharpness: float = 1.5,
        seed: int = 0,
    ) -> None:
        super(ToyTokenModel, self).__init__()
        self._build(bits)

    @property
    def bits(self) -> int:
        """Bits of a token d."""
        return self.config.bits

    @property
    def vocab_size(self) -> int:
        """Number of different tokens, 2^d."""
        return 2**self.bits

    def embed(self, tokens: Tensor, ranks: Tensor) -> Tensor:
        """What a token contributes at its rank. bool [R, Q, d], int64 [R, Q]; [R, Q, D]."""
        return super().embed(bits_to_codes(tokens, "msb"), ranks)


@torch.inference_mode()
def enumerate_law(
    model: ToyTokenModel,
    label: int,
    sampling: Sampling,
    forced: Tensor | None = None,
) -> Tensor:
    """The exact probability of every sequence, by the chain rule over full causal passes.

    Args:
        model: the toy.
        label: 0 or 1, class of the picture.
        sampling: options of one picture; its seed is not read.
        forced: int64 [N], token fixed at a rank or -1.

    Returns:
        fp64 [V^N], indexed by the sequence read as digits, first rank most significant; a token of
        bits is read as a number, first bit most significant.
    """
    vocabulary, length = model.vocab_size, model.layout(model.config.grid).length
    digits = torch.arange(vocabulary)
    sequences = torch.cartesian_prod(*[digits] * length).reshape(-1, length)
    count = len(sequences)
    logits = []
    for name in (label, 2):
        prefix = model.classes[name].expand(count, -1, -1)
        ranks = torch.arange(length).expand(count, -1)
        tokens = codes_to_bits(sequences, model.bits, "msb") if model.bits else sequences
        x = torch.cat([prefix, model.embed(tokens, ranks)], dim=1)[:, :-1]
        hidden = model.forward(x, ranks)[:, model.prefix_length - 1 :]
        logits.append(model.predict(hidden, ranks))
    scale = sampling.guidance
    scale = scale if scale.dim() == 2 else scale[:, None]
    guided = guide(logits[0], logits[1], scale.expand(count, length))
    warped = warp(guided, sampling.temperature, sampling.top_k, sampling.top_p, Warps.of(sampling))
    if model.bits:
        chosen = torch.sigmoid(torch.where(tokens, warped, -warped).double()).prod(-1)
    else:
        chosen = warped.double().softmax(-1).gather(-1, sequences[..., None])[..., 0]
    if forced is not None:
        chosen = torch.where(forced >= 0, (sequences == forced).double(), chosen)
    return chosen.prod(-1)


def sequence_index(tokens: Tensor, vocabulary: int) -> Tensor:
    """Sequences as digits. int64 [B, N] or bool [B, N, d]; int64 [B], see `enumerate_law`."""
    if tokens.dim() == 3:
        tokens = bits_to_codes(tokens, "msb")
    weights = vocabulary ** torch.arange(tokens.shape[1] - 1, -1, -1)
    return (tokens.cpu() * weights).sum(-1)


def decode_all(
    method: Decoding,
    model: TokenModel,
    layout: Layout,
    condition: Condition,
    sampling: Sampling,
) -> tuple[Tensor, Tensor]:
    """Drains a decode. Returns tokens [B, N] or [B, N, d] and committed int64 [steps, B]."""
    committed = []
    for step in method.decode(model, layout, condition, sampling):
        committed.append(step.committed)
        tokens = step.tokens
    return tokens, torch.stack(committed)


def chi_square(observed: Tensor, law: Tensor) -> float:
    """p value of Pearson's goodness-of-fit test; cells expecting fewer than 5 are pooled.

    Args:
        observed: int64 [n], index of the cell that each draw fell into.
        law: [cells], probabilities. A draw in a cell of probability 0 gives p = 0.

    Returns:
        the probability of a fit this bad under the law, in [0, 1].
    """
    law = law.double() / law.double().sum()
    counts = torch.bincount(observed, minlength=len(law)).double()
    if bool((counts[law <= 0] > 0).any()):
        return 0.0
    expected = law * len(observed)
    rare = expected < 5
    pooled_counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    pooled_expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    filled = pooled_expected > 0
    statistic = (
        (pooled_counts[filled] - pooled_expected[filled]) ** 2 / pooled_expected[filled]
    ).sum()
    return float(stats.chi2.sf(float(statistic), max(int(filled.sum()) - 1, 1)))
