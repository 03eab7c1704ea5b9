"""Numbers that are not Python's, wherever a person gives one."""

import fractions
import json

import numpy as np
import pytest
import torch

from visual_ar.accel.denoising import SpeculativeDenoisingDecoding
from visual_ar.method_options import build
from visual_ar.plain_numbers import listed, real, shown, whole
from visual_ar.provenance import Order, recipe

FIVES = [
    *(5, np.int64(5), np.int8(5), np.uint64(5), np.array(5), np.array(5, np.int16)),
    *(torch.tensor(5), torch.tensor(5, dtype=torch.uint8)),
]
NO_NUMBERS = [
    *(True, np.bool_(True), torch.tensor(True), np.array(True), "5", None, np.str_("5")),
    *([5], np.array([5]), torch.tensor([5]), 5j, np.complex64(5)),
]


@pytest.mark.parametrize("value", FIVES, ids=repr)
def test_whole_numbers_become_plain(value):
    assert type(whole("count", value, 1)) is int
    assert whole("count", value, 5, 5) == 5
    assert type(real("scale", value)) is float


@pytest.mark.parametrize("value", [*NO_NUMBERS, 5.0, 5.5, np.float32(5), torch.tensor(5.0)])
def test_what_is_not_whole_is_refused(value):
    with pytest.raises(ValueError, match=r"^count must be a whole number of at least 1, got "):
        whole("count", value, 1)


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_what_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match=r"^scale must be a number, got "):
        real("scale", value)


def test_whole_numbers_have_bounds():
    for value in (0, 9, np.int64(9), -(10**5000), 10**5000):
        with pytest.raises(ValueError, match=r"^count must be a whole number from 1 to 8, got "):
            whole("count", value, 1, 8)


def test_numbers_are_finite():
    halves = [0.5, np.float16(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5)]
    for value in [*halves, fractions.Fraction(1, 2), torch.tensor(0.5, dtype=torch.bfloat16)]:
        assert type(real("scale", value)) is float
        assert real("scale", value) == 0.5
    for value in (float("nan"), np.float32("inf"), torch.tensor(float("-inf")), 10**400):
        with pytest.raises(ValueError, match=r"^scale must be a finite number, got "):
            real("scale", value)


def test_lists_are_read_and_ranges_are_not_written_out():
    for value in (
        [1, 2],
        (1, 2),
        range(1, 3),
        np.array([1, 2]),
        torch.tensor([1, 2]),
        {1: 0, 2: 0},
    ):
        assert list(listed(value)) == ([value] if isinstance(value, dict) else [1, 2])
    huge = range(10**15)
    assert listed(huge) is huge
    assert listed({1, 2}) == [{1, 2}]  # it has no order
    assert listed({1: 2}) == [{1: 2}]


def test_values_are_shown_in_a_line():
    assert shown(np.zeros((50, 50))).endswith("...")
    assert "\n" not in shown(np.zeros((2, 2)))
    assert len(shown("x" * 1000)) == 80


@pytest.fixture
def pipe(make_tiny_pipeline):
    pipe = make_tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(
    ("labels", "seeds"),
    [
        (np.array([0, 1]), np.array([3, 4])),
        (torch.tensor([0, 1]), torch.tensor([3, 4], dtype=torch.int32)),
        (range(2), range(3, 5)),
        ((np.int64(0), torch.tensor(1)), (np.uint8(3), np.int64(4))),
        (np.array(["0", "1"]), np.int64(3)),
        ([0, 1], torch.tensor(3)),
    ],
)
def test_a_call_takes_them_and_records_plain_ones(pipe, labels, seeds):
    side = np.int64(pipe.size.height)
    asked = {"class_labels": labels, "seeds": seeds, "height": side, "width": torch.tensor(side)}
    request = pipe.check_inputs(
        **asked, top_k=np.int64(4), top_p=np.float32(0.5), temperature=np.array(2.0)
    )
    assert request.conditions == [0, 1]
    assert request.seeds == [3, 4]
    assert all(type(number) is int for number in (*request.conditions, *request.size.pixels))
    assert request.sampling.top_k.tolist() == [4, 4]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"seeds": np.array([1.0])}, r"seeds must be a whole number of at least 0, got 1\.0"),
        ({"seeds": np.array([True])}, "seeds must be a whole number of at least 0, got True"),
        ({"seeds": np.array([[1]])}, r"seeds must be a whole number of at least 0, got \[1\]"),
        ({"seeds": {1}}, r"seeds must be a whole number of at least 0, got \{1\}"),
        ({"seeds": range(10**15)}, "seeds must have one entry for each of 1 pictures"),
        (
            {"class_labels": np.array([True])},
            "in 0..2 or cat, dog, frog, got True",
        ),
        (
            {"class_labels": np.array([0.0])},
            r"in 0..2 or cat, dog, frog, got 0\.0",
        ),
        ({"class_labels": range(10**15)}, "in 0..2 or cat, dog, frog, got 3"),
        ({"class_labels": "9" * 5000}, "in 0..2 or cat, dog, frog, got '999"),
        ({"class_labels": np.array([])}, "class_labels must be given"),
        ({"top_p": np.float32("nan")}, "top_p must be a finite number, got "),
        ({"num_images_per_prompt": np.bool_(True)}, "num_images_per_prompt must be a whole"),
    ],
)
def test_a_call_names_what_is_wrong(pipe, asked, message):
    with pytest.raises(ValueError, match=message):
        pipe.check_inputs(**{"class_labels": 0, **asked})


def test_recipes_and_settings_can_be_written(pipe):
    built = type(pipe)(
        *(pipe.model, pipe.image_tokenizer, pipe.scheduler),
        height=np.int64(pipe.size.height),
        width=np.int64(pipe.size.width),
        top_p=np.float32(0.5),
    )
    json.dumps(dict(built.config))
    built.set_progress_bar_config(disable=True)
    output = built(class_labels=np.int64(1), seeds=np.int64(2), top_k=np.int64(3))
    order = Order("class", ["1"], 2, {})
    json.dumps([output.stats.seeds, recipe(built, order, output.stats, 0, 0)])


def test_options_of_methods_become_plain():
    method = SpeculativeDenoisingDecoding(4, steps=np.int64(3), clean=torch.tensor(2))
    assert json.loads(json.dumps(dict(method.config)))["steps"] == 3
    assert type(build("jacobi", {"window": np.int64(4)}).config.window) is int
    with pytest.raises(ValueError, match="window must be"):
        build("jacobi", {"window": np.bool_(True)})
