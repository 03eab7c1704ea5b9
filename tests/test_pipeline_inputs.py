"""What a pipeline refuses: bad calls, options and components, each named before any work."""

import numpy as np
import pytest
import torch
from PIL import Image

from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.models.llamagen import LlamaGen
from visual_ar.pipeline import VisualARPipeline

PICTURE = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1))
UPPER = torch.arange(4)[:, None].expand(4, 4) < 2
CLASS = {"class_labels": "cat"}
WIDE = torch.rand(3, 8, 10)
BAD_CALLS = {
    "no class": ({}, r"class_labels must be given .*0\.\.2 or cat, dog, frog.*got None"),
    "no classes": ({"class_labels": []}, r"class_labels must be given"),
    "prompt of a class model": ({"prompt": "cat"}, r"prompt must be left out .*got 'cat'"),
    "class name": ({"class_labels": "cot"}, r"cat, dog, frog, got 'cot'; did you mean 'cat'\?"),
    "class number": ({"class_labels": [0, 3]}, r"class_labels must be in 0\.\.2.*got 3"),
    "negative class": ({"class_labels": -1}, r"class_labels must be in 0\.\.2.*got -1"),
    "class kind": ({"class_labels": [1.5]}, r"class_labels must be in 0\.\.2.*got 1.5"),
    "class alone": ({"class_labels": 1.5}, r"class_labels must be in 0\.\.2.*got 1.5"),
    "count": (
        CLASS | {"num_images_per_prompt": 0},
        r"num_images_per_prompt .*from 1 to 65536, got 0",
    ),
    "guidance": (CLASS | {"guidance_scale": -1.0}, r"guidance_scale must be at least 0, got -1"),
    "guidance kind": (CLASS | {"guidance_scale": "2"}, r"guidance_scale must be a number, got '2'"),
    "schedule": (CLASS | {"guidance_schedule": "cosine"}, r"guidance_schedule must be.*'cosine'"),
    "temperature": (CLASS | {"temperature": -0.5}, r"temperature must be above 0, .*, got -0.5"),
    "top_k": (CLASS | {"top_k": -1}, r"top_k must be a whole number of at least 0, got -1"),
    "top_p": (CLASS | {"top_p": 1.5}, r"top_p must be in \(0, 1\], got 1.5"),
    "seeds length": (CLASS | {"seeds": [1, 2]}, r"seeds must have one entry .* 1 pictures, got 2"),
    "seed": (CLASS | {"seeds": -1}, r"seeds must be a whole number of at least 0, got -1"),
    "large seed": (CLASS | {"seeds": 2**63}, r"seed must be in \[0, 2\^63\)"),
    "seed kind": (CLASS | {"seeds": ["a"]}, r"seeds must be a whole number .* got 'a'"),
    "seed alone": (CLASS | {"seeds": 1.5}, r"seeds must be a whole number .* got 1.5"),
    "generator": (CLASS | {"generator": 42}, r"generator must be a torch.Generator .*got 42"),
    "generators": (CLASS | {"generator": [torch.Generator()] * 2}, r"generator must have one"),
    "both": (CLASS | {"seeds": 1, "generator": torch.Generator()}, r"generator must be left out"),
    "height": (CLASS | {"height": 16}, r"height and width must be a size .*, got 16x8"),
    "height kind": (CLASS | {"height": "8"}, r"height must be a whole number .*got '8'"),
    "odd width": (CLASS | {"width": 9}, r"width must be a positive multiple of 2, got 9"),
    "output": (CLASS | {"output_type": "jpg"}, r"output_type must be one of pil.*, got 'jpg'"),
    "mask alone": (CLASS | {"mask": UPPER}, r"image must be given together with mask"),
    "image alone": (CLASS | {"image": PICTURE}, r"mask must be given together with image"),
    "mask shape": (CLASS | {"image": PICTURE, "mask": UPPER[:2]}, r"mask must be bool .*\[2, 4\]"),
    "mask kind": (CLASS | {"image": PICTURE, "mask": UPPER.long()}, r"mask must be bool .*int64"),
    "picture as mask": (
        CLASS | {"image": PICTURE, "mask": Image.new("1", (4, 4))},
        r"mask must be bool of shape .*, True where it is kept, got Image",
    ),
    "picture": (CLASS | {"image": WIDE, "mask": UPPER}, r"image must be 8 pixels high and 8 wide"),
    "pixels": (
        CLASS | {"image": PICTURE * 2, "mask": UPPER},
        r"image must have values in \[0, 1\]",
    ),
    "pixel kind": (
        CLASS | {"image": PICTURE.long(), "mask": UPPER},
        r"image must be a PIL .*int64",
    ),
    "picture mode": (
        CLASS | {"image": Image.new("F", (8, 8)), "mask": UPPER},
        r"image must be a picture of mode 1, .*, got mode F",
    ),
    "array kind": (
        CLASS | {"image": np.zeros((8, 8, 3), np.uint16), "mask": UPPER},
        r"image must be a PIL .*uint16",
    ),
    "picture sizes": (
        CLASS | {"image": [Image.new("L", (8, 8)), Image.new("L", (8, 9))], "mask": UPPER},
        r"image must be a list of one size, got \[\[3, 8, 8\], \[3, 9, 8\]\]",
    ),
    "no pictures": (CLASS | {"image": [], "mask": UPPER}, r"image must be a PIL .*got list"),
    "tensors": (
        CLASS | {"callback_on_step_end_tensor_inputs": ["latents"]},
        r"callback_on_step_end_tensor_inputs must be among tokens, known, got 'latents'",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_input_is_named_before_any_work(tiny_pipeline, rows, name):
    call, message = BAD_CALLS[name]
    with pytest.raises(ValueError, match=message):
        tiny_pipeline(**call)
    assert rows == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({}, "prompt must be given"),
        ({"prompt": ""}, "prompt must be text that is not empty, got ''"),
        ({"prompt": ["tree", " "]}, "prompt must be text that is not empty, got ' '"),
        ({"prompt": 3}, "prompt must be text that is not empty, got 3"),
        ({"prompt": ["tree", 3]}, "prompt must be text that is not empty, got 3"),
        ({"class_labels": 1}, "class_labels must be left out for this text-conditional model"),
        ({"prompt": "red green red tree"}, "prompt must have at most 3 words"),
    ],
)
def test_bad_prompts_are_named(tiny_text_pipeline, call, message):
    with pytest.raises(ValueError, match=message):
        tiny_text_pipeline.stream(**call)


def test_bad_input_leaves_the_generator_alone(tiny_pipeline):
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    with pytest.raises(ValueError, match="top_p"):
        tiny_pipeline(class_labels="cat", generator=generator, top_p=2.0)
    assert torch.equal(generator.get_state(), before)


def test_a_method_that_cannot_serve_is_refused(tiny_pipeline):
    tiny_pipeline.scheduler = SpeculativeJacobiDecoding(init="previous-frame")
    with pytest.raises(ValueError, match="previous-frame"):
        tiny_pipeline.stream(class_labels="cat")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": ["cat"]}, "class_names must have one name for each of 3 classes, got 1"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"guidance_schedule": "no"}, "guidance_schedule must be"),
    ],
)
def test_a_pipeline_with_bad_options_is_refused(make_tiny_pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        make_tiny_pipeline(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 17}, "same tokens, got codes of 17 and codes of 16"),
        ({"grid_size": 5}, "got 8x8"),
    ],
)
def test_components_that_do_not_fit_are_refused(tiny_pipeline, options, message):
    parts = tiny_pipeline.components
    parts["model"] = LlamaGen.from_config(tiny_pipeline.model.config, **options)
    with pytest.raises(ValueError, match=message):
        VisualARPipeline(**parts, height=8, width=8)


def test_a_text_model_without_encoder_says_so(tiny_text_pipeline):
    tiny_text_pipeline.text_encoder = None
    with pytest.raises(ValueError, match="text_encoder must be given"):
        tiny_text_pipeline("tree")


def test_conditioners_that_do_not_fit_the_model_are_refused(make_tiny_pipeline):
    classes, texts = make_tiny_pipeline(), make_tiny_pipeline(text=True)
    other = dict(texts.text_encoder.config)
    narrow = {k: v for k, v in other.items() if not k.startswith("_")} | {"feature_dim": 5}
    short = narrow | {"feature_dim": other["feature_dim"], "length": other["length"] + 1}
    build = type(texts.text_encoder)
    for pipe, encoder, message in (
        (classes, texts.text_encoder, "text_encoder must be left out for a model of 3 classes"),
        (texts, build(**narrow), "must give features of the .* numbers that LlamaGen reads, got 5"),
        (texts, build(**short), "the condition must have .* prefix tokens for LlamaGen, got"),
    ):
        parts = {**pipe.components, "text_encoder": encoder}
        with pytest.raises(ValueError, match=message):
            VisualARPipeline(**parts, height=8, width=8)
