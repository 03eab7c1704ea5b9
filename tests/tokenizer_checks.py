"""What every tokenizer is held to; `test_from_outside` runs it over a tokenizer of its own."""

import math

import pytest
import torch

from visual_ar.size import Size

STAGES = {"channels": 4, "channel_multipliers": (1, 2), "norm_groups": 2}
SMALL = {  # class -> options that make it tiny
    "VQTokenizer": {
        **STAGES,
        "residual_blocks": 1,
        "latent_channels": 4,
        "codebook_size": 16,
        "codebook_dim": 4,
    },
    "BinaryTokenizer": {**STAGES, "residual_blocks": 1, "bits": 5},
    "BSQTokenizer": {
        "image_size": 8,
        "patch_size": 4,
        "width": 16,
        "layers": 1,
        "heads": 2,
        "bits": 6,
    },
}
CONTRACT = {"VisualTokenizer"}  # registered, but no tokenizer itself


def small(name):
    """The options of a registered tokenizer."""
    if name not in SMALL:
        pytest.fail(f"tokenizer {name} needs a row in SMALL of tests/tokenizer_checks.py")
    return SMALL[name]


def check_tokenizer(make, options, folder):
    """Tokens are of the kind it says, pixels come back, and a saved folder gives the same."""
    torch.manual_seed(0)
    tokenizer = make(**options).eval()
    side = 2 * tokenizer.downsample
    grid = tokenizer.grid(Size(side, side))
    pixels = torch.rand(2, 3, side, side) * 2 - 1
    tokens = tokenizer.encode(pixels)
    kind, count = tokenizer.tokens, math.prod(grid)
    assert tokens.shape == (2, count, *kind.shape) and tokens.dtype == kind.dtype
    assert tokenizer.codebook_size == kind.count
    assert int(tokens.min()) >= 0 and int(tokens.max()) < kind.count
    made = tokenizer.decode(tokens, grid)
    assert made.shape == pixels.shape and bool(made.isfinite().all())
    assert torch.allclose(tokenizer.decode(tokens[1:], grid)[0], made[1], atol=1e-5)
    known = torch.ones(2, count, dtype=torch.bool)
    assert torch.allclose(tokenizer.decode(tokens, grid, known), made, atol=1e-6)
    latents = tokenizer.lookup(tokens, grid)
    assert torch.allclose(tokenizer.reconstruct(latents, grid), made, atol=1e-5)
    assert not torch.equal(tokenizer.neighbour(tokens[0, 0], 1), tokens[0, 0])
    with pytest.raises(ValueError, match="height must be"):
        tokenizer.grid(Size(side + 1, side))
    tokenizer.save_pretrained(folder)
    again = make.from_pretrained(folder).eval()
    assert torch.equal(again.encode(pixels), tokens)
