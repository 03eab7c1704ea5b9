"""A picture that is shown twice is one file that is written once, and read complete at any time."""

import os

from PIL import Image

from visual_ar.app.files import as_file


def test_a_picture_becomes_a_file_that_is_written_once(tmp_path):
    red, same, blue = (Image.new("RGB", (4, 4), colour) for colour in ("red", "red", "blue"))
    path = as_file(red, tmp_path)
    before = os.stat(path)
    assert as_file(same, tmp_path) == path
    after = os.stat(path)
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    with Image.open(path) as shown:
        assert shown.getpixel((0, 0)) == (255, 0, 0)
    other = as_file(blue, tmp_path)
    assert other != path
    assert sorted(os.listdir(tmp_path)) == sorted(map(os.path.basename, (path, other)))
