"""Recipes and pictures of training runs that take a second, for the tests of training."""

from pathlib import Path
from typing import Any

import numpy as np

from visual_ar.data.dataset import Dataset, digest, save

TIMES = ("seconds", "pictures_a_second", "share_of_matrix_rate")
"""Columns of a log that differ from run to run."""
TOKENIZER = """
name = "emoji_tokenizer"
kind = "tokenizer"
dataset = "emoji"
steps = 8
batch = 4
shift = 1

[model]
channels = 4
channel_multipliers = [1, 2, 2]
residual_blocks = 1
latent_channels = 8
codebook_size = 16
codebook_dim = 4
norm_groups = 2

[optimiser]
learning_rate = 2e-3
warmup = 2

[codebook]
start = 0.3

[logging]
row = 1
measure = 4
checkpoint = 4
"""
GENERATOR = """
name = "emoji"
kind = "generator"
dataset = "emoji"
tokenizer = "emoji_tokenizer"
steps = 6
batch = 4
splits = ["train", "tokenizer-test"]
held_out = "tone-test"
alias = 0.5
balance = 0.5
crops = 2
shift = 1
soft = 0.05
wrong = 0.4

[model]
dim = 16
n_layer = 2
n_head = 2
dropout = 0.1

[text]
dim = 16
depth = 1
heads = 2
feature_dim = 16
length = 5

[captions]
steps = 20
batch = 8

[sampling]
guidance_scale = 3.0

[optimiser]
learning_rate = 2e-3
muon = true

[logging]
row = 1
measure = 3
checkpoint = 3
"""


def save_squares(folder: Path) -> Path:
    """Prepares a folder of 60 coloured squares, named like emoji."""
    draw = np.random.default_rng(0)
    pictures = np.full((60, 16, 16, 3), 255, np.uint8)
    items: list[dict[str, Any]] = []
    splits = ["train"] * 44 + ["tokenizer-test"] * 8 + ["tone-test"] * 8
    for number, (picture, split) in enumerate(zip(pictures, splits, strict=True)):
        left, top = draw.integers(0, 8, 2)
        picture[top : top + 8, left : left + 8] = draw.integers(0, 256, 3)
        name, tone = f"thing {number // 2}", "dark skin tone" if number % 2 else None
        prompt = name if tone is None else f"{name}, {tone}"
        alias = prompt.replace("thing", "alias")
        items.append(
            {"name": name, "tone": tone, "prompt": prompt, "aliases": [alias]}
            | {"group": name, "split": split}
        )
    manifest = {
        "name": "emoji",
        "shape": list(pictures.shape),
        "pictures_sha256": digest(pictures),
        "counts": {split: splits.count(split) for split in dict.fromkeys(splits)},
    }
    save(Dataset("emoji", pictures, splits, items, manifest=manifest), folder)
    return folder
