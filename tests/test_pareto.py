"""The speed-against-quality suite: what it measures, what it writes, and what it refuses."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from visual_ar.cast import Cast
from visual_ar.cli.main import app
from visual_ar.data.dataset import Dataset, digest, save
from visual_ar.evaluation import pareto as pareto_module
from visual_ar.evaluation.features import EfficientNetLite0Features
from visual_ar.evaluation.frechet import frechet_distance, statistics
from visual_ar.evaluation.pareto import WITH_DENOISING, WITH_HEAD, Asked, pareto, suite
from visual_ar.evaluation.pareto_chart import save_chart, table, values
from visual_ar.evaluation.quality import Features, choose, to_pixels
from visual_ar.evaluation.speed import Schedule
from visual_ar.evaluation.workload import source
from visual_ar.method_options import parse_method
from visual_ar.models.draft_head import DraftHead
from visual_ar.testing import ToyBitModel
from visual_ar.tokens.bits import Bits
from visual_ar.tokens.subcodes import Subcodes

METHODS = ("jacobi:window=4", "jacobi:window=4,rule=omega/omega=3")
SCHEDULE = Schedule(pictures=1, batches=(1,), rounds=1, warmup=0)


@pytest.fixture
def dataset():
    pictures = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)
    prompts = ["red apple", "green apple", "red tree", "green tree"]
    items = [
        {"prompt": prompts[i % 4], "group": prompts[i % 4], "split": "train"} for i in range(8)
    ]
    manifest = {
        "name": "emoji",
        "shape": list(pictures.shape),
        "pictures_sha256": digest(pictures),
        "counts": {"train": 8},
    }
    return Dataset("emoji", pictures, ["train"] * 8, items, manifest=manifest)


def coarse(pixels):
    return torch.nn.functional.avg_pool2d(pixels, 4).flatten(1)


def measure(pipe, dataset, prompts=4):
    features, asked = Features(coarse, "coarse", batch=2), Asked(prompts)
    return pareto(pipe, "tiny", dataset, features, ["red"], METHODS, schedule=SCHEDULE, asked=asked)


def test_speed_and_quality_stand_side_by_side(tiny_text_pipeline, dataset):
    document = measure(tiny_text_pipeline, dataset)
    assert json.dumps(document)
    assert [method["name"] for method in document["methods"]] == ["sequential", *METHODS]
    for method in document["methods"]:
        assert 0 <= method["quality"]["hit_rate_top_5"] <= 1
        assert set(values(method)) == {"compression", "speedup", *method["quality"]}
    sequential, lossless, lossy = document["methods"]
    assert values(sequential)["compression"] == 1
    assert lossless["lossless"] and not lossy["lossless"]
    assert lossy["batches"][0]["total_variation"] > 0


def test_the_distances_are_those_of_the_pictures_that_were_drawn(tiny_text_pipeline, dataset):
    pipe = tiny_text_pipeline
    document = measure(pipe, dataset)
    prompts = choose(dataset.prompts, 4, 0)

    def drawn(method, seed):
        pipe.scheduler = parse_method(method)
        arrays = pipe(prompts, seeds=list(range(seed, seed + 4)), output_type="np").images
        pixels = torch.from_numpy(np.asarray(arrays)).permute(0, 3, 1, 2).float() * 2 - 1
        return statistics(coarse((pixels * 127.5 + 127.5).round() / 127.5 - 1))

    again, data = drawn("sequential", 4), statistics(coarse(to_pixels(dataset.pictures)))
    for method in document["methods"]:
        own = drawn(method["name"], 0)
        quality = method["quality"]
        expected = frechet_distance(*own, *again)
        assert quality["distance_to_sequential"] == pytest.approx(expected, rel=1e-3, abs=1e-4)
        expected = frechet_distance(*own, *data)
        assert quality["distance_to_data"] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_the_chart_and_the_table_show_every_method(tiny_text_pipeline, dataset, tmp_path):
    document = measure(tiny_text_pipeline, dataset)
    save_chart(document, tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as picture:
        assert picture.width > 800 and picture.height > 600
        colours = {tuple(c[:3]) for _, c in picture.convert("RGB").getcolors(1 << 24)}
    assert {(0x1F, 0x6F, 0xEB), (0xD1, 0x57, 0x0B)} <= colours  # lossless and lossy
    assert not list(tmp_path.glob("*.part"))
    console = Console(width=160, record=True)
    console.print(table(document))
    text = console.export_text()
    for name in ("sequential", "jacobi window=4", "rule=omega/omega=3 (lossy)"):
        assert name in text


def test_every_method_of_the_suite_exists(tiny_text_pipeline):
    assert not set(suite(tiny_text_pipeline)) & {*WITH_HEAD, *WITH_DENOISING}
    for name in (*suite(tiny_text_pipeline), *WITH_HEAD, *WITH_DENOISING):
        parse_method(name)


@pytest.mark.parametrize(
    "kind", [Bits(2), Subcodes(2, 1, 6, lambda hidden, given: hidden)], ids=["bits", "subcodes"]
)
def test_models_of_bits_have_a_suite_that_they_can_serve(kind, monkeypatch):
    model = ToyBitModel(2, (80,))
    monkeypatch.setattr(ToyBitModel, "tokens", kind)
    names = suite(SimpleNamespace(model=model))
    assert "sequential" in names and any("hamming" in n for n in names) == (type(kind) is Bits)
    for name in names:
        parse_method(name).check(Cast(model, model.layout((80,))))


def test_a_draft_head_brings_its_methods(tiny_text_pipeline):
    model = tiny_text_pipeline.model
    tiny_text_pipeline.register_modules(draft_head=DraftHead.start_from(model))
    assert set(WITH_HEAD) < set(suite(tiny_text_pipeline))


def test_what_cannot_be_measured_is_refused(tiny_text_pipeline, dataset):
    with pytest.raises(ValueError, match="prompts must be at least 2, got 1"):
        measure(tiny_text_pipeline, dataset, prompts=1)
    with pytest.raises(ValueError, match=r"prompts must be in 1\.\.4, got 5"):
        measure(tiny_text_pipeline, dataset, prompts=5)
    bare = Dataset("cifar10", dataset.pictures, dataset.splits, labels=np.zeros(8, np.int64))
    with pytest.raises(ValueError, match="dataset must have captions, cifar10 has none"):
        measure(tiny_text_pipeline, bare)


def test_the_command_writes_a_chart_and_draws_nothing_twice(
    tiny_text_pipeline, dataset, tmp_path, monkeypatch
):
    forward = EfficientNetLite0Features.forward

    def some(self, pixels):
        return forward(self, pixels)[:, :32]  # distances between all of them take seconds

    monkeypatch.setattr(EfficientNetLite0Features, "forward", some)
    tiny_text_pipeline.save_pretrained(tmp_path / "tiny")
    save(dataset, tmp_path / "data")
    words = ["bench", "--device", "cpu", "--suite", "pareto", "--model", str(tmp_path / "tiny")]
    amount = ["--pictures", "1", "--rounds", "1", "--warmup", "0", "--asked", "4"]
    files = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "out")]
    arguments = [*words, *amount, *files, "--methods", " ".join(METHODS), "--prompts", "red"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "pareto.png" in result.output.replace("\n", "")
    document = json.loads((tmp_path / "out" / "pareto.json").read_text())
    assert document["quality"]["prompts"] == 4
    assert (tmp_path / "out" / "pareto.png").stat().st_size > 0
    monkeypatch.setattr(pareto_module, "source", lambda *given: source(*given)._replace(draw=None))
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0, again.output
    same = json.loads((tmp_path / "out" / "pareto.json").read_text())
    for before, after in zip(document["methods"], same["methods"], strict=True):
        assert after["quality"] == before["quality"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--suite", "fast"], "suite must be one of pareto, families, got 'fast'"),
        (["--suite", "pareto", "--data", "nowhere"], "which does not exist; visual-ar data emoji"),
        (["--output", "out"], "output must be left out without --suite, got out"),
        (["--data", "one"], "data must be left out without --suite, got one"),
        (["--asked", "9"], "asked must be left out without --suite, got 9"),
        (["--suite", "pareto", "--data", "one", "--data", "two"], "data must be given once with"),
        (["--suite", "families", "-m", "emoji"], "model must be left out with --suite families"),
        (["--suite", "families", "--output", "out"], "output must be left out with --suite"),
        (["--suite", "families", "--draft-model", "one"], "draft_model must be left out with"),
        (["--suite", "families", "--methods", "a b"], "methods must be left out with --suite"),
        (["--suite", "families", "--asked", "9"], "asked must be left out without --data, which"),
    ],
)
def test_bad_suites_and_options_of_others_are_refused_before_any_work(words, message):
    result = CliRunner().invoke(app, ["bench", "--device", "none", *words])
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())
