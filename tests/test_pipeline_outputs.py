"""What a pipeline gives: callbacks, previews, kinds of output, statistics, the progress bar."""

import io
import json

import numpy as np
import pytest
import torch

from visual_ar.accel.jacobi import SpeculativeJacobiDecoding

CELLS = 16
NAMES = ["cat", "dog", "frog"]
SEEDS = [5, 9, 2]


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
    assert [entry["window"] for entry in stored.values()] == [stats.window]
    assert stats.options["window"] == "auto"


def test_the_progress_bar_counts_tokens(tiny_pipeline):
    text = io.StringIO()
    tiny_pipeline.set_progress_bar_config(file=text, mininterval=0)
    tiny_pipeline.scheduler = SpeculativeJacobiDecoding(window=4)
    tiny_pipeline(class_labels=["cat", "dog"], seeds=0)
    assert "32/32" in text.getvalue()
