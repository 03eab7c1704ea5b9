"""Pictures of a measurement: folders and arrays of them, what cannot be one, crops."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_features import network, pictures, save_folder

from visual_ar.evaluation.fid import fid
from visual_ar.evaluation.pictures import Crop, open_pictures
from visual_ar.evaluation.result import read_result, write_result


def test_a_folder_and_an_npz_hold_the_same_pictures(tmp_path):
    some = pictures(5)
    save_folder(tmp_path / "folder", some)
    np.savez_compressed(tmp_path / "some.npz", arr_0=some, arr_1=np.arange(5))
    for path in (tmp_path / "folder", tmp_path / "some.npz"):
        opened = open_pictures(path)
        assert opened.count == 5
        assert (np.concatenate(list(opened.batches(2))) == some).all()
        assert [len(part) for part in opened.batches(2)] == [2, 2, 1]


def test_pictures_that_cannot_be_are_refused(tmp_path):
    save_folder(tmp_path / "mixed", pictures(2))
    Image.new("RGB", (9, 8)).save(tmp_path / "mixed" / "zz.png")
    with pytest.raises(ValueError, match="must have one size, 8x8, got one of 9x8"):
        list(open_pictures(tmp_path / "mixed").batches(2))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="must hold pictures"):
        open_pictures(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="found nothing at"):
        open_pictures(tmp_path / "none")
    with pytest.raises(ValueError, match="split must be left out"):
        open_pictures(tmp_path / "mixed", split="test")
    (tmp_path / "one").mkdir()
    for pixel, message in (((1, 2, 3, 100), "without transparency"), ((1, 2, 3, 255), None)):
        Image.new("RGBA", (4, 4), pixel).save(tmp_path / "one" / "a.png")
        if message is None:
            [[row]] = open_pictures(tmp_path / "one").batches(2)
            assert row[0, 0].tolist() == [1, 2, 3]
        else:
            with pytest.raises(ValueError, match=message):
                list(open_pictures(tmp_path / "one").batches(2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"pictures": np.zeros((2, 4, 4, 3), np.uint8)}, "must hold pictures as arr_0, got pict"),
        ({"arr_0": np.zeros((2, 4, 4, 3))}, r"must be uint8 \[N, H, W, 3\], got float64"),
        ({"arr_0": np.zeros((2, 4, 4), np.uint8)}, r"got uint8 \[2, 4, 4\]"),
        ({"arr_0": np.asfortranarray(np.zeros((2, 4, 4, 3), np.uint8))}, "row by row"),
    ],
)
def test_an_npz_of_something_else_is_refused(tmp_path, content, message):
    np.savez(tmp_path / "some.npz", **content)
    with pytest.raises(ValueError, match=message):
        open_pictures(tmp_path / "some.npz")


def test_a_truncated_npz_is_refused(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (9, 4, 4, 3)}
    )
    with zipfile.ZipFile(tmp_path / "some.npz", "w") as archive:
        archive.writestr("arr_0.npy", header.getvalue() + bytes(50))
    with pytest.raises(ValueError, match="must hold 9 pictures, got fewer"):
        list(open_pictures(tmp_path / "some.npz").batches(4))


def test_crops_are_central_squares():
    wide = Image.fromarray(np.tile(np.arange(30, dtype=np.uint8)[None, :, None], (10, 1, 3)))
    square = np.asarray(Crop(10)(wide))
    assert square.shape == (10, 10, 3) and (square[0, :, 0] == np.arange(10, 20)).all()
    assert np.asarray(Crop(5, "lanczos")(wide)).shape == (5, 5, 3)
    assert Crop(7)(Image.new("RGB", (11, 8))).size == (7, 7)
    for bad, message in ((0, "side must be"), (4, "resample must be")):
        with pytest.raises(ValueError, match=message):
            Crop(bad, "nearest")


@pytest.mark.parametrize("size", [(640, 427), (500, 334), (375, 500), (333, 500), (64, 64)])
@pytest.mark.parametrize("side", [16, 31, 64])
def test_crops_are_those_of_torchvision(size, side):
    from torchvision.transforms import CenterCrop, InterpolationMode, Resize

    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(pixels)
    filters = (("bicubic", InterpolationMode.BICUBIC), ("lanczos", InterpolationMode.LANCZOS))
    for name, mode in filters:
        expected = CenterCrop(side)(Resize(side, mode, antialias=True)(image))
        assert np.array_equal(np.asarray(Crop(side, name)(image)), np.asarray(expected))


def test_a_set_is_what_people_mean_by_its_folder(tmp_path):
    """Linked classes and files in, hidden ones out, capitals in endings, and all is counted."""
    some = pictures(12)
    save_folder(tmp_path / "real", some)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (mixed / "cats").symlink_to(tmp_path / "real", target_is_directory=True)
    (mixed / "cats again").symlink_to(mixed / "cats", target_is_directory=True)
    (mixed / "round").symlink_to(mixed, target_is_directory=True)
    for hidden in (".DS_Store", "._000.png", "__MACOSX"):
        (mixed / hidden).write_bytes(b"")
    (mixed / "notes.txt").write_text("")
    given = open_pictures(mixed)
    assert (np.concatenate(list(given.batches(5))) == some).all()
    assert given.passed_over == {".txt": 1, "folders that were read already": 2, "hidden": 3}
    told = fid(given, open_pictures(tmp_path / "real"), network(), ["fid"], allow_small=True)
    assert abs(next(iter(told["results"].values()))) < 1e-6
    assert told["inputs"]["samples"]["passed_over"] == given.passed_over
    assert told["inputs"]["reference"]["passed_over"] == {}


def test_a_folder_without_pictures_says_what_it_holds(tmp_path):
    (tmp_path / "a.gif").write_bytes(b"")
    with pytest.raises(ValueError, match=r"found none, only 1 \.gif"):
        open_pictures(tmp_path)


def test_a_result_names_every_folder_that_can_be(tmp_path):
    name = os.fsdecode(tmp_path / os.fsdecode(b"m\xe4rz"))  # Latin-1, as old archives hold it
    save_folder(Path(name), pictures(2))
    some = open_pictures(Path(name))
    told = fid(some, some, network(), ["fid"], allow_small=True)
    write_result(told, tmp_path / "result.json")
    assert read_result(tmp_path / "result.json")["inputs"]["samples"]["path"] == name
