"""LlamaGen that also reads token embeddings under Gaussian noise, by a few parameters of its own.

After SJD2 (Teng et al. 2025, arXiv 2510.08994): next-clean-token prediction from normalised, noisy
embeddings with a timestep encoding. The paper tunes all weights. Here only adapters are trained,
and they act at noisy positions alone: where an input is a token, and all inputs before it are, the
law is that of the LlamaGen underneath, bit for bit. Knows nothing about decoding methods.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ModelMixin  # noqa: F401  (diffusers looks for it in a component's module)
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from visual_ar.cache import KVCache
from visual_ar.conditioning.condition import Condition
from visual_ar.layers import Linear, RMSNorm, SwiGLU
from visual_ar.models.llamagen import Adapt, LlamaGen
from visual_ar.models.token_model import DenoisingModel

OPTIONS = ("adapter_dim", "smallest_ratio", "largest_ratio")
_FEATURES = 64
_KARRAS_RHO = 7.0
_INITIAL_STD = 0.02


class NoiseEncoding(nn.Module):
    """A two-layer perceptron on sinusoids of the logarithm of the noise ratio; it starts at 0."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = Linear(_FEATURES, dim)
        self.fc2 = Linear(dim, dim)
        nn.init.zeros_(self.fc2.weight)

    def forward(self, ratios: Tensor) -> Tensor:
        """ratios: [R, Q], above 0; returns [R, Q, D]."""
        octaves = torch.linspace(-2, 4, _FEATURES // 2, device=ratios.device)
        angles = ratios.float().log()[..., None] * 2**octaves
        features = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.fc2(F.silu(self.fc1(features.to(self.fc1.weight.dtype))))


class Adapter(nn.Module):
    """A small gated feed-forward beside the stream of a block; it starts at 0."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.norm = RMSNorm(dim)
        self.feed_forward = SwiGLU(dim, hidden_dim)
        nn.init.normal_(self.feed_forward.w1.weight, std=_INITIAL_STD)
        nn.init.normal_(self.feed_forward.w3.weight, std=_INITIAL_STD)
        nn.init.zeros_(self.feed_forward.w2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., D]; returns [..., D], what is added to it."""
        return self.feed_forward(self.norm(x))


class Denoiser(nn.Module):
    """All that reading noise adds to a LlamaGen: an adapter before every block and the last norm,
    the encoding of the noise ratio, and the mean and deviation of the token embeddings.
    """

    mean: Tensor  # [D]
    deviation: Tensor  # [D]

    def __init__(self, dim: int, n_layer: int, hidden_dim: int) -> None:
        super().__init__()
        self.encoding = NoiseEncoding(dim)
        self.adapters = nn.ModuleList(Adapter(dim, hidden_dim) for _ in range(n_layer + 1))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("deviation", torch.ones(dim))


class DenoisingLlamaGen(LlamaGen, DenoisingModel):
    """A LlamaGen with a denoiser; see the module's docstring.

    Args:
        dim: width D.
        n_layer: number of blocks.
        n_head: heads of a block.
        vocab_size: number of codes V.
        grid_size: rows and columns of the grid.
        num_classes: see `LlamaGen`.
        caption_dim: see `LlamaGen`.
        caption_length: see `LlamaGen`.
        ffn_dim: see `LlamaGen`.
        dropout: see `LlamaGen`.
        adapter_dim: width of the adapters' feed-forward, at least 1.
        smallest_ratio: least noise to signal of a noisy input, above 0; one that leaves no doubt
            about the token. V codes in D dimensions are told apart up to about sqrt(D / (4 ln V)).
        largest_ratio: noise to signal of an input that tells nothing yet.

    Raises:
        ValueError: an option outside its range.
    """

    capabilities = frozenset({"denoising"})
    delta_prefix = "denoiser."

    @register_to_config
    def __init__(
        self,
        dim: int = 768,
        n_layer: int = 12,
        n_head: int = 12,
        vocab_size: int = 16384,
        grid_size: int = 16,
        num_classes: int | None = None,
        caption_dim: int | None = None,
        caption_length: int = 120,
        ffn_dim: int | None = None,
        dropout: float = 0.1,
        adapter_dim: int = 96,
        smallest_ratio: float = 1.5,
        largest_ratio: float = 30.0,
    ) -> None:
        if adapter_dim < 1:
            raise ValueError(f"adapter_dim must be at least 1, got {adapter_dim}")
        if not 0 < smallest_ratio < largest_ratio < math.inf:
            raise ValueError(
                "smallest_ratio must be above 0 and below largest_ratio, "
                f"got {smallest_ratio} and {largest_ratio}"
            )
        super().__init__(
            dim=dim,
            n_layer=n_layer,
            n_head=n_head,
            vocab_size=vocab_size,
            grid_size=grid_size,
            num_classes=num_classes,
            caption_dim=caption_dim,
            caption_length=caption_length,
            ffn_dim=ffn_dim,
            dropout=dropout,
        )
        self.denoiser = Denoiser(dim, n_layer, adapter_dim)

    @classmethod
    def from_base(cls, base: LlamaGen, options: Mapping[str, Any]) -> DenoisingLlamaGen:
        """A copy of a trained LlamaGen with a denoiser that does nothing yet.

        Args:
            base: neither it nor its tensors are shared or changed.
            options: some of `OPTIONS`; other keys are not read.

        Raises:
            ValueError: an option outside its range.
        """
        config = {key: value for key, value in base.config.items() if not key.startswith("_")}
        config |= {key: options[key] for key in OPTIONS if key in options}
        model = cls(**config)
        model.load_state_dict(base.state_dict(), strict=False)
        table = base.tok_embeddings.weight.detach().float()
        model.denoiser.mean.copy_(table.mean(0))
        model.denoiser.deviation.copy_(table.std(0).clamp(min=1e-6))
        # Not by diffusers' `to`, which warns of modules to keep in float32 and names none.
        return nn.Module.to(model, base.device, base.dtype)

    def noise_ratio(self, level: Tensor) -> Tensor:
        """Karras et al. (2022), equation 5: ratios by level in [0, 1], 0 the smallest. fp32."""
        low, high = (
            ratio ** (1 / _KARRAS_RHO)
            for ratio in (self.config.smallest_ratio, self.config.largest_ratio)
        )
        return (low + level.float() * (high - low)) ** _KARRAS_RHO

    def noise_ratios(self, steps: int) -> Tensor:
        """See `DenoisingModel.noise_ratios`. fp32 [steps + 1]."""
        levels = torch.linspace(1, 0, steps, device=self.device).flip(0)
        return F.pad(self.noise_ratio(levels), (1, 0))

    def latents(self, tokens: Tensor, ranks: Tensor) -> Tensor:
        """See `DenoisingModel.latents`."""
        denoiser = self.denoiser
        embeddings = self.embed(tokens, ranks).float()
        return (embeddings - denoiser.mean.float()) / denoiser.deviation.float()

    def embed_noisy(self, latents: Tensor, ratios: Tensor) -> Tensor:
        """See `DenoisingModel.embed_noisy`. De-normalised, with the encoding of the noise added."""
        denoiser = self.denoiser
        embeddings = latents * denoiser.deviation.float() + denoiser.mean.float()
        return embeddings.to(self.dtype) + denoiser.encoding(ratios)

    def forward(
        self,
        x: Tensor,
        ranks: Tensor,
        cache: KVCache | None = None,
        visible: Tensor | None = None,
        slots: Tensor | None = None,
        noisy: Tensor | None = None,
    ) -> Tensor:
        """See `LlamaGen.forward`. noisy: bool [R, Q], where the adapters act; None is nowhere."""
        adapt = None if noisy is None else self._adapt(noisy)
        return self._forward(x, ranks, cache, visible, slots, adapt)

    def _adapt(self, noisy: Tensor) -> Adapt:
        def adapt(layer: int, x: Tensor) -> Tensor:
            return x + noisy[..., None].to(x.dtype) * self.denoiser.adapters[layer](x)

        return adapt

    def noisy_logits(
        self,
        tokens: Tensor,
        drafts: Tensor,
        noise: Tensor,
        ratios: Tensor,
        starts: Tensor,
        condition: Condition,
    ) -> Tensor:
        """Logits given clean tokens up to some rank and noisy ones from there on, for training.

        Every rank is trained in the context that decoding meets: what comes before the run of noisy
        inputs that it is in has been accepted. The clean inputs are a pass of their own, of the
        model underneath, and get no gradient.

        Args:
            tokens: int64 [B, N], the clean ones.
            drafts: int64 [B, N - 1], the noisy ones, which need not be those of `tokens`.
            noise: fp32 [B, N - 1, D], standard normal, of every rank but the last.
            ratios: fp32 [B, N - 1], above 0.
            starts: int64 [B, N - 1], first rank of the noisy run that each rank belongs to.
            condition: of B rows.

        Returns:
            fp32 [B, N - 1, V], logits of ranks 1 to N - 1.
        """
        batch, inputs = starts.shape
        ranks = torch.arange(inputs, device=tokens.device).expand(batch, -1)
        clean = self._clean(tokens[:, :-1], ranks, condition)
        scale = (1 + ratios.square()).rsqrt()[..., None]
        latents = (self.latents(drafts, ranks) + ratios[..., None] * noise) * scale
        run = (ranks[:, None] >= starts[..., None]) & (ranks[:, None] <= ranks[..., None])
        before = torch.cat(
            [
                condition.mask[:, None].expand(-1, inputs, -1),
                ranks[:, None] < starts[..., None],
                run,
            ],
            dim=-1,
        )
        x = self.embed_noisy(latents, ratios)
        noisy = torch.ones_like(ranks, dtype=torch.bool)
        hidden = self.forward(x, ranks, clean, before[:, None], noisy=noisy)
        return self.predict(hidden, ranks + 1)

    @torch.no_grad()
    def _clean(self, tokens: Tensor, ranks: Tensor, condition: Condition) -> _CleanKeys:
        """Keys and values of clean inputs. tokens, ranks: int64 [B, N - 1]."""
        prefix = self.prefix_length
        cache = self.new_cache(len(tokens), prefix + tokens.shape[1], prefix)
        cache.prefix_mask = condition.mask
        x = torch.cat([condition.prefix, self.embed(tokens, ranks)], dim=1)
        before = torch.arange(-prefix, 0, device=tokens.device).expand(len(tokens), -1)
        self._forward(x, torch.cat([before, ranks], dim=1), cache, None, None)
        return _CleanKeys(cache)


class _CleanKeys(KVCache):
    """A cache whose content stays as it is: new keys and values are appended for one use."""

    def __init__(self, content: KVCache) -> None:
        self.__dict__.update(content.__dict__)

    def write(self, layer: int, k: Tensor, v: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """See `KVCache.write`."""
        keys, values = self.keys[layer], self.values[layer]
        return torch.cat([keys.to(k), k], dim=2), torch.cat([values.to(v), v], dim=2)
