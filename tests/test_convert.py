"""Conversion of published checkpoints: file formats, wrappers, families and refusals."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from visual_ar.conversion import convert
from visual_ar.models import llamagen
from visual_ar.models.llamagen import LlamaGen
from visual_ar.tokenizers.vq import VQTokenizer

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(autouse=True)
def small_size(monkeypatch):
    monkeypatch.setitem(llamagen.SIZES, "tiny", (2, 4, 32))


@pytest.fixture(scope="module")
def fixture():
    return load_file(FIXTURES / "llamagen.safetensors")


@pytest.fixture
def state(fixture):
    start = "c2i.state."
    return {k.removeprefix(start): t for k, t in fixture.items() if k.startswith(start)}


def check_logits(fixture, folder):
    model = LlamaGen.from_pretrained(folder).eval()
    with torch.no_grad():
        condition = model.condition(fixture["labels"], guided=False)
        logits = model.logits(fixture["tokens"], condition)
    assert torch.allclose(logits, fixture["c2i.logits"], atol=1e-5)


@pytest.mark.parametrize("wrapper", ["model", "module", "state_dict", None])
def test_every_wrapper_of_the_training_scripts(fixture, state, tmp_path, wrapper):
    state["freqs_cis"] = torch.zeros(17, 4, 2)
    state["layers.0.attention.kv_cache.k_cache"] = torch.zeros(2, 4, 16, 8)
    checkpoint = state if wrapper is None else {wrapper: state, "steps": 7}
    torch.save(checkpoint, tmp_path / "c2i.pt")
    message = convert(tmp_path / "c2i.pt", tmp_path / "new" / "folder", grid=4)
    assert message.startswith("LlamaGen with 0.0 million parameters written to")
    check_logits(fixture, tmp_path / "new" / "folder")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["folder"]


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".safetensors", "old.pt"])
def test_every_file_format(fixture, state, tmp_path, suffix):
    source = tmp_path / f"c2i{suffix}"
    if suffix == ".safetensors":
        save_file(state, source)
    else:
        torch.save(state, source, _use_new_zipfile_serialization=suffix != "old.pt")
    (tmp_path / "out").mkdir()
    convert(source, tmp_path / "out", grid=4)
    check_logits(fixture, tmp_path / "out")


def test_text_conditional_checkpoints_keep_their_null_caption(fixture, tmp_path):
    start = "t2i.state."
    state = {k.removeprefix(start): t for k, t in fixture.items() if k.startswith(start)}
    torch.save({"model": state}, tmp_path / "t2i.pt")
    convert(tmp_path / "t2i.pt", tmp_path / "out", grid=4)
    model = LlamaGen.from_pretrained(tmp_path / "out")
    key = "cls_embedding.uncond_embedding"
    assert torch.equal(model.state_dict()[key], state[key])


def test_the_type_of_the_weights_is_kept(state, tmp_path):
    torch.save({key: tensor.bfloat16() for key, tensor in state.items()}, tmp_path / "c2i.pt")
    convert(tmp_path / "c2i.pt", tmp_path / "out", grid=4)
    saved = load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}


class Unsafe:
    def __reduce__(self):
        return (os.system, ("echo",))


def refuse(source, output, error, message, grid=4):
    with pytest.raises(error, match=message) as caught:
        convert(source, output, grid=grid)
    assert "\n" not in str(caught.value)
    assert not output.exists() or not any(output.iterdir())


def test_files_that_are_no_checkpoints_are_refused(state, tmp_path):
    out = tmp_path / "out"
    refuse(tmp_path / "none.pt", out, FileNotFoundError, "checkpoint not found: .*none.pt")
    (tmp_path / "c2i.onnx").write_bytes(b"")
    refuse(tmp_path / "c2i.onnx", out, ValueError, "must end in .*, got c2i.onnx")
    for suffix, save in ((".pt", torch.save), (".safetensors", save_file)):
        whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
        save(state, whole)
        for size in (whole.stat().st_size // 2, 3, 0):
            cut.write_bytes(whole.read_bytes()[:size])
            refuse(cut, out, ValueError, "cut.* is truncated or not a checkpoint|not a checkpoint")
    torch.save({"model": Path("anything")}, tmp_path / "path.pt")
    refuse(tmp_path / "path.pt", out, ValueError, r"no parameters, only \['model'\]")
    torch.save({"model": state, "run": Unsafe()}, tmp_path / "unsafe.pt")
    refuse(tmp_path / "unsafe.pt", out, ValueError, "holds more than tensors.*posix.system")
    torch.save([1, 2], tmp_path / "list.pt")
    refuse(tmp_path / "list.pt", out, ValueError, "parameters by name, got list")
    torch.save({"model": {"epoch": 3}}, tmp_path / "empty.pt")
    refuse(tmp_path / "empty.pt", out, ValueError, r"no parameters, only \['model'\]")


@pytest.mark.parametrize(
    "pickled",  # and what torch 2.14 raises
    [
        b".",  # IndexError
        b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x02tR.",  # TypeError
        b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x02K\x03K\x04K\x05K\x06tR.",  # AttributeError
        b"X\x01\x00\x00\x00\xff.",  # UnicodeDecodeError
        b"M",  # struct.error
    ],
)
def test_damaged_pickles_are_refused_whatever_they_raise(tmp_path, pickled):
    source = tmp_path / "damaged.pt"
    source.write_bytes(b"\x80\x02" + pickled)
    message = "damaged.pt is truncated or not a checkpoint"
    refuse(source, tmp_path / "out", ValueError, message)


def test_checkpoints_that_do_not_fit_are_refused(state, tmp_path):
    source, out = tmp_path / "c2i.pt", tmp_path / "out"

    def save(**changes):
        torch.save({k: t for k, t in (state | changes).items() if t is not None}, source)

    save(**{"norm.weight": None})
    refuse(source, out, ValueError, r"lacks the parameter norm\.weight of \[32\]")
    save(**{"layers.1.attention.wo.weight": torch.zeros(32, 31)})
    refuse(source, out, ValueError, r"wo\.weight must have shape \[32, 32\], got \[32, 31\]")
    save(**{"medusa_norm.weight": torch.zeros(32)})
    refuse(source, out, ValueError, "a parameter that the model lacks: medusa_norm.weight")
    save(**{"tok_embeddings.weight": None})
    refuse(source, out, ValueError, "no LlamaGen or NAR generator and no VQ tokenizer")
    save()
    refuse(source, out, ValueError, "give it with --grid", grid=None)


def test_an_output_that_holds_something_is_refused(state, tmp_path):
    torch.save(state, tmp_path / "c2i.pt")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    for output in (tmp_path / "out", tmp_path / "out" / "mine.txt"):
        with pytest.raises(FileExistsError, match="must be a new or empty folder"):
            convert(tmp_path / "c2i.pt", output, grid=4)
    assert (tmp_path / "out" / "mine.txt").read_text() == "precious"


def test_an_interrupted_write_leaves_nothing(state, tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    torch.save(state, tmp_path / "c2i.pt")
    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(tmp_path / "c2i.pt", tmp_path / "out", grid=4)
    assert [path.name for path in tmp_path.iterdir()] == ["c2i.pt"]


@torch.no_grad()
def test_a_tokenizer_is_recognised(tmp_path):
    torch.manual_seed(0)
    tokenizer = VQTokenizer(
        channels=32,
        channel_multipliers=(1, 2),
        residual_blocks=1,
        latent_channels=32,
        codebook_size=16,
        codebook_dim=4,
    ).eval()
    state = tokenizer.state_dict() | {"quantize.codebook_used": torch.zeros(65536)}
    torch.save({"model": state}, tmp_path / "vq.pt")
    assert convert(tmp_path / "vq.pt", tmp_path / "out").startswith("VQTokenizer with ")
    again = VQTokenizer.from_pretrained(tmp_path / "out").eval()
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    tokens = again.encode(pixels)
    assert torch.equal(tokens, tokenizer.encode(pixels))
    assert torch.allclose(again.decode(tokens, (8, 8)), tokenizer.decode(tokens, (8, 8)))
