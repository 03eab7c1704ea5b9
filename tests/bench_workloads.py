"""What the tests of the speed report measure: a toy that counts its passes, and a transformer."""

import torch

from visual_ar.cast import Cast
from visual_ar.evaluation.speed import Schedule
from visual_ar.evaluation.workload import Workload
from visual_ar.models.llamagen import LlamaGen
from visual_ar.sampling import Sampling
from visual_ar.testing import ToyTokenModel

GRID = (3, 4)
METHODS = ("jacobi-published", "jacobi:window=4,coupling=gumbel", "exact-match:window=4")
SCHEDULE = Schedule(pictures=4, batches=(1, 4), rounds=2, warmup=1, seed=5)
OPTIONS = {"guidance": 1.5, "temperature": 0.9, "top_k": 2, "top_p": 0.95}


class CountingToy(ToyTokenModel):
    """The toy, with a count of its trunk's passes."""

    passes = 0

    def forward(self, *args, **kwargs):
        """Counts, then does what the toy does."""
        type(self).passes += 1
        return super().forward(*args, **kwargs)


def make_workload():
    """Guided pictures of two classes."""
    model = CountingToy(vocab_size=3, grid=GRID, prefix_length=2)
    return Workload(
        cast=Cast(model, model.layout(GRID)),
        condition=lambda numbers: model.condition([n % 2 for n in numbers], guided=True),
        sampling=lambda seeds: Sampling.create(seeds, **OPTIONS),
        detokenise=lambda tokens: tokens.float(),
    )


def make_transformer_workload():
    """A tiny text-conditional LlamaGen, guided, with captions of different lengths."""
    torch.manual_seed(0)
    model = LlamaGen(
        dim=32, n_layer=2, n_head=2, vocab_size=24, grid_size=4, caption_dim=8, caption_length=5
    ).eval()
    torch.nn.init.normal_(model.output.weight, std=0.5)
    features = torch.randn(2, 5, 8)
    mask = torch.tensor([[False, False, True, True, True], [False, True, True, True, True]])
    return Workload(
        cast=Cast(model, model.layout((4, 4))),
        condition=lambda numbers: model.condition(features[numbers], mask[numbers]),
        sampling=lambda seeds: Sampling.create(seeds, **OPTIONS | {"top_k": 8}),
        detokenise=lambda tokens: tokens,
    )
