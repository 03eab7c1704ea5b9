"""A model of tiny clips with random weights, and the toy tokenizer behind it."""

import torch
from diffusers.configuration_utils import register_to_config
from torch.nn import functional as F

from visual_ar.accel.groups import GroupDecoding
from visual_ar.models.nar import NAR
from visual_ar.pipeline import VisualARPipeline
from visual_ar.tokenizers.visual_tokenizer import VisualTokenizer

FRAMES, SIDE, CELL = 2, 3, 4


class MeanColours(VisualTokenizer):
    """Clips as the mean colours of their cells, which are a frame long; 16 colours are known."""

    @register_to_config
    def __init__(self, cell=CELL):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.book = torch.nn.Parameter(torch.rand(16, 3, generator=generator) * 2 - 1)

    @property
    def codebook_size(self):
        return len(self.book)

    @property
    def downsample(self):
        return self.config.cell

    def grid(self, size):
        if size.frames is None:
            raise ValueError("frames must be given for a model of clips, got None")
        return (size.frames, *super().grid(size._replace(frames=None)))

    def encode(self, pixels, length=None):
        colours = F.avg_pool3d(pixels, (1, self.downsample, self.downsample)).flatten(2)
        return torch.cdist(colours.transpose(1, 2), self.book).argmin(-1)

    def decode(self, tokens, grid, known=None, seeds=None):
        colours = self.lookup(tokens, grid)
        if known is not None:
            mean = self.book.mean(0)[:, None, None, None]
            colours = torch.where(known.unflatten(1, grid)[:, None], colours, mean)
        cell = self.downsample
        return colours.repeat_interleave(cell, 3).repeat_interleave(cell, 4)

    def reconstruct(self, latents, grid=None):
        return latents

    def lookup(self, tokens, grid):
        return self.book[tokens].unflatten(1, grid).permute(0, 4, 1, 2, 3)

    def neighbours(self, k):
        return torch.cdist(self.book, self.book).argsort(1)[:, 1 : k + 1]


def build_tiny_clip_pipeline(**options):
    """A pipeline that draws clips of the classes cat, dog and frog; guidance 2."""
    torch.manual_seed(2)
    model = NAR(
        dim=32,
        n_layer=1,
        n_head=2,
        vocab_size=16,
        grid_size=SIDE,
        frames=FRAMES,
        num_classes=3,
        ffn_dim=48,
    )
    for head in model.outputs:
        torch.nn.init.normal_(head.weight, std=0.6)
    pipe = VisualARPipeline(
        model=model.eval(),
        image_tokenizer=MeanColours().eval(),
        scheduler=GroupDecoding(),
        height=SIDE * CELL,
        width=SIDE * CELL,
        **{
            "class_names": ["cat", "dog", "frog"],
            "guidance_scale": 2.0,
            "frames": FRAMES,
            **options,
        },
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
