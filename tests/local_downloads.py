"""What the README's commands download or train for hours, small: checkpoints and short recipes."""

import dataclasses
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from test_binary import KEYS, wave

from visual_ar.models import llamagen
from visual_ar.tokenizers.vq import VQTokenizer
from visual_ar.training.recipe_file import load_recipe

FIXTURES = Path(__file__).parent / "fixtures"
STEPS = 2


def write_checkpoints(folder, monkeypatch):
    """The published files that the README names, with the layout of the real ones."""
    monkeypatch.setitem(llamagen.SIZES, "tiny", (2, 4, 32))
    start = "c2i.state."
    fixture = load_file(FIXTURES / "llamagen.safetensors")
    state = {k.removeprefix(start): t for k, t in fixture.items() if k.startswith(start)}
    torch.save({"model": state}, folder / "c2i_B_256.pt")
    torch.manual_seed(0)
    vq = VQTokenizer(channels=32, channel_multipliers=(1, 2), residual_blocks=1, latent_channels=32)
    torch.save({"model": vq.state_dict()}, folder / "vq_ds16_c2i.pt")
    bits = {key: wave(key, shape).float() for key, shape in KEYS["tiny"].items()}
    save_file(bits, folder / "ae_d16c32.safetensors")


def short_recipe(recipe, device="cpu"):
    """A bundled recipe for a few steps, so that training all of them takes minutes."""
    whole = load_recipe(recipe, device)
    changes = {"steps": STEPS, "batch": 4}
    if getattr(whole, "captions", None) is not None:
        changes["captions"] = dataclasses.replace(whole.captions, steps=STEPS, batch=8)
    return dataclasses.replace(whole, **changes)
