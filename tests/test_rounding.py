"""What 8 bits change is measured on the laws themselves, whatever the order and the tokens."""

import copy

import numpy as np
import pytest
import torch

from visual_ar import eight_bit
from visual_ar.evaluation.probes import law_entropy
from visual_ar.evaluation.rounding import PLAIN, forced_laws, law_changes, rounding
from visual_ar.evaluation.workload import from_pipeline
from visual_ar.models.bitwise import BitLlamaGen


@pytest.fixture(params=["next token", "next neighbour", "bits"])
def pipe(request, make_tiny_pipeline, make_parallel_pipeline):
    """A pipeline of each kind of order and token."""
    whole = make_tiny_pipeline()
    if request.param == "next neighbour":
        return make_parallel_pipeline(whole)
    if request.param == "bits":
        torch.manual_seed(0)
        options = {"dim": 32, "n_layer": 2, "n_head": 2, "grid_size": 4, "num_classes": 3}
        model = BitLlamaGen(bits=4, ffn_dim=48, **options).eval()
        torch.nn.init.normal_(model.output.weight, std=0.6)
        whole.register_modules(model=model)
    return whole


def tokens_of(pipe, pictures=3):
    torch.manual_seed(3)
    tokens = torch.randint(2, (pictures, 16, *pipe.model.tokens.shape))
    return tokens.to(pipe.model.tokens.dtype)


def changed(pipe, scale):
    """The pipeline with a head whose output is scaled."""
    other = copy.copy(pipe)
    model = copy.deepcopy(pipe.model)
    for name, value in model.named_parameters():
        if name.startswith("output"):
            value.data *= scale
    other.register_modules(model=model)
    return other


def test_equal_pipelines_have_equal_laws(pipe):
    apart, agree = law_changes(pipe, pipe, tokens_of(pipe), ["cat", "dog", "frog"])
    assert apart.shape == agree.shape == (3, 16)
    assert apart.abs().max() < 1e-6 and bool(agree.all())


def test_a_scaled_head_changes_laws_and_not_what_is_likeliest(pipe):
    other = changed(pipe, 1.5)
    apart, agree = law_changes(pipe, other, tokens_of(pipe), ["cat", "dog", "frog"], PLAIN)
    assert apart.mean() > 0.02 and bool(agree.all())
    _, agree = law_changes(pipe, changed(pipe, -1), tokens_of(pipe), ["cat"] * 3, PLAIN)
    assert agree.double().mean() < 0.5


def test_laws_of_given_tokens_are_those_of_decoding(make_tiny_pipeline):
    whole = make_tiny_pipeline()
    tokens = tokens_of(whole, 2)
    law = forced_laws(whole, tokens, ["cat", "frog"], PLAIN)
    work = from_pipeline(whole, ["cat", "frog"], PLAIN)
    expected = law_entropy(work, range(2), [0, 1], tokens)
    torch.testing.assert_close(law.entropy(), expected)


def test_laws_of_groups_read_what_is_drawn_before_them(make_tiny_pipeline, make_parallel_pipeline):
    parallel = make_parallel_pipeline(make_tiny_pipeline())
    layout = parallel.model.layout((4, 4))
    tokens = tokens_of(parallel, 1)
    before = forced_laws(parallel, tokens, ["cat"], PLAIN).probabilities
    other = tokens.clone()
    other[:, layout.cell[5]] += 3
    after = forced_laws(parallel, other, ["cat"], PLAIN).probabilities
    end = int(layout.group_end[5])
    torch.testing.assert_close(before[:, :end], after[:, :end])
    assert (before[:, end:] - after[:, end:]).abs().max() > 1e-3


def test_the_result_tells_what_8_bits_change(make_tiny_pipeline, monkeypatch):
    monkeypatch.setattr(eight_bit, "_FEWEST", 1)
    whole, rounded = make_tiny_pipeline(text=True), make_tiny_pipeline(text=True)
    for part in ("model", "text_encoder", "image_tokenizer"):
        component = getattr(rounded, part)
        component.load_state_dict(eight_bit.restore(eight_bit.compress(component.state_dict())))
    pictures = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    found = rounding(whole, rounded, pictures, ["red apple"] * 5)["results"]
    for name in ("defaults", "unguided, temperature 1"):
        assert 0 < found[f"total variation, {name}"] < 0.05
        assert found[f"top-1 agreement, {name}"] > 0.9
    assert found["tokens encoded alike"] > 0.9
    assert 0 < abs(found["PSNR after"] - found["PSNR before"]) < 1
    with pytest.raises(ValueError, match="subjects must be 5, one a picture, got 1"):
        rounding(whole, rounded, pictures, ["red apple"])
