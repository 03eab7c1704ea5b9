"""A disk that takes no more is told with the file's name, and nothing half-written is left."""

import errno
import os
import resource
from contextlib import contextmanager, suppress

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from visual_ar import eight_bit
from visual_ar.accel.loop import window_store
from visual_ar.app.files import as_file
from visual_ar.cli.suites import _write as write_suite
from visual_ar.conversion import _write as write_converted
from visual_ar.data.dataset import write_file
from visual_ar.evaluation.result import write_result
from visual_ar.png import write_png
from visual_ar.training.pixels import save_sheet
from visual_ar.training.progress import Log, save_checkpoint, write_json
from visual_ar.user_errors import sentence
from visual_ar.write_beside import clear_parts, naming, written_beside

PICTURE = Image.effect_noise((64, 64), 99).convert("RGB")
TENSORS = {"weight": torch.zeros(1000)}
LONG = {"text": "x" * 10_000}


@contextmanager
def full_disk(room=64):
    """Lets this process write no file beyond some bytes, as a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WRITERS = {
    "a picture": lambda path: write_png(PICTURE, path.with_suffix(".png"), {}),
    "a picture of the page": lambda path: as_file(PICTURE, path.parent),
    "an array": lambda path: write_file(path, lambda file: np.save(file, np.zeros(1000))),
    "arrays": lambda path: write_file(path, lambda file: np.savez(file, a=np.zeros(1000))),
    "bytes": lambda path: write_file(path, lambda file: file.write(b"x" * 10_000)),
    "a result": lambda path: write_result(LONG, path),
    "a suite": lambda path: write_suite(path, LONG),
    "a checkpoint": lambda path: save_checkpoint(path.parent, TENSORS),
    "metrics": lambda path: write_json(path, LONG),
    "a sheet": lambda path: save_sheet(path, torch.rand(4, 3, 32, 32) * 2 - 1, 2),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_full_disk_names_the_file_and_leaves_nothing(write, tmp_path):
    with full_disk(), pytest.raises(OSError, match="could not write") as told:
        write(tmp_path / "wanted")
    assert told.value.errno == errno.EFBIG
    assert sentence(told.value).startswith(f"could not write {tmp_path}/")
    assert sentence(told.value).endswith(": File too large")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_saved_is_named(tiny_pipeline, tmp_path):
    for name, save in {
        "pipeline": tiny_pipeline.save_pretrained,
        "model": lambda path: write_converted(tiny_pipeline.model, path),
    }.items():
        with full_disk(), pytest.raises(OSError, match=f"could not write .*/{name}: File too"):
            save(tmp_path / name)
    assert os.listdir(tmp_path) in ([], ["pipeline"])


def test_what_was_there_stays(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"before")
    for write in (lambda: write_json(path, LONG), lambda: write_png(PICTURE, path, {})):
        with full_disk(), pytest.raises(OSError, match="could not write"):
            write()
        assert path.read_bytes() == b"before" and os.listdir(tmp_path) == [path.name]


def test_weights_in_8_bits_stay_whole(tmp_path):
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file({"weight": torch.rand(64, 64)}, path)
    before = path.read_bytes()
    with full_disk(), pytest.raises(OSError, match=f"could not write {path}"):
        eight_bit.rewrite(tmp_path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


def test_half_a_row_of_a_log_is_taken_back(tmp_path):
    path = tmp_path / "log.csv"
    log = Log(path, 0)
    log.write({"step": 1, "loss": 1.0})
    whole = path.read_text()
    with full_disk(len(whole) + 3), pytest.raises(OSError, match=f"could not write {path}"):
        log.write({"step": 2, "loss": 123.456})
    assert path.read_text() == whole
    Log(path, 1).write({"step": 2, "loss": 2.0})
    assert path.read_text() == whole + "2,2\n"


def test_windows_that_no_disk_takes_are_measured_again(tmp_path, monkeypatch):
    monkeypatch.setenv("VISUAL_AR_CACHE", str(tmp_path))
    with full_disk():
        window_store._write({"a": LONG})
    assert os.listdir(window_store.store_path().parent) == []


def test_what_a_killed_process_left_is_cleared_and_nothing_else(tmp_path):
    for name in (".0123456789abcdef.part", ".fedcba9876543210.part"):
        (tmp_path / name).touch()
    others = [
        *("film.part", ".0123456789abcde.part", ".0123456789abcdeg.part", "0123456789abcdef.part"),
        *(".0123456789abcdef.part.png", ".0123456789ABCDEF.part"),
    ]
    for name in others:
        (tmp_path / name).touch()
    (tmp_path / ".0000000000000000.part").mkdir()
    clear_parts(tmp_path)
    kept = {*others, ".0000000000000000.part"}
    assert set(os.listdir(tmp_path)) == kept
    with suppress(KeyboardInterrupt), written_beside(tmp_path / "wanted") as part:
        part.touch()  # what is written now has the form of what is cleared
        clear_parts(tmp_path)
        assert not part.exists()
        raise KeyboardInterrupt
    assert set(os.listdir(tmp_path)) == kept


def test_errors_of_other_files_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError) as other, naming(tmp_path / "a"):
        (tmp_path / "other").read_bytes()
    assert other.value.filename == str(tmp_path / "other")
    with pytest.raises(OSError, match=r"^mine$"), naming(tmp_path / "a"):
        raise OSError("mine")
    absent = tmp_path / "no" / "a"
    with (
        pytest.raises(FileNotFoundError, match=f"could not write {absent}") as told,
        written_beside(absent) as part,
    ):
        part.write_text("{}")
    assert ".part" not in sentence(told.value)
