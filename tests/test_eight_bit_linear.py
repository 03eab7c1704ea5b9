"""Products with 8-bit weights: right, row by row, kept in 8 bits, and named wherever they count."""

import copy

import pytest
import torch
from typer.testing import CliRunner

from visual_ar import VisualARPipeline, eight_bit
from visual_ar.cli.common import floating_dtype, resolve_dtype
from visual_ar.cli.main import app
from visual_ar.eight_bit_linear import EightBitLinear, compute_in_8_bits, number_format
from visual_ar.layers import Linear
from visual_ar.models.llamagen import LlamaGen
from visual_ar.png import read_recipe
from visual_ar.provenance import command
from visual_ar.testing import ToyTokenModel

SHAPES = [(96, 40), (700, 1200)]  # the second takes several blocks of weights
KERNEL, BLOCKS = 3, 20  # rows


def weight(out, size, seed=0):
    return torch.randn(out, size, generator=torch.Generator().manual_seed(seed))


def restored(linear):
    stored = {"w": linear.weight.detach(), "w" + eight_bit.SCALE: linear.scale.detach().half()}
    return eight_bit.restore(stored)["w"]


@pytest.mark.parametrize("out, size", SHAPES)
def test_many_rows_are_multiplied_with_exactly_the_8_bit_weights(out, size):
    linear, x = EightBitLinear(weight(out, size)), weight(BLOCKS, size, seed=1)
    torch.testing.assert_close(linear(x), x @ restored(linear).t(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("out, size", SHAPES)
def test_few_rows_are_rounded_to_bfloat16(out, size):
    linear, x = EightBitLinear(weight(out, size)), weight(KERNEL, size, seed=1)
    expected = x @ restored(linear).t()
    error = (linear(x) - expected).norm() / expected.norm()
    assert 0 < error < 2**-8


@pytest.mark.parametrize("rows", [KERNEL, BLOCKS])
@torch.no_grad()
def test_a_row_does_not_move_when_others_change(rows):
    linear, x = EightBitLinear(weight(96, 64)), weight(rows, 64, seed=1)
    before = linear(x)[1]
    x[0], x[2:] = 1000.0, -x[2:] * 50
    assert torch.equal(linear(x)[1], before)


@pytest.mark.parametrize("rows", [KERNEL, BLOCKS])
def test_known_mistake_one_scale_for_all_rows_is_seen(rows):
    """Activations in 8 bits with one scale let the other rows in."""

    def product(x, linear):
        scale = x.abs().amax() / 127
        return (x / scale).round() * scale @ restored(linear).t()

    linear, x = EightBitLinear(weight(96, 64)), weight(rows, 64, seed=1)
    before = product(x, linear)[1]
    x[0] = 1000.0
    assert not torch.equal(product(x, linear)[1], before)


def small(vocabulary=64):
    torch.manual_seed(0)
    options = {"n_layer": 2, "n_head": 2, "grid_size": 4, "num_classes": 3}
    return LlamaGen(dim=64, vocab_size=vocabulary, **options).eval()


def test_no_other_copy_is_kept():
    model = small()
    maps = [m for m in model.modules() if type(m) is Linear]
    numbers, rows = (sum(f(m.weight) for m in maps) for f in (torch.numel, len))
    before = sum(p.nbytes for p in model.parameters())
    compute_in_8_bits(model)
    after = sum(p.nbytes for p in model.parameters())
    assert before - after == 4 * numbers - (numbers + 4 * rows)
    assert not any(type(m) is Linear for m in model.modules())
    assert number_format(model) == torch.int8 and model.dtype == torch.float32


def test_rounding_again_changes_nothing():
    model = small()
    compute_in_8_bits(model)
    once = model.output
    again = EightBitLinear(restored(once))
    assert torch.equal(again.weight, once.weight) and torch.equal(again.scale, once.scale)


def test_models_that_cannot_are_named():
    with pytest.raises(ValueError, match="dtype int8 needs a model of ours, got a ToyTokenModel"):
        compute_in_8_bits(ToyTokenModel())
    with pytest.raises(ValueError, match=r"needs weights in float32 on a CPU, got torch.bfloat16"):
        compute_in_8_bits(small().to(torch.bfloat16))


def test_devices_and_parts_that_cannot_are_named():
    with pytest.raises(ValueError, match="dtype int8 must be used with device cpu, got cuda"):
        resolve_dtype("int8", torch.device("cuda"))
    with pytest.raises(ValueError, match="dtype must be float32 or bfloat16 here, got int8"):
        floating_dtype("int8", torch.device("cpu"))


@pytest.fixture(scope="module")
def emoji():
    pipe = VisualARPipeline.from_pretrained("emoji", dtype="int8")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_pipeline_draws_says_so_and_refuses_to_be_saved(emoji, tmp_path):
    first, second = (emoji("red heart", seeds=3).images[0].tobytes() for _ in range(2))
    assert first == second
    assert emoji.number_format == torch.int8
    with pytest.raises(ValueError, match=r"dtype must be that of the weights .*, got int8"):
        emoji.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    # The draft head was made for the weights, in 8 bits or not.
    assert VisualARPipeline.from_pipe(emoji).draft_head is emoji.draft_head


@pytest.mark.parametrize("name", ["emoji-binary", "emoji-nar", "emoji-sjd2", "emoji-wide-subcodes"])
def test_models_of_every_kind_draw(name):
    pipe = VisualARPipeline.from_pretrained(name, dtype="int8")
    pipe.set_progress_bar_config(disable=True)
    if "window" in pipe.scheduler.config:
        pipe.scheduler.register_to_config(window=16)
    assert pipe.number_format == torch.int8
    assert pipe("red heart", seeds=3).images[0].size == (64, 64)


def test_pictures_do_not_depend_on_their_neighbours(emoji):
    """In a batch of one shape, whoever else is in it."""
    alone = emoji(["red heart", "strawberry"], seeds=[3, 4], output_type="tokens").tokens
    other = emoji(["red heart", "cat face"], seeds=[3, 9], output_type="tokens").tokens
    assert torch.equal(alone[0], other[0])


def test_a_picture_tells_that_it_was_drawn_so(tmp_path):
    path = tmp_path / "heart.png"
    words = ["generate", "red heart", "--seed", "1", "--dtype", "int8", "--output", str(path)]
    assert CliRunner().invoke(app, words).exit_code == 0
    recipe = read_recipe(path)
    assert recipe["dtype"] == "int8" and "--dtype int8" in command(recipe)


def test_copies_of_a_model_multiply_alike():
    model = small()
    compute_in_8_bits(model)
    x = weight(2, 64)
    assert torch.equal(copy.deepcopy(model).output(x), model.output(x))
