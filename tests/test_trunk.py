"""A model starts from the trained parts of another one."""

from pathlib import Path

import pytest
import torch
from torch import nn

from visual_ar.models.bitwise import BitLlamaGen, SubcodeLlamaGen
from visual_ar.models.llamagen import LlamaGen
from visual_ar.models.nar import NAR
from visual_ar.training.trunk import find_trunk, start_from


def test_a_trunk_gives_every_head_its_head_and_leading_parts() -> None:
    torch.manual_seed(0)
    options = {"dim": 16, "n_head": 2, "vocab_size": 8, "grid_size": 2, "num_classes": 3}
    trunk, model = LlamaGen(n_layer=2, **options), NAR(n_layer=1, ffn_dim=24, **options)
    nn.init.normal_(trunk.output.weight)
    nn.init.normal_(trunk.norm.weight)
    start_from(model, trunk, same_tokens=True)
    for head, norm in zip(model.outputs, model.norms, strict=True):
        assert torch.equal(head.weight, trunk.output.weight)
        assert torch.equal(norm.weight, trunk.norm.weight)
    for ours, theirs in zip(model.layers, trunk.layers, strict=True):
        assert torch.equal(ours.attention.wqkv.weight, theirs.attention.wqkv.weight)
        assert torch.equal(ours.feed_forward.w1.weight, theirs.feed_forward.w1.weight[:24])
        assert torch.equal(ours.feed_forward.w2.weight, theirs.feed_forward.w2.weight[:, :24])
    del trunk.norm
    with pytest.raises(ValueError, match=r"trunk must have the parameter norm\.weight"):
        start_from(model, trunk, same_tokens=True)


def test_a_trunk_of_the_same_family_gives_everything() -> None:
    torch.manual_seed(0)
    options = {"dim": 16, "n_head": 2, "vocab_size": 8, "grid_size": 2, "num_classes": 3}
    trunk, model = (NAR(n_layer=1, ffn_dim=24, **options) for _ in range(2))
    for number, head in enumerate(trunk.outputs):
        nn.init.constant_(head.weight, number)
    start_from(model, trunk, same_tokens=True)
    theirs = trunk.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in model.state_dict().items())


def test_a_trunk_is_looked_for_in_its_run_and_then_among_the_bundled(tmp_path: Path) -> None:
    assert find_trunk("emoji_nar", tmp_path).name == "emoji-nar"
    (tmp_path / "emoji_nar" / "pipeline").mkdir(parents=True)
    assert find_trunk("emoji_nar", tmp_path) == tmp_path / "emoji_nar" / "pipeline"
    with pytest.raises(FileNotFoundError, match="must be trained first: recipe cifar11"):
        find_trunk("cifar11", tmp_path)


@pytest.mark.parametrize("family", [BitLlamaGen, SubcodeLlamaGen])
def test_a_trunk_of_other_tokens_gives_all_but_what_knows_them(family) -> None:
    torch.manual_seed(0)
    options = {"dim": 16, "n_head": 2, "n_layer": 2, "grid_size": 2, "num_classes": 3}
    trunk, model = LlamaGen(vocab_size=8, **options), family(bits=8, **options)
    nn.init.normal_(trunk.output.weight)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    start_from(model, trunk, same_tokens=False)
    for key, value in model.state_dict().items():
        of_tokens = key.startswith(("tok_embeddings.", "output."))
        assert torch.equal(value, before[key] if of_tokens else trunk.state_dict()[key]), key
