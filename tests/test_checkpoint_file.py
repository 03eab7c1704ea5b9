"""Checkpoints as training runs really write them, and what people take for one."""

import argparse
import collections
import enum
import functools
import json
import os
import pathlib
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from visual_ar.checkpoint_file import read_checkpoint, unwrap
from visual_ar.conversion import convert
from visual_ar.models import llamagen
from visual_ar.models.llamagen import LlamaGen
from visual_ar.tokenizers.vq import VQTokenizer

FIXTURES = Path(__file__).parent / "fixtures"


class Mode(enum.Enum):
    FAST = 1


class Callback:
    """A class of a training script, which nobody who converts has."""

    def __init__(self):
        self.best = np.float64(0.5)


STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.float16)}
BESIDE = {
    "args": argparse.Namespace(lr=1, out=pathlib.Path("x"), dtype=torch.float16),
    "steps": np.int64(3),
    "loss": np.array([1.0, 2.0]),
    "callbacks": {Callback: {"cb": Callback(), "mode": Mode.FAST}},
    "hyper_parameters": collections.defaultdict(list, {"a": [1]}),
    "schedule": functools.partial(max, 1),
    "shapes": [torch.Size([2, 3]), torch.device("cpu"), {1, 2}, slice(1, 2), range(3)],
    "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3}]},
    "counts": collections.Counter("aab"),
}


def same(found, state=STATE):
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("beside", list(BESIDE))
def test_whatever_lies_beside_the_parameters_is_left(tmp_path, beside, zipped):
    path = tmp_path / "a.pt"
    document = {"model": collections.OrderedDict(STATE), beside: BESIDE[beside]}
    torch.save(document, path, _use_new_zipfile_serialization=zipped)
    taken = unwrap(read_checkpoint(path))
    same(taken.parameters)
    assert taken.how == f"took model and left {beside}"


@pytest.mark.parametrize("key", ["model", "module", "state_dict", "ema", "ema_state_dict"])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model."]
)
def test_prefixes_fall_away_in_any_order(key, prefix):
    taken = unwrap({key: {prefix + name: value for name, value in STATE.items()}, "steps": 3})
    same(taken.parameters)
    assert "left steps" in taken.how
    assert ("off the names" in taken.how) == bool(prefix)


def test_prefixes_fall_away_inside_names_and_never_where_only_some_have_them():
    same(unwrap({"a._orig_mod.weight": STATE["a.weight"], "b": STATE["b"]}).parameters)
    some = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert unwrap(some) == (some, "")
    with pytest.raises(ValueError, match="every parameter once"):
        unwrap({"_orig_mod.a": torch.ones(1), "a": torch.ones(1)})
    averaged = {"n_averaged": torch.tensor(5), **{f"module.{k}": v for k, v in STATE.items()}}
    same(unwrap({"ema": averaged}).parameters)


def test_the_average_is_taken_where_the_official_scripts_take_it(tmp_path):
    average = {"quantize.embedding.weight": torch.zeros(2)}
    document = {"model": {"quantize.embedding.weight": torch.ones(2)}, "ema": average, "steps": 1}
    taken = unwrap(document)
    same(taken.parameters, average)
    assert taken.how == "took the running average ema and left model, steps"
    taken = unwrap({"ema": {"tok_embeddings.weight": torch.zeros(1)}, "model": STATE})
    same(taken.parameters)
    assert taken.how == "took model and left ema"
    same(unwrap({"model": STATE, "ema": None}).parameters)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (shutil.copy, (__file__, str(self.path)))


class ByEval(Malicious):
    def __reduce__(self):
        return (eval, (f"__import__('pathlib').Path({str(self.path)!r}).touch()",))


class BySystem(Malicious):
    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("kind", [Malicious, ByEval, BySystem])
@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_of_a_file_runs(tmp_path, kind, zipped):
    path, trap = tmp_path / "a.pt", tmp_path / "ran"
    document = {"model": STATE, "args": kind(trap)}
    torch.save(document, path, _use_new_zipfile_serialization=zipped)
    try:
        same(unwrap(read_checkpoint(path)).parameters)
    except ValueError as error:
        assert kind is BySystem, error
        assert "posix" in str(error)
    assert not trap.exists()
    run, arguments = kind(trap).__reduce__()
    run(*arguments)
    assert trap.exists()  # so that the trap is one


def test_modules_of_a_file_are_never_imported(tmp_path, monkeypatch):
    (tmp_path / "trap_module.py").write_text("class Kind:\n    pass\nraised = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    import trap_module

    torch.save({"model": STATE, "args": trap_module.Kind()}, tmp_path / "a.pt")
    del sys.modules["trap_module"]
    same(unwrap(read_checkpoint(tmp_path / "a.pt")).parameters)
    assert "trap_module" not in sys.modules


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html>404</html>", "got a web page"),
        (b"PK\x03\x04cut", "is truncated or not a checkpoint: 7 bytes"),
        (b"", "is truncated or not a checkpoint: 0 bytes"),
    ],
)
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_what_people_take_for_a_checkpoint_is_named(tmp_path, content, message, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / name)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of TorchScript itself
def test_what_holds_no_parameters_by_name_is_named(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pt")
    with pytest.raises(ValueError, match=r"a whole object; save its state_dict\(\)"):
        read_checkpoint(tmp_path / "whole.pt")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pt")
    with pytest.raises(ValueError, match="got a TorchScript program"):
        read_checkpoint(tmp_path / "script.pt")
    with pytest.raises(ValueError, match=r"the folder .* holds script\.pt, whole\.pt"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_read_together(tmp_path, suffix):
    write = save_file if suffix == "safetensors" else torch.save
    places = {}
    for number, (key, value) in enumerate(STATE.items()):
        places[key] = f"model-{number}.{suffix}"
        write({key: value}, tmp_path / places[key])
    index = tmp_path / f"model.{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    same(unwrap(read_checkpoint(index)).parameters)
    for wrong in ("../a.pt", 3, "a.json", index.name):
        index.write_text(json.dumps({"weight_map": {"a": wrong}}))
        with pytest.raises(ValueError, match="must name files beside it in its weight_map"):
            read_checkpoint(index)
    index.write_text("[" * 10000)
    with pytest.raises(ValueError, match=r"must be JSON|weight_map"):
        read_checkpoint(index)


def test_what_llamagens_own_scripts_write_is_converted(tmp_path, monkeypatch):
    monkeypatch.setitem(llamagen.SIZES, "tiny", (2, 4, 32))
    start, fixture = "c2i.state.", load_file(FIXTURES / "llamagen.safetensors")
    state = {k.removeprefix(start): t for k, t in fixture.items() if k.startswith(start)}
    compiled = {f"module._orig_mod.{key}": value.double() for key, value in state.items()}
    document = {"model": compiled, "steps": 3, "args": argparse.Namespace(lr=1)}
    torch.save(document, tmp_path / "a.pt")
    report = convert(tmp_path / "a.pt", tmp_path / "out", grid=4)
    how = "took model and left steps, args; took _orig_mod. and module. off the names"
    assert report.endswith(f"written to {tmp_path / 'out'}: {how}")
    found = LlamaGen.from_pretrained(tmp_path / "out").state_dict()
    assert torch.equal(found["norm.weight"], state["norm.weight"])


def test_a_tokenizer_is_converted_from_its_average(tmp_path):
    sizes = {"channels": 32, "channel_multipliers": (1, 2), "residual_blocks": 1}
    codes = {"latent_channels": 32, "codebook_size": 16, "codebook_dim": 4}
    raw = VQTokenizer(**sizes, **codes).state_dict()
    average = {key: value + 1 for key, value in raw.items()}
    torch.save({"model": raw, "ema": average}, tmp_path / "vq.pt")
    assert "the running average ema" in convert(tmp_path / "vq.pt", tmp_path / "out")
    same(load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors"), average)
