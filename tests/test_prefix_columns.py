"""One prefix column stands for all in training only where all columns are equal."""

import pytest
import torch

from visual_ar.models.bitwise import BitLlamaGen
from visual_ar.models.llamagen import LlamaGen
from visual_ar.models.nar import NAR
from visual_ar.training.drawn_bits import DrawnBits
from visual_ar.training.drawn_codes import Drawn
from visual_ar.training.generator import loss_of
from visual_ar.training.subjects import Given
from visual_ar.training.train_draft_head import teach

SIZES = {"dim": 16, "n_layer": 2, "n_head": 2, "grid_size": 2, "ffn_dim": 24, "dropout": 0.0}
CAPTION = {"caption_dim": 4, "caption_length": 2}
MAKE = {
    "codes": lambda: LlamaGen(vocab_size=8, **SIZES, **CAPTION),
    "bits": lambda: BitLlamaGen(bits=3, **SIZES, **CAPTION),
    "groups": lambda: NAR(vocab_size=8, **SIZES, **CAPTION),
}


def made(name, same_nothing):
    """A model whose columns for no caption are equal or not, three pictures, and their tokens."""
    torch.manual_seed(0)
    model = MAKE[name]()
    for parameter in model.parameters():  # heads start at zero, where every loss is the same
        torch.nn.init.normal_(parameter, std=0.4)
    if same_nothing:
        nothing = model.cls_embedding.uncond_embedding
        nothing.copy_(nothing[:1].clone())
    if name == "bits":
        tokens = torch.rand(3, 4, 3) < 0.5
        return model, DrawnBits(tokens, tokens)
    tokens = torch.randint(8, (3, 4))
    return model, Drawn(tokens, tokens[..., None], torch.ones(3, 4, 1))


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("same_nothing", [False, True])
@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("name", MAKE)
def test_the_loss_is_that_of_all_columns(name, same, same_nothing, dropped):
    model, drawn = made(name, same_nothing)
    features = torch.randn(3, 2, 4)
    if same:
        features = features[:, :1].expand(3, 2, 4)
    drop = torch.tensor([True, False, True]) if dropped else None
    assert model.same_columns(features) == (same and same_nothing)
    whole = drawn.loss(model, model.condition(features, None, guided=False, drop=drop), False)
    loss = loss_of(model, drawn, Given(features, None), drop)
    assert torch.allclose(loss, whole, atol=1e-5)
    packed = drawn.loss(model, model.condition(features, None, guided=False, drop=drop), True)
    assert same or (packed - whole).abs() > 1e-3  # what distinct columns cost unseen


@pytest.mark.parametrize("same", [False, True])
def test_a_draft_head_is_taught_by_all_columns(same):
    model, drawn = made("codes", same)
    features = torch.randn(3, 1 if same else 2, 4).expand(3, 2, 4)
    lesson = teach(model, drawn.inputs, Given(features, None))
    condition = model.condition(features)
    whole = model.features(drawn.inputs.repeat(2, 1), condition)
    assert torch.allclose(lesson.features, whole, atol=1e-5)


def test_classes_have_one_column():
    model = LlamaGen(vocab_size=8, num_classes=3, **SIZES)
    assert not model.same_columns(torch.tensor([0, 1]))
