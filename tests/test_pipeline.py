"""The pipeline: seeds, batches, guidance, completion, previews, outputs, saving, bad input."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from visual_ar.accel.exact_match import ExactMatchJacobiDecoding
from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.accel.sequential import SequentialDecoding
from visual_ar.models.llamagen import LlamaGen
from visual_ar.pipeline import VisualARPipeline

CELLS = 16
NAMES = ["cat", "dog", "frog"]
SEEDS = [5, 9, 2]
PICTURE = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1))
UPPER = torch.arange(4)[:, None].expand(4, 4) < 2


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("method", [SequentialDecoding(), ExactMatchJacobiDecoding(window=4)])
def test_a_picture_is_the_same_alone_and_in_a_batch(make_tiny_pipeline, text, method):
    pipe = make_tiny_pipeline(text=text)
    pipe.scheduler = method
    kind = "prompt" if text else "class_labels"
    asked = ["red apple", "tree", "green red tree"] if text else NAMES
    together = pipe(**{kind: asked}, seeds=SEEDS, output_type="pt")
    assert len({tuple(row) for row in together.tokens.tolist()}) == 3
    for row, (one, seed) in enumerate(zip(asked, SEEDS, strict=True)):
        alone = pipe(**{kind: one}, seeds=seed, output_type="pt")
        assert torch.equal(alone.tokens[0], together.tokens[row])
        assert torch.allclose(alone.images[0], together.images[row], atol=1e-5)


def test_methods_swap_and_exact_match_draws_what_sequential_draws(tiny_pipeline):
    sequential = tiny_pipeline(class_labels=NAMES, seeds=SEEDS, output_type="tokens")
    tiny_pipeline.scheduler = ExactMatchJacobiDecoding.from_config(
        tiny_pipeline.scheduler.config, window=6
    )
    matched = tiny_pipeline(class_labels=NAMES, seeds=SEEDS, output_type="tokens")
    assert torch.equal(matched.tokens, sequential.tokens)
    assert matched.stats.method == "ExactMatchJacobiDecoding"
    assert max(matched.stats.passes) < CELLS == max(sequential.stats.passes)


def test_pictures_of_one_prompt_stand_together(tiny_pipeline):
    twice = tiny_pipeline(class_labels=["cat", "dog"], num_images_per_prompt=2, seeds=3)
    listed = tiny_pipeline(class_labels=["cat", "cat", "dog", "dog"], seeds=[3, 4, 5, 6])
    assert torch.equal(twice.tokens, listed.tokens)
    assert twice.stats.seeds == [3, 4, 5, 6]


def test_classes_go_by_name_or_number(tiny_pipeline):
    def draw(labels):
        return tiny_pipeline(class_labels=labels, seeds=0, output_type="tokens").tokens

    for labels in (1, "1", ["dog"]):
        assert torch.equal(draw(labels), draw("dog"))
    assert not torch.equal(draw("cat"), draw("dog"))


def test_seeds_come_from_generators_and_are_recorded(tiny_pipeline):
    def seeds(**options):
        return tiny_pipeline(
            class_labels=["cat", "dog"], output_type="tokens", **options
        ).stats.seeds

    one = seeds(generator=torch.Generator().manual_seed(1))
    assert one == seeds(generator=torch.Generator().manual_seed(1))
    assert one != seeds(generator=torch.Generator().manual_seed(2))
    several = seeds(generator=[torch.Generator().manual_seed(n) for n in (1, 2)])
    assert several[0] == one[0]
    assert several[1] == seeds(generator=torch.Generator().manual_seed(2))[0]
    with torch.random.fork_rng():
        torch.manual_seed(4)
        drawn = seeds()
        torch.manual_seed(4)
        assert drawn == seeds()
    assert len(set(drawn)) == 2


@pytest.fixture
def rows(tiny_pipeline, monkeypatch):
    """Rows of every pass that the tiny pipeline's model makes."""
    seen = []
    forward = tiny_pipeline.model.forward

    def counting(x, *rest):
        seen.append(len(x))
        return forward(x, *rest)

    monkeypatch.setattr(tiny_pipeline.model, "forward", counting)
    return seen


@pytest.mark.parametrize(
    ("scale", "schedule", "factor"),
    [(1.0, "constant", 1), (1.0, "linear", 1), (2.0, "constant", 2), (2.0, "interval:0.9:1", 2)],
)
def test_unconditional_rows_exist_only_when_some_rank_is_guided(
    tiny_pipeline, rows, scale, schedule, factor
):
    output = tiny_pipeline(
        class_labels=NAMES, guidance_scale=scale, guidance_schedule=schedule, seeds=0
    )
    assert set(rows) == {factor * 3}
    assert output.stats.guided is (factor == 2)


def test_a_schedule_changes_guidance_from_the_rank_on_where_it_says(tiny_pipeline):
    labels = {"class_labels": ["cat"] * 8, "seeds": 0, "guidance_scale": 6.0}
    constant = tiny_pipeline(**labels).tokens
    half = tiny_pipeline(**labels, guidance_schedule="interval:0:0.5").tokens
    none = tiny_pipeline(**{**labels, "guidance_scale": 1.0}).tokens
    assert torch.equal(half[:, :8], constant[:, :8])
    assert not torch.equal(half[:, 8:], constant[:, 8:])
    assert not torch.equal(half, none)
    linear = tiny_pipeline.check_inputs(**labels, guidance_schedule="linear").sampling.guidance
    assert linear.shape == (8, CELLS)
    assert torch.allclose(linear[0].diff(), torch.full((CELLS - 1,), 5 / CELLS))


def test_options_left_out_are_the_pipelines_own(make_tiny_pipeline):
    own = {"guidance_scale": 3.0, "temperature": 0.5, "top_k": 5, "top_p": 0.8}
    configured = make_tiny_pipeline(**own)(class_labels="cat", seeds=1)
    given = make_tiny_pipeline()(class_labels="cat", seeds=1, **own)
    plain = make_tiny_pipeline()(class_labels="cat", seeds=1)
    assert torch.equal(configured.tokens, given.tokens)
    assert not torch.equal(configured.tokens, plain.tokens)


@pytest.mark.parametrize("method", [SequentialDecoding(), SpeculativeJacobiDecoding(window=4)])
def test_completion_keeps_the_masked_cells_and_draws_the_rest(tiny_pipeline, method):
    tiny_pipeline.scheduler = method
    codes = tiny_pipeline.image_tokenizer.encode(PICTURE[None] * 2 - 1)[0]
    output = tiny_pipeline(class_labels=["cat"] * 4, seeds=0, image=PICTURE, mask=UPPER)
    kept = UPPER.flatten()
    assert (output.tokens[:, kept] == codes[kept]).all()
    assert len({tuple(row) for row in output.tokens[:, ~kept].tolist()}) == 4


def test_completion_takes_a_picture_and_a_mask_for_each(tiny_pipeline):
    pictures = torch.stack([PICTURE, 1 - PICTURE])
    masks = torch.stack([UPPER, ~UPPER]).numpy()
    codes = tiny_pipeline.image_tokenizer.encode(pictures * 2 - 1)
    output = tiny_pipeline(class_labels=["cat", "dog"], seeds=0, image=pictures, mask=masks)
    kept = torch.from_numpy(masks).flatten(1)
    assert torch.equal(output.tokens[kept], codes[kept])
    assert not torch.equal(output.tokens[~kept], codes[~kept])


def test_a_picture_from_a_file_and_its_tensor_complete_alike(tiny_pipeline):
    array = (PICTURE.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    exact = torch.from_numpy(array).permute(2, 0, 1) / 255
    tokens = [
        tiny_pipeline(class_labels="cat", seeds=0, image=image, mask=UPPER).tokens
        for image in (Image.fromarray(array), exact)
    ]
    assert torch.equal(*tokens)


def test_results_are_in_raster_order_whatever_the_decode_order(tiny_pipeline, monkeypatch):
    asked = {"class_labels": ["cat", "dog"], "seeds": 0}
    raster = tiny_pipeline(**asked)
    order = torch.randperm(CELLS, generator=torch.Generator().manual_seed(0))
    layout = replace(tiny_pipeline.model.layout((4, 4)), order=order)
    monkeypatch.setattr(tiny_pipeline.model, "layout", lambda grid: layout)
    output = tiny_pipeline(**asked)
    assert torch.equal(output.tokens[:, order], raster.tokens)
    accepted = output.stats.acceptance_map.flatten(1)
    assert torch.equal(accepted[:, order], raster.stats.acceptance_map.flatten(1))
    codes = tiny_pipeline.image_tokenizer.encode(PICTURE[None] * 2 - 1)[0]
    completed = tiny_pipeline(**asked, image=PICTURE, mask=UPPER)
    assert (completed.tokens[:, UPPER.flatten()] == codes[UPPER.flatten()]).all()


def test_callbacks_see_every_pass(tiny_pipeline):
    seen = []

    def callback(pipe, step, committed, tensors):
        assert pipe is tiny_pipeline
        seen.append((step, committed, tensors))

    output = tiny_pipeline(
        class_labels=["cat", "dog"],
        seeds=0,
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["tokens", "known"],
    )
    assert [step for step, _, _ in seen] == list(range(CELLS))
    assert [committed for _, committed, _ in seen] == list(range(2, 2 * CELLS + 1, 2))
    for step, _, tensors in seen:
        assert torch.equal(tensors["known"], (torch.arange(CELLS) <= step).expand(2, -1))
        assert torch.equal(tensors["tokens"] >= 0, tensors["known"])
    assert torch.equal(seen[-1][2]["tokens"], output.tokens)


def test_a_callback_may_stop_the_drawing(tiny_pipeline):
    def stop(pipe, step, committed, tensors):
        assert set(tensors) == {"tokens"}
        pipe._interrupt = step == 4

    output = tiny_pipeline(class_labels="cat", seeds=0, callback_on_step_end=stop)
    whole = tiny_pipeline(class_labels="cat", seeds=0)
    assert output.stats.interrupted and not whole.stats.interrupted
    assert output.stats.passes == [5]
    assert torch.equal(output.tokens[:, :5], whole.tokens[:, :5])
    assert (output.tokens[:, 5:] == -1).all()
    assert output.images[0].size == (8, 8)
    assert output.stats.acceptance_map.flatten().tolist() == [0, 1, 2, 3, 4] + [-1] * 11


def test_a_stream_ends_with_what_the_call_returns(tiny_pipeline):
    tiny_pipeline.scheduler = SpeculativeJacobiDecoding(window=4)
    asked = {"class_labels": NAMES, "seeds": SEEDS, "output_type": "np"}
    output = tiny_pipeline(**asked)
    previews = list(tiny_pipeline.stream(**asked))
    last = previews[-1]
    assert torch.equal(last.tokens, output.tokens)
    assert np.array_equal(last.images(), output.images)
    assert last.fraction == 1
    timed = ("seconds",)
    counted = {k: v for k, v in last.stats.to_dict().items() if k not in timed}
    assert counted == {k: v for k, v in output.stats.to_dict().items() if k not in timed}
    fractions = [preview.fraction for preview in previews]
    assert fractions == sorted(set(fractions))
    assert [preview.step for preview in previews] == list(range(max(output.stats.passes)))


def test_previews_stay_as_they_were(tiny_pipeline):
    previews = list(tiny_pipeline.stream(class_labels="cat", seeds=0, output_type="pt"))
    early, last = previews[3], previews[-1]
    assert early.stats.passes == [4] and early.stats.interrupted
    assert early.known.sum() == 4 and (early.tokens[:, 4:] == -1).all()
    mean = tiny_pipeline.image_tokenizer.decode(
        last.tokens, (4, 4), known=torch.arange(CELLS)[None] < 4
    )
    assert torch.allclose(early.images(), (mean / 2 + 0.5).clamp(0, 1), atol=1e-6)
    assert not torch.allclose(early.images(), last.images())


def test_a_stream_checks_at_once_and_may_be_left(tiny_pipeline):
    with pytest.raises(ValueError, match="top_p"):
        tiny_pipeline.stream(class_labels="cat", top_p=0.0)
    for preview in tiny_pipeline.stream(class_labels="cat", seeds=0):
        if preview.step == 2:
            break
    again = [preview.step for preview in tiny_pipeline.stream(class_labels="cat", seeds=0)]
    assert again == list(range(CELLS))


def test_every_output_type(tiny_pipeline):
    def draw(output_type):
        return tiny_pipeline(class_labels=["cat", "dog"], seeds=0, output_type=output_type)

    tokens = draw("tokens")
    assert torch.equal(tokens.images, tokens.tokens)
    assert tokens.tokens.shape == (2, CELLS) and tokens.tokens.dtype == torch.int64
    pt, array, pil = draw("pt").images, draw("np").images, draw("pil").images
    assert pt.shape == (2, 3, 8, 8) and 0 <= float(pt.min()) <= float(pt.max()) <= 1
    assert array.shape == (2, 8, 8, 3)
    assert np.allclose(array, pt.permute(0, 2, 3, 1).numpy())
    assert [picture.size for picture in pil] == [(8, 8)] * 2
    assert np.abs(np.asarray(pil[1]) / 255 - array[1]).max() <= 0.5 / 255 + 1e-6
    tokenizer = tiny_pipeline.image_tokenizer
    latents = draw("latent").images
    assert torch.equal(latents, tokenizer.lookup(tokens.tokens, (4, 4)))
    expected = tokenizer.decode(tokens.tokens, (4, 4)) / 2 + 0.5
    assert torch.allclose(pt, expected.clamp(0, 1), atol=1e-6)
    images, drawn, stats = tiny_pipeline(class_labels="cat", seeds=0, return_dict=False)
    assert images[0].size == (8, 8) and drawn.shape == (1, CELLS) and stats.passes == [CELLS]
    (pt.requires_grad_() * 2).sum().backward()  # results may be trained on


def test_statistics_add_up(tiny_pipeline):
    tiny_pipeline.scheduler = SpeculativeJacobiDecoding(window=4)
    stats = tiny_pipeline(class_labels=NAMES, seeds=SEEDS).stats
    assert stats.method == "SpeculativeJacobiDecoding" and stats.lossless
    assert stats.window == stats.options["window"] == 4
    assert stats.committed_tokens == 3 * CELLS
    assert sum(k * count for k, count in stats.accepted_lengths.items()) == 3 * CELLS
    assert sum(stats.accepted_lengths.values()) == sum(stats.passes)
    assert max(stats.accepted_lengths) <= 4
    assert stats.mean_accepted_length == 3 * CELLS / sum(stats.passes)
    assert stats.step_compression == CELLS / max(stats.passes)
    assert stats.head_evaluations == 3 * 4 * max(stats.passes)
    assert stats.acceptance_map.shape == (3, 4, 4)
    by_rank = stats.acceptance_map.flatten(1)
    assert (by_rank.diff() >= 0).all()
    assert [int(row.max()) + 1 for row in by_rank] == stats.passes
    assert set(stats.seconds) == {"condition", "window", "decode", "detokenise"}
    assert all(seconds > 0 for seconds in stats.seconds.values())
    plain = json.loads(json.dumps(stats.to_dict(), allow_nan=False))
    assert plain["acceptance_map"] == stats.acceptance_map.tolist()
    assert plain["passes"] == stats.passes


def test_a_text_model_counts_its_prefill(tiny_text_pipeline, tiny_pipeline):
    assert tiny_text_pipeline("tree", seeds=0).stats.prefill_passes == 1
    assert tiny_pipeline(class_labels="cat", seeds=0).stats.prefill_passes == 0


def test_an_automatic_window_is_recorded(tiny_pipeline, tmp_path, monkeypatch):
    monkeypatch.setenv("VISUAL_AR_CACHE", str(tmp_path))
    tiny_pipeline.scheduler = SpeculativeJacobiDecoding(window="auto")
    stats = tiny_pipeline(class_labels="cat", seeds=0).stats
    stored = json.loads((tmp_path / "visual_ar" / "windows.json").read_text())
    assert list(stored.values()) == [stats.window]
    assert stats.options["window"] == "auto"


def test_the_progress_bar_counts_tokens(tiny_pipeline):
    text = io.StringIO()
    tiny_pipeline.set_progress_bar_config(file=text, mininterval=0)
    tiny_pipeline.scheduler = SpeculativeJacobiDecoding(window=4)
    tiny_pipeline(class_labels=["cat", "dog"], seeds=0)
    assert "32/32" in text.getvalue()


def test_saving_and_loading_draws_the_same(make_tiny_pipeline, tmp_path):
    for text, asked in ((True, {"prompt": "red tree"}), (False, {"class_labels": "dog"})):
        pipe = make_tiny_pipeline(text=text, temperature=0.9)
        pipe.scheduler = SpeculativeJacobiDecoding(window=3, coupling="gumbel")
        folder = tmp_path / str(text)
        pipe.save_pretrained(folder)
        again = VisualARPipeline.from_pretrained(folder)
        again.set_progress_bar_config(disable=True)
        assert type(again.scheduler) is SpeculativeJacobiDecoding
        assert again.config.temperature == 0.9
        assert again.config.class_names == pipe.config.class_names
        ours, theirs = (p(**asked, seeds=3, output_type="pt") for p in (pipe, again))
        assert torch.equal(ours.tokens, theirs.tokens)
        assert torch.equal(ours.images, theirs.images)
        assert not list(folder.rglob("*.bin"))
        again.save_pretrained(tmp_path / "again")
        for file in (tmp_path / "again").rglob("*.json"):
            assert str(tmp_path) not in file.read_text()  # no trace of where it was loaded from


def test_weights_saved_in_half_precision_load_as_float32(tiny_pipeline, tmp_path):
    tiny_pipeline.to(torch.float16).save_pretrained(tmp_path)
    again = VisualARPipeline.from_pretrained(tmp_path)
    assert again.model.dtype == again.image_tokenizer.dtype == torch.float32
    weight = tiny_pipeline.model.output.weight
    assert torch.equal(again.model.output.weight, weight.float())


def test_it_draws_in_bfloat16(make_tiny_pipeline, tmp_path):
    make_tiny_pipeline(text=True).save_pretrained(tmp_path)
    pipe = VisualARPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    assert {part.dtype for part in (pipe.model, pipe.image_tokenizer, pipe.text_encoder)} == {
        torch.bfloat16
    }
    output = pipe("red apple", seeds=0, output_type="pt")
    assert output.images.dtype == torch.float32 and output.images.isfinite().all()


def test_offloading_without_its_means_says_so(tiny_pipeline):
    with pytest.raises((ImportError, RuntimeError), match=r"requires `?accelerat"):
        tiny_pipeline.enable_model_cpu_offload()


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
    "count": (CLASS | {"num_images_per_prompt": 0}, r"num_images_per_prompt .*at least 1, got 0"),
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
    "odd width": (CLASS | {"width": 9}, r"height and width must be a size .*, got 8x9"),
    "output": (CLASS | {"output_type": "jpg"}, r"output_type must be one of pil.*, got 'jpg'"),
    "mask alone": (CLASS | {"mask": UPPER}, r"image must be given together with mask"),
    "image alone": (CLASS | {"image": PICTURE}, r"mask must be given together with image"),
    "mask shape": (CLASS | {"image": PICTURE, "mask": UPPER[:2]}, r"mask must be bool .*\[2, 4\]"),
    "mask kind": (CLASS | {"image": PICTURE, "mask": UPPER.long()}, r"mask must be bool .*int64"),
    "picture": (CLASS | {"image": WIDE, "mask": UPPER}, r"image must be 8 pixels high and 8 wide"),
    "pixels": (
        CLASS | {"image": PICTURE * 2, "mask": UPPER},
        r"image must have values in \[0, 1\]",
    ),
    "pixel kind": (
        CLASS | {"image": PICTURE.long(), "mask": UPPER},
        r"image must be a PIL .*int64",
    ),
    "transparent": (
        CLASS | {"image": Image.new("RGBA", (8, 8)), "mask": UPPER},
        r"image must be without transparency, got mode RGBA",
    ),
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
    [({"vocab_size": 17}, "one code book, got 17 and 16"), ({"grid_size": 5}, "got 8x8")],
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
