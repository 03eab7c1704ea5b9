"""The pipeline: seeds, batches, guidance, completion, saving."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from visual_ar.accel.exact_match import ExactMatchJacobiDecoding
from visual_ar.accel.jacobi import SpeculativeJacobiDecoding
from visual_ar.accel.sequential import SequentialDecoding
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
    layout = replace(tiny_pipeline.model.layout((4, 4)), cell=order)
    monkeypatch.setattr(tiny_pipeline.model, "layout", lambda grid: layout)
    output = tiny_pipeline(**asked)
    assert torch.equal(output.tokens[:, order], raster.tokens)
    accepted = output.stats.acceptance_map.flatten(1)
    assert torch.equal(accepted[:, order], raster.stats.acceptance_map.flatten(1))
    codes = tiny_pipeline.image_tokenizer.encode(PICTURE[None] * 2 - 1)[0]
    completed = tiny_pipeline(**asked, image=PICTURE, mask=UPPER)
    assert (completed.tokens[:, UPPER.flatten()] == codes[UPPER.flatten()]).all()


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
