"""Codes that training draws: by their chances, computed once, and sometimes wrong."""

from pathlib import Path

import pytest
import torch

from visual_ar.tokenizers.vq import VQTokenizer
from visual_ar.training.drawn_codes import Drawn, cached_codes, mislead
from visual_ar.training.pixels import to_float


def _tokenizer() -> VQTokenizer:
    torch.manual_seed(0)
    return VQTokenizer(
        channels=4,
        channel_multipliers=(1, 2),
        residual_blocks=1,
        latent_channels=8,
        codebook_size=16,
        codebook_dim=4,
        norm_groups=2,
    ).eval()


def test_cells_are_drawn_by_the_chances_of_their_codes(tmp_path: Path) -> None:
    tokenizer, cpu = _tokenizer(), torch.device("cpu")
    pictures = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8)
    hard = cached_codes(tokenizer, pictures, 2, 1, 0.0, 0, tmp_path, cpu)
    soft = cached_codes(tokenizer, pictures, 2, 1, 0.5, 0, tmp_path, cpu)
    assert hard.tokens.shape == (2, 3, 16, 1)
    assert soft.tokens.shape == soft.chances.shape == (2, 3, 16, 8)
    assert torch.equal(soft.nearest, hard.nearest)
    assert torch.equal(hard.nearest.long(), tokenizer.encode(to_float(pictures)))

    where = torch.ones(4000, dtype=torch.int64)
    drawn = soft.draw(where, where, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.labels[0].to(torch.uint16), soft.tokens[1, 1])
    shares = (drawn.inputs[..., None] == drawn.labels).float().mean(0)
    assert torch.allclose(shares, drawn.chances[0], atol=0.04)
    one = hard.draw(where[:1], where[:1], torch.Generator())
    assert torch.equal(one.inputs[0].to(torch.uint16), hard.tokens[1, 1, :, 0])


def test_codes_are_computed_once_for_the_same_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, cpu = _tokenizer(), torch.device("cpu")
    pictures = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8)
    first = cached_codes(tokenizer, pictures, 1, 0, 0.5, 0, tmp_path, cpu)
    with monkeypatch.context() as patch:
        patch.setattr(VQTokenizer, "soft_encode", None)
        again = cached_codes(tokenizer, pictures, 1, 0, 0.5, 0, tmp_path, cpu)
        with pytest.raises(TypeError):
            cached_codes(tokenizer, pictures, 1, 0, 0.4, 0, tmp_path, cpu)
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.chances, again.chances)


def test_codes_of_other_options_are_computed_anew(tmp_path: Path) -> None:
    """The same weights with another number of groups in every norm give other tokens."""
    tokenizer, cpu = _tokenizer(), torch.device("cpu")
    other = VQTokenizer.from_config({**tokenizer.config, "norm_groups": 1}).eval()
    other.load_state_dict(tokenizer.state_dict())
    pictures = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8)
    for each in (tokenizer, other):
        kept = cached_codes(each, pictures, 1, 0, 0.0, 0, tmp_path, cpu)
        assert torch.equal(kept.nearest.long(), each.encode(to_float(pictures)))
    tokenizer.save_pretrained(tmp_path / "saved")
    cached_codes(
        VQTokenizer.from_pretrained(tmp_path / "saved"), pictures, 1, 0, 0.0, 0, tmp_path, cpu
    )
    assert len(list(tmp_path.glob("*.npz"))) == 2, "what is loaded has the options of what is saved"


def test_half_of_the_pictures_are_led_on_by_codes_of_the_next() -> None:
    inputs = torch.arange(2000)[:, None].expand(-1, 64)
    labels = inputs[..., None]
    drawn = Drawn(inputs, labels, torch.ones_like(labels, dtype=torch.float32))
    misled = mislead(drawn, 0.4, torch.Generator().manual_seed(0))
    assert misled.labels is labels
    wrong = misled.inputs != inputs
    assert torch.equal(misled.inputs[wrong], inputs.roll(-1, 0)[wrong])
    share = wrong.float().mean(1)
    assert 0.45 < (share > 0).float().mean() < 0.55
    assert share.max() < 0.7
    assert abs(float(share[share > 0].mean()) - 0.2) < 0.02
    untouched = mislead(drawn, 0.0, torch.Generator().manual_seed(0))
    assert torch.equal(untouched.inputs, inputs)
