"""Saved folders damaged in every way: loaded, or refused in one sentence, soon and in little room.

What is damaged is drawn from a seed, so that a folder that fails can be made again.
"""

import json
import os
import random
import resource
import shutil
import sys
import time

import pytest

from visual_ar import VisualARPipeline, loading
from visual_ar.accel.denoising import SpeculativeDenoisingDecoding
from visual_ar.cli.info import model as described
from visual_ar.models.denoising import DenoisingLlamaGen
from visual_ar.training.bundle import save_delta, share

MUTATIONS = 160
SECONDS, MEGABYTES = 5, 500
ODD = [
    *(None, True, -1, 0, 3, 10**9, 2**70, 0.5, -1e308, "", "x", "\x1b]0;title\x07", "../../etc"),
    *([], [None], [1, {}], ["a"], ["a", "b", "c"], {}, {"a": None}, [[]], "x" * 100_000),
]

SPOILT = ["", "{", "[" * 100_000, "[]", "null", '{"a": NaN}', "\ufeff{}", "9" * 5000]
pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")


def _places(document, path=()):
    """Paths to every value of a document."""
    if path:
        yield path
    entries = []
    if isinstance(document, dict):
        entries = list(document.items())
    elif isinstance(document, list):
        entries = list(enumerate(document))
    for key, value in entries:
        yield from _places(value, (*path, key))


def _edit(file, chance):
    """Replaces, removes or adds one value of a JSON file."""
    document = json.loads(file.read_text())
    *where, last = chance.choice(list(_places(document)))
    inside = document
    for key in where:
        inside = inside[key]
    how = chance.choice(["replace"] * 6 + ["remove", "add"])
    if how == "replace":
        inside[last] = chance.choice(ODD)
    elif how == "remove":
        del inside[last]
    else:
        document[chance.choice(["_base", "_shared", "model", "extra"])] = chance.choice(ODD)
    file.write_text(json.dumps(document))
    return f"{how} {[*where, last]} of {file.name}"


def _spoil_text(file, chance):
    """Writes something into a JSON file that is no JSON of ours."""
    text = chance.choice(SPOILT)
    file.write_text(text)
    return f"{text[:10]!r} as {file.name}"


def _spoil_bytes(file, chance):
    """Cuts a file or changes bytes near its beginning."""
    content = bytearray(file.read_bytes())
    if chance.random() < 0.5:
        del content[chance.randrange(len(content)) :]
    else:
        for _ in range(8):
            content[chance.randrange(min(len(content), 400))] = chance.randrange(256)
    file.write_bytes(content)
    return f"bytes of {file.name}"


def _displace(file, chance):
    """Puts something that is no file in its place."""
    file.unlink()
    kind = chance.choice(["nothing", "pipe", "folder", "loop", "device"])
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "loop":
        file.symlink_to(file.name)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    return f"{kind} instead of {file.name}"


def damage(folder, chance):
    """Damages a saved folder in one way, and says how."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    texts = [file for file in files if file.suffix == ".json"]
    way = chance.choices([_edit, _spoil_text, _spoil_bytes, _displace], [10, 2, 3, 3])[0]
    return way(chance.choice(files if way in (_spoil_bytes, _displace) else texts), chance)


def check(act, folder, what):
    """Runs what reads a damaged folder; returns why it refused, if it did."""
    start = time.monotonic()
    try:
        act(folder)
        refused = None
    except (ValueError, OSError) as error:
        refused = str(error)
        assert refused and "\n" not in refused.strip(), (what, refused)
    assert time.monotonic() - start < SECONDS, what
    return refused


@pytest.fixture
def whole(tiny_text_pipeline, tiny_pipeline, tmp_path, monkeypatch):
    """Saved pipelines: of words, of classes, one in shards that shares a part, one that adds."""
    words, classes, shares, adds = (
        tmp_path / name for name in ("words", "classes", "shares", "adds")
    )
    monkeypatch.setattr(loading, "bundled", lambda: {"words": words})
    tiny_text_pipeline.save_pretrained(words)
    tiny_pipeline.save_pretrained(classes)
    tiny_text_pipeline.save_pretrained(shares, max_shard_size=4000)
    share(shares, "text_encoder", "words")
    added = DenoisingLlamaGen.from_base(tiny_text_pipeline.model, {"adapter_dim": 4})
    made_for = loading.fingerprint(words / "model")
    save_delta(added, "words", made_for, SpeculativeDenoisingDecoding(), adds)
    return [words, classes, shares, adds]


def test_folders_that_are_whole_are_loaded(whole):
    for folder in whole:
        assert check(VisualARPipeline.from_pretrained, folder, folder.name) is None
        assert check(described, f"{folder}/", folder.name) is None


def test_a_base_that_has_a_base_is_refused(whole, monkeypatch):
    """As a folder of the hub can, which names itself with the fingerprint of its own weights."""
    adds = whole[3]
    monkeypatch.setattr(loading, "bundled", lambda: {"words": adds})
    path = adds / "model_index.json"
    own = loading.fingerprint(adds / "model")
    path.write_text(json.dumps({**json.loads(path.read_text()), "_base_sha256": own}))
    refused = check(VisualARPipeline.from_pretrained, adds, "circle")
    assert refused == "_base must be a whole pipeline, got 'words', which has one too"


def test_a_header_that_no_model_needs_is_refused(whole):
    file = whole[1] / "model" / "diffusion_pytorch_model.safetensors"
    file.write_bytes((2**26).to_bytes(8, "little") + b"{")
    for act in (VisualARPipeline.from_pretrained, described):
        assert "its header has at most" in check(act, f"{whole[1]}/", "header")


def test_buffers_are_no_parameters(whole, tiny_text_pipeline):
    model = tiny_text_pipeline.model
    assert "cls_embedding.uncond_embedding" in dict(model.named_buffers())
    told = described(f"{whole[0]}/")["components"]["model"]["parameters"]
    assert told == sum(weight.numel() for weight in model.parameters())


@pytest.mark.skipif(sys.platform == "win32", reason="has no pipes among its files")
def test_damaged_folders_are_refused_in_a_sentence(whole, tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for seed in range(MUTATIONS):
        chance = random.Random(seed)
        folder = tmp_path / "damaged"
        shutil.copytree(chance.choice(whole), folder)
        what = f"seed {seed}: {damage(folder, chance)}"
        refused += check(VisualARPipeline.from_pretrained, folder, what) is not None
        check(described, f"{folder}/", what)
        shutil.rmtree(folder)
    assert refused > MUTATIONS // 2
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < MEGABYTES


@pytest.mark.parametrize("key", ["n_layer", "dim", "n_head", "vocab_size"])
@pytest.mark.parametrize("value", [10**9, -1, 0, 7, None, "1", [2]])
def test_no_config_asks_for_more_than_the_weights_hold(whole, key, value):
    path = whole[1] / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    assert check(VisualARPipeline.from_pretrained, whole[1], (key, value)) is not None


@pytest.mark.parametrize("key", ["_base", "_shared"])
@pytest.mark.parametrize("value", [None, 3, [], ["a", 1], {"model": 3}, ".", "{folder}"])
def test_a_folder_that_needs_itself_or_nonsense_is_refused(whole, key, value):
    path = whole[1] / "model_index.json"
    value = str(whole[1]) if value == "{folder}" else value
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    refused = check(VisualARPipeline.from_pretrained, whole[1], (key, value))
    assert refused is not None or value == []
