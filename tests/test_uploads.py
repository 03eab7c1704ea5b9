"""Uploads are read as RGB, or refused in a sentence before they cost anything."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from visual_ar.app.uploads import check_picture, open_picture


def bomb(path, side):
    """A PNG of a few bytes that claims side x side pixels."""

    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def test_uploads_are_put_on_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    read = open_picture(tmp_path / "clear.png")
    assert read.mode == "RGB" and read.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("side", [7_000, 12_000, 60_000])
def test_decompression_bombs_are_refused_before_they_are_decoded(tmp_path, side):
    with pytest.raises(ValueError, match="upload must have at most 40,000,000 pixels"):
        open_picture(bomb(tmp_path / "bomb.png", side))
    with pytest.raises(ValueError, match="upload must have at most 40,000,000 pixels"):
        check_picture(tmp_path / "bomb.png")


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(ValueError, match="upload must be a picture"):
        open_picture(tmp_path / "text.png")
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:900])
    with pytest.raises(ValueError, match="upload must be a whole picture"):
        open_picture(tmp_path / "half.png")
    with pytest.raises(ValueError, match="upload must be a whole picture"):
        open_picture(tmp_path / "missing.png")
