"""A tiny generator whose law over whole sequences can be enumerated, and a goodness-of-fit test.

Public, so that whoever adds a decoding method can prove it lossless: decode many pictures of the
toy, count the sequences, compare with `enumerate_law`. Knows nothing about any decoding method's
inside; it does exercise the cache, absolute slots and masks the way a transformer does.
"""

from __future__ import annotations

import math

import torch
from diffusers import ModelMixin  # noqa: F401  (diffusers looks for it in a component's module)
from diffusers.configuration_utils import register_to_config
from scipy import stats
from torch import Tensor

from visual_ar.accel.loop.contract import Decoding
from visual_ar.cache import KVCache
from visual_ar.cast import Cast
from visual_ar.conditioning.condition import Condition
from visual_ar.layout import ABSENT, Layout, neighbour_layout, raster_layout
from visual_ar.models.draft_head import DraftHead
from visual_ar.models.token_model import DenoisingModel
from visual_ar.sampling import Sampling, Warps, guide, warp
from visual_ar.tokenizers.bit_codes import bits_to_codes, codes_to_bits
from visual_ar.tokens.bits import Bits
from visual_ar.tokens.codes import Codes
from visual_ar.tokens.kind import TokenKind


class ToyTokenModel(DenoisingModel):
    """Sums what every earlier (rank, token) pair contributes, and reads logits off the sum.

    Noisy inputs are summed like any others, so that whoever conditions on them has another law.

    Args:
        vocab_size: V, at least 2.
        grid: cells along each axis.
        prefix_length: P, at least 1.
        hidden_size: D.
        sharpness: spread of the logits; the laws grow peaked with it.
        seed: of the random parameters.
        order: "raster", or "neighbour" for groups of several tokens with several sources.
    """

    capabilities = frozenset({"trees", "denoising", "some sources"})
    ends: Tensor  # int64 [P + N], first slot that each slot does not see
    sources: Tensor  # int64 [N, A], see `Layout.sources`

    @register_to_config
    def __init__(
        self,
        vocab_size: int = 3,
        grid: tuple[int, ...] = (7,),
        prefix_length: int = 1,
        hidden_size: int = 6,
        sharpness: float = 1.5,
        seed: int = 0,
        order: str = "raster",
    ) -> None:
        super().__init__()
        self._build(vocab_size)

    def _build(self, outputs: int) -> None:
        """The random tables. outputs: of the head for a token."""
        config = self.config
        generator = torch.Generator().manual_seed(config.seed)
        layout = self.layout(config.grid)
        length = layout.length

        def table(*shape: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.randn(*shape, generator=generator))

        self.contributions = table(length, self.vocab_size, config.hidden_size)
        self.head = table(length, config.hidden_size, outputs)
        self.classes = table(3, config.prefix_length, config.hidden_size)
        # Buffers, so that a captured pass finds them on its device.
        prefix = config.prefix_length
        ends = torch.cat([torch.arange(prefix) + 1, layout.group_end + prefix])
        self.register_buffer("ends", ends, persistent=False)
        self.register_buffer("sources", layout.sources, persistent=False)
        if config.order == "neighbour":  # one hidden state an axis
            self.turns = table(len(config.grid), config.hidden_size, config.hidden_size)

    @property
    def tokens(self) -> TokenKind:
        """Codes."""
        return Codes(self.vocab_size)

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
        """The configured order of the configured grid."""
        if tuple(grid) != tuple(self.config.grid):
            raise ValueError(f"grid must be {tuple(self.config.grid)}, got {tuple(grid)}")
        ordered = neighbour_layout if self.config.order == "neighbour" else raster_layout
        return ordered(tuple(grid))

    def condition(self, labels: list[int], guided: bool) -> Condition:
        """Prefixes of classes 0 and 1; class 2 stands for no class. labels: one a picture."""
        rows = labels + [2] * len(labels) if guided else labels
        prefix = self.classes[torch.tensor(rows)].detach()
        return Condition(prefix, prefix.new_ones(prefix.shape[:2], dtype=torch.bool))

    def new_cache(self, rows: int, slots: int, prefix: int) -> KVCache:
        """One layer with one head."""
        return KVCache(1, rows, 1, slots, self.hidden_size, prefix, self.dtype, self.device)

    def embed(self, tokens: Tensor, ranks: Tensor) -> Tensor:
        """What a token contributes at its rank. tokens, ranks: int64 [R, Q]; [R, Q, D]."""
        return self.contributions[self._position(ranks), tokens]

    def noise_ratios(self, steps: int) -> Tensor:
        """Evenly spaced up to 4. [steps + 1]."""
        return torch.linspace(0, 4, steps + 1, device=self.device)

    def latents(self, tokens: Tensor, ranks: Tensor) -> Tensor:
        """The contributions, which are standard normal. int64 [R, Q] twice; [R, Q, D]."""
        return self.embed(tokens, ranks).float()

    def embed_noisy(self, latents: Tensor, ratios: Tensor) -> Tensor:
        """The latents themselves. [R, Q, D]; ratios: [R, Q]; returns [R, Q, D]."""
        return latents.to(self.dtype)

    def forward(
        self,
        x: Tensor,
        ranks: Tensor,
        cache: KVCache | None = None,
        visible: Tensor | None = None,
        slots: Tensor | None = None,
        noisy: Tensor | None = None,
    ) -> Tensor:
        """The sum over visible positions, squashed. x: [R, Q, D]; ranks: int64 [R, Q]."""
        positions = ranks + self.prefix_length
        end = self.ends[positions.clamp(max=len(self.ends) - 1)]
        if cache is None:
            values = x
            mask = (torch.arange(x.shape[1], device=x.device) < end[..., None])[:, None]
        else:
            slots = positions if slots is None else slots
            _, values = cache.update(0, x[:, None], x[:, None], slots)
            mask = cache.visible(slots, end) if visible is None else visible
        total = (mask.to(values.dtype) @ values.view(len(x), 1, -1, self.hidden_size))[:, 0] * 0.6
        if self.config.order == "raster":
            return torch.tanh(total)
        return torch.tanh(torch.einsum("rqd,ade->rqae", total, self.turns))

    def predict(self, hidden: Tensor, ranks: Tensor, present: Tensor | None = None) -> Tensor:
        """Logits of `ranks`, the mean over their sources.

        Args:
            hidden: [R, Q, D], or [R, Q, A, D].
            ranks: int64 [R, Q].
            present: bool [R, Q, A], the sources to read; None is all that exist.

        Returns:
            [R, Q, V].
        """
        position = self._position(ranks)
        logits = hidden.reshape(*ranks.shape, -1, self.hidden_size) @ self.head[position]
        if present is None:
            present = self.sources[position] != ABSENT
        share = present / present.sum(-1, keepdim=True).clamp(min=1)
        return (logits * share[..., None]).sum(2).float() * self.config.sharpness

    def logits(self, tokens: Tensor, condition: Condition) -> Tensor:
        """Logits of whole sequences in decode order, without a cache.

        Args:
            tokens: int64 [B, N].
            condition: of B rows.

        Returns:
            [B, N, V].
        """
        prefix = self.prefix_length
        ranks = torch.arange(-prefix, len(self.sources), device=tokens.device)
        ranks = ranks.expand(len(tokens), -1)
        x = torch.cat([condition.prefix, self.embed(tokens, ranks[:, prefix:])], dim=1)
        hidden = self.forward(x, ranks).view(*ranks.shape, -1, self.hidden_size)
        columns = self.sources.clamp(min=-1) + prefix
        ways = torch.arange(columns.shape[1], device=tokens.device)
        return self.predict(hidden[:, columns, ways], ranks[:, prefix:])

    def spelled(self, sequences: Tensor) -> Tensor:
        """Tokens of sequences of numbers below V. int64 [B, N]; returns [B, N, *]."""
        return sequences

    def chances(self, warped: Tensor, sequences: Tensor, forced: Tensor | None) -> Tensor:
        """Probability of every token of sequences, given those before it.

        Args:
            warped: [B, N, *], guided and warped head output.
            sequences: int64 [B, N].
            forced: see `enumerate_law`.

        Returns:
            fp64 [B, N].
        """
        chosen = warped.double().softmax(-1).gather(-1, sequences[..., None])[..., 0]
        if forced is None:
            return chosen
        return torch.where(forced >= 0, (sequences == forced).double(), chosen)

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
        order: "raster" or "neighbour".
    """

    capabilities = frozenset()

    @register_to_config
    def __init__(
        self,
        bits: int = 2,
        grid: tuple[int, ...] = (5,),
        prefix_length: int = 1,
        hidden_size: int = 6,
        sharpness: float = 1.5,
        seed: int = 0,
        order: str = "raster",
    ) -> None:
        super(ToyTokenModel, self).__init__()
        self._build(bits)

    @property
    def tokens(self) -> TokenKind:
        """Vectors of bits."""
        return Bits(self.config.bits)

    @property
    def vocab_size(self) -> int:
        """Number of different tokens, 2^d."""
        return 2 ** self.tokens.shape[0]

    def embed(self, tokens: Tensor, ranks: Tensor) -> Tensor:
        """What a token contributes at its rank. bool [R, Q, d], int64 [R, Q]; [R, Q, D]."""
        return super().embed(bits_to_codes(tokens, "msb"), ranks)

    def spelled(self, sequences: Tensor) -> Tensor:
        """See `ToyTokenModel.spelled`: bits, the first most significant."""
        (bits,) = self.tokens.shape
        return codes_to_bits(sequences, bits, "msb")

    def chances(self, warped: Tensor, sequences: Tensor, forced: Tensor | None) -> Tensor:
        """See `ToyTokenModel.chances`. Every bit may be forced by itself."""
        tokens = self.spelled(sequences)
        chosen = torch.sigmoid(torch.where(tokens, warped, -warped).double())
        if forced is not None:
            chosen = torch.where(forced >= 0, (tokens == (forced > 0)).double(), chosen)
        return chosen.prod(-1)


def random_draft_head(model: ToyTokenModel, seed: int = 0) -> DraftHead:
    """An untrained draft head for the toy: whatever it drafts, an exact method stays exact.

    Args:
        model: the toy, whose hidden size is a multiple of 4.
        seed: of the random weights.
    """
    width, length = model.hidden_size, model.layout(model.config.grid).length
    head = DraftHead(width, 1, model.vocab_size, math.isqrt(length - 1) + 1, ffn_dim=width)
    generator = torch.Generator().manual_seed(seed)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    # Laws that are too peaked hide mistakes: all ways to draw from a point mass are alike.
    torch.nn.init.normal_(head.norm.weight, std=0.2, generator=generator)
    return head.eval()


@torch.inference_mode()
def enumerate_law(
    model: ToyTokenModel,
    label: int,
    sampling: Sampling,
    forced: Tensor | None = None,
) -> Tensor:
    """The exact probability of every sequence in decode order, by full passes without a cache.

    Args:
        model: the toy.
        label: 0 or 1, class of the picture.
        sampling: options of one picture; its seed is not read.
        forced: int64 [N], token fixed at a rank or -1; of bits [N, d], each fixed or not.

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
        mask = prefix.new_ones(prefix.shape[:2], dtype=torch.bool)
        logits.append(model.logits(model.spelled(sequences), Condition(prefix, mask)))
    scale = sampling.guidance
    scale = scale if scale.dim() == 2 else scale[:, None]
    guided = guide(logits[0], logits[1], scale.expand(count, length))
    warped = warp(guided, sampling.temperature, sampling.top_k, sampling.top_p, Warps.of(sampling))
    return model.chances(warped, sequences, forced).prod(-1)


def sequence_index(tokens: Tensor, vocabulary: int) -> Tensor:
    """Sequences as digits. int64 [B, N] or bool [B, N, d]; int64 [B], see `enumerate_law`."""
    if tokens.dim() == 3:
        tokens = bits_to_codes(tokens, "msb")
    weights = vocabulary ** torch.arange(tokens.shape[1] - 1, -1, -1)
    return (tokens.cpu() * weights).sum(-1)


def decode_all(
    method: Decoding, cast: Cast, condition: Condition, sampling: Sampling
) -> tuple[Tensor, Tensor]:
    """Drains a decode. Returns tokens [B, N, *] and committed int64 [steps, B]."""
    committed = []
    for step in method.decode(cast, condition, sampling):
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
