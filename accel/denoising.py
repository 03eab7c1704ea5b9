"""Speculative Jacobi-denoising decoding (SJD2): the far drafts of a window are noisy embeddings.

Teng et al. (2025), arXiv 2510.08994: ranks enter the window as Gaussian embeddings, each pass moves
them towards the tokens it foretells, and what has become clean is verified as in Jacobi decoding
(arXiv 2410.01699). Far drafts that are known to be uncertain mislead the others less. Knows nothing
about families, pixels or training.

Which law it is lossless with respect to: that of the model given tokens, without noise anywhere.
The law of the rank at offset k of a pass is computed from the inputs before it, so it is the
model's own only if those are tokens. Hence only the leading run of drafts that were fed as tokens
is verified, and the token behind the run, whose law is then known too, is drawn or kept by the same
test. Noisy ranks are drafts in preparation. Each holds a token all the same, redrawn in every pass
by maximal coupling, and q is the law that it was last drawn from; how noisy a rank is depends on
its offset and on the passes since it entered, which earlier ranks decide. So a draft's q and p and
whether it is tested depend on earlier ranks only, which makes speculative sampling exact. A model
whose noise adapters rest at clean inputs, such as `DenoisingLlamaGen`, has the law of the model
that it was trained from; one whose weights were all tuned has its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from diffusers import SchedulerMixin  # noqa: F401  (diffusers looks for it in a component's module)
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from visual_ar.accel.drafts.initialise import first_drafts
from visual_ar.accel.jacobi import JacobiBuffers
from visual_ar.accel.loop.chain import PassNumbers
from visual_ar.accel.loop.state import DecodeState, Step
from visual_ar.accel.loop.window import WIDEST, WindowedDecoding, check_window
from visual_ar.accel.rules.exact import Exact
from visual_ar.accel.rules.rule import leading_run, redraw
from visual_ar.cast import Cast
from visual_ar.models.token_model import DenoisingModel
from visual_ar.plain_numbers import whole
from visual_ar.sampling import normal_noise, take_rows, uniforms
from visual_ar.tokens.codes import CategoricalLaw
from visual_ar.tokens.kind import TABLE

MOST_STEPS = 1000
"""Levels of noise; published diffusions have no more."""
_INITIAL = 3  # use of the numbers of a rank
_INIT = "uniform"


@dataclass
class DenoisingBuffers(JacobiBuffers):
    """What a pass hands to the next one, beside what Jacobi decoding does.

    Attributes:
        ratios: fp32 [steps + 1], noise to signal by level; level 0 is a token.
        signal: fp32 [steps + 1], of the variance-preserving process by level.
        deviation: fp32 [steps + 1], of its noise.
        most: int64 [W - 1], highest level after a pass by place in the window.
        latents: fp32 [B, N + scratch, D], noisy normalised embedding of every rank.
        levels: int64 [B, N + scratch], noise level of every rank that is not committed.
    """

    ratios: Tensor = field(default_factory=lambda: torch.zeros(0))
    signal: Tensor = field(default_factory=lambda: torch.zeros(0))
    deviation: Tensor = field(default_factory=lambda: torch.zeros(0))
    most: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    latents: Tensor = field(default_factory=lambda: torch.zeros(0))
    levels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))


class SpeculativeDenoisingDecoding(WindowedDecoding):
    """Jacobi decoding with denoising, lossless as said in the module's docstring.

    Args:
        window: ranks predicted by a pass, at least 1, or "auto" for the fastest on this device.
        steps: levels of noise, 1 to 1000. A rank enters at the highest, every pass lowers it by one
            at least, and by more where the front comes near: the most that a rank may have
            falls evenly from the end of the window to the clean ranks. 1 is Jacobi decoding with
            maximal coupling, in which a rank is noise for one pass.
        clean: ranks at the head of the window that are always tokens, at least 1. A pass commits
            at most one more than there are tokens at the head.

    Raises:
        ValueError: an option outside its range.
    """

    lossless = True
    needs = frozenset({TABLE})
    requires = frozenset({"denoising"})
    capturable = True

    @register_to_config
    def __init__(self, window: int | str = 32, steps: int = 8, clean: int = 8) -> None:
        self.register_to_config(
            window=check_window(window),
            steps=whole("steps", steps, 1, MOST_STEPS),
            clean=whole("clean", clean, 1, WIDEST),
        )

    def check(self, cast: Cast) -> None:
        """See `Decoding.check`."""
        model = cast.model
        if "denoising" not in model.capabilities:
            raise ValueError(
                f"{type(self).__name__} needs a model with the capability 'denoising', which "
                f"DenoisingLlamaGen has (a recipe of kind denoising trains it from a LlamaGen); "
                f"{type(model).__name__} has only {sorted(model.capabilities)}"
            )
        super().check(cast)

    def init(self, cast: Cast, slots: int, guided: bool = True, window: int = 1) -> DecodeState:
        """See `Decoding.init`."""
        state = super().init(cast, slots, guided, window)
        device, width = state.tokens.device, state.tokens.shape[1]
        ratios = _model(state).noise_ratios(self.config.steps).float()
        signal, deviation = _scales(ratios)
        state.method = DenoisingBuffers(
            q=torch.zeros(slots, window - 1, state.law_width, device=device),
            history=None,
            numbers=PassNumbers(),
            rule=Exact(),
            ratios=ratios,
            signal=signal,
            deviation=deviation,
            most=self._most(torch.arange(window - 1, device=device), window),
            latents=torch.zeros(slots, width, cast.model.hidden_size, device=device),
            levels=torch.zeros_like(state.tokens),
        )
        return state

    def prepare(self, state: DecodeState, slots: Tensor) -> None:
        """Fills newly admitted slots with noise, and drafts their first window."""
        buffers: DenoisingBuffers = state.method
        buffers.numbers.forget()
        every = torch.arange(state.tokens.shape[1], device=slots.device)
        noise = normal_noise(state.seed[slots], every, buffers.latents.shape[-1])
        buffers.latents[slots] = buffers.deviation[-1] * noise
        buffers.levels[slots] = self.config.steps
        if state.forced is not None:  # known from the start
            forced = state.forced[slots] >= 0
            buffers.levels[slots] = buffers.levels[slots].masked_fill(forced, 0)
        ranks = state.length[:, None] + torch.arange(state.window - 1, device=slots.device)
        u = uniforms(state.seed[:, None], ranks, torch.zeros_like(ranks))[_INITIAL]
        tokens, q = first_drafts(_INIT, state, None, ranks, state.length - 1, u)
        state.tokens[slots[:, None], ranks[slots]] = tokens[slots]
        buffers.q[slots] = q.expand_as(buffers.q)[slots]

    def step(self, state: DecodeState) -> Step:
        """One pass: predict the window, keep the leading run of clean drafts, denoise the rest."""
        buffers: DenoisingBuffers = state.method
        count = state.window - 1
        offsets = torch.arange(state.window, device=state.length.device)
        ranks = state.length[:, None] + offsets  # [B, W]
        numbers = buffers.numbers.take(state, offsets)  # of [B, W]
        p = state.law(self._hidden(state, ranks - 1), ranks)
        q = state.law_from(buffers.q)
        drafts = state.tokens.gather(1, ranks[:, :-1])
        head = numbers.head(count)
        passes = p.first(count).keep(q, drafts, head.test)
        tokens, _ = redraw(buffers.rule, p, q, drafts, leading_run(passes), numbers, None)
        run = leading_run(self._tested(state, passes, ranks[:, :-1]))
        committed = state.commit(tokens, run + 1)
        self._shift(state, p, ranks[:, 0], ranks[:, -1], numbers.first)
        self._denoise(state, ranks[:, -1])
        return state.report(committed, state.window)

    def _tested(self, state: DecodeState, passes: Tensor, ranks: Tensor) -> Tensor:
        """Which drafts may be kept: bool [B, W - 1]. passes: likewise; ranks: int64 [B, W - 1]."""
        return passes & (state.method.levels.gather(1, ranks) == 0)

    def _hidden(self, state: DecodeState, ranks: Tensor) -> Tensor:
        """Hidden states of the window's inputs. ranks: int64 [B, W], from -1; [R, W, D]."""
        buffers, model = state.method, _model(state)
        first = ranks[:, :1] + 1
        at = ranks.clamp(min=0)
        levels = buffers.levels.gather(1, at)
        levels = torch.where(ranks < first, 0, levels)  # the newest committed token is no draft
        ratios = buffers.ratios[levels.clamp(min=1)]
        noisy = levels > 0
        x = torch.where(
            noisy[..., None],
            model.embed_noisy(take_rows(buffers.latents, at), ratios),
            model.embed(state.tokens.gather(1, at), ranks),
        )
        x, rows = state.inputs(x, ranks)
        return model.forward(x, rows, state.cache, noisy=state.twice(noisy))

    def _shift(
        self, state: DecodeState, p: CategoricalLaw, first: Tensor, newest: Tensor, u: Tensor
    ) -> None:
        """Moves q behind the committed tokens and drafts the ranks that enter the window.

        Args:
            p: [B, W] laws of this pass, which the tokens of the window were just drawn from.
            first: int64 [B], first rank that the pass predicted.
            newest: int64 [B], last rank that has a token.
            u: [B, W] numbers for first drafts.
        """
        ranks = state.length[:, None] + torch.arange(state.window - 1, device=first.device)
        row = ranks - first[:, None]
        initial, initial_q = first_drafts(_INIT, state, None, ranks, newest, u[:, :-1])
        enters = row >= state.window
        tokens = torch.where(enters, initial, state.tokens.gather(1, ranks))
        state.tokens.scatter_(1, ranks, tokens)
        carried = p.rows(row.clamp(max=state.window - 1)).probabilities
        state.method.q = torch.where(enters[..., None], initial_q, carried)

    def _denoise(self, state: DecodeState, newest: Tensor) -> None:
        """Moves noisy ranks towards their tokens: DDIM in its data-prediction form.

        With signal a and noise d of the variance-preserving process, from level t down to s:
        z_s = (d_s / d_t) z_t + (a_s - a_t d_s / d_t) e, where e is the embedding of the token just
        drawn at that rank. A rank that has just entered stays as it is.

        Args:
            newest: int64 [B], last rank that this pass predicted.
        """
        buffers: DenoisingBuffers = state.method
        offsets = torch.arange(state.window - 1, device=newest.device)
        ranks = state.length[:, None] + offsets
        old = buffers.levels.gather(1, ranks)
        new = torch.minimum(old - 1, buffers.most).clamp(min=0)
        new = torch.where(ranks <= newest[:, None], new, old)
        signal, deviation = buffers.signal, buffers.deviation
        # Level 0 has no noise to shrink; nobody reads its latents.
        shrunk = deviation[new] / deviation[old.clamp(min=1)]
        token = _model(state).latents(state.tokens.gather(1, ranks), ranks)
        added = (signal[new] - signal[old] * shrunk)[..., None] * token
        moved = shrunk[..., None] * take_rows(buffers.latents, ranks) + added
        pictures = torch.arange(state.slots, device=newest.device)[:, None]
        buffers.latents[pictures, ranks] = moved
        buffers.levels.scatter_(1, ranks, new)

    def _most(self, offsets: Tensor, window: int) -> Tensor:
        """Highest noise level after a pass, int64 [K]. offsets: int64 [K], into the window."""
        steps, clean = self.config.steps, self.config.clean
        past = (offsets - clean) * steps
        level = torch.div(past, max(window - clean, 1), rounding_mode="floor") + 1
        return torch.where(offsets < clean, 0, level.clamp(max=steps))


def _model(state: DecodeState) -> DenoisingModel:
    assert isinstance(state.model, DenoisingModel)
    return state.model


def _scales(ratios: Tensor) -> tuple[Tensor, Tensor]:
    """Signal and noise of the variance-preserving process at noise-to-signal ratios."""
    signal = (1 + ratios.square()).rsqrt()
    return signal, ratios * signal
