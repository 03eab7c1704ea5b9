"""What controls hold becomes a call, or a sentence on what is wrong."""

import pytest

from visual_ar.app.settings import parse_seed, settings

GIVEN = {
    "subject": " dog ",
    "pictures": 2.0,
    "seed": "5",
    "guidance": 3.0,
    "guidance_schedule": "linear",
    "temperature": 0.9,
    "top_k": 4.0,
    "top_p": 0.5,
}


def test_settings_draw_what_the_call_draws(tiny_pipeline):
    call = settings(**GIVEN).call(tiny_pipeline)
    assert call == {
        "class_labels": "dog",
        "num_images_per_prompt": 2,
        "guidance_scale": 3.0,
        "guidance_schedule": "linear",
        "temperature": 0.9,
        "top_k": 4,
        "top_p": 0.5,
        "seeds": 5,
    }
    assert tiny_pipeline.check_inputs(**call).conditions == [1, 1]


def test_text_models_are_given_prompts(tiny_text_pipeline):
    call = settings(**GIVEN).call(tiny_text_pipeline)
    assert call["prompt"] == "dog" and "class_labels" not in call


def test_long_seeds_are_kept_exactly():
    assert parse_seed(str(2**62 - 1)) == 2**62 - 1


@pytest.mark.parametrize("seed", ["", "-1", "1.5", "abc", None, "9" * 19, "9" * 5000, "٣"])
def test_what_is_no_seed_is_refused(seed):
    with pytest.raises(ValueError, match=r"seed must be a whole number from 0 to 2\^62, got"):
        parse_seed(seed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pictures": 17}, "pictures must be from 1 to 16, got 17"),
        ({"pictures": 1.5}, "pictures must be a whole number, got 1.5"),
        ({"temperature": None}, "temperature must be a number, got None"),
        ({"top_k": "many"}, "top_k must be a number, got 'many'"),
        ({"subject": "a" * 1001}, "prompt must have at most 1000 characters, got 1001"),
        ({"subject": "cat\x07"}, "prompt must be without control characters"),
        ({"top_k": float("inf")}, "top_k must be a whole number, got inf"),
    ],
)
def test_what_no_control_can_hold_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        settings(**{**GIVEN, **change})
