"""One reader of pictures: every mode is its 8-bit RGB copy or refused, whoever reads it."""

import colorsys
import io
import os

import numpy as np
import pytest
import torch
from picture_kinds import MODES, REFUSED, ROUNDED, of_mode
from PIL import Image
from test_uploads import bomb

from visual_ar.app.uploads import open_picture
from visual_ar.evaluation.pictures import open_pictures
from visual_ar.given_pixels import given_pixels
from visual_ar.picture_file import is_whole_png, read_picture, to_rgb
from visual_ar.size import Size

FILES = {  # a format that keeps the mode, where Pillow writes one that it can read
    **dict.fromkeys(("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "png"),
    **dict.fromkeys(("CMYK", "LAB", "PA", "RGBX", "I;16B", "I;16L"), "tif"),
}


def evaluated(path):
    [[row]] = open_pictures(path.parent).batches(1)
    return row


def completed(path):
    from visual_ar.cli.drawing import completion

    class Rows:
        class image_tokenizer:
            @staticmethod
            def grid(size):
                return 4, 4

    return np.asarray(completion(Rows, path, "0:2", None, Size(8, 8))["image"])


def given(path):
    with Image.open(path) as image:
        pixels = given_pixels(image, Size(*image.size[::-1]), 1)
    return ((pixels[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()


READERS = {
    "evaluation": evaluated,
    "command line": completed,
    "page": lambda path: np.asarray(open_picture(path)),
    "python": given,
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_its_copy(mode):
    picture, copy = of_mode(mode)
    assert picture.mode == mode
    found = to_rgb(picture)
    assert found.mode == "RGB" and picture.mode == mode
    assert np.abs(np.asarray(found, int) - copy).max() <= ROUNDED.get(mode, 1)


def from_ycbcr(pixels):
    """JFIF's formula. float [..., 3]"""
    luma, blue, red = np.moveaxis(pixels - [0, 128, 128], -1, 0)
    green = luma - 0.344136 * blue - 0.714136 * red
    return np.stack([luma + 1.402 * red, green, luma + 1.772 * blue], -1).clip(0, 255)


def from_hsv(pixels):
    rows = pixels.reshape(-1, 3) / 255
    return 255 * np.array([colorsys.hsv_to_rgb(*row) for row in rows]).reshape(pixels.shape)


@pytest.mark.parametrize(("mode", "convert"), [("YCbCr", from_ycbcr), ("HSV", from_hsv)])
def test_what_such_a_picture_holds_is_read_within_1(mode, convert):
    picture, _ = of_mode(mode)
    exact = convert(np.asarray(picture, float))
    assert np.abs(np.asarray(to_rgb(picture), float) - exact).max() <= 1


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("mode", FILES)
def test_every_reader_reads_every_mode(mode, reader, tmp_path):
    picture, copy = of_mode(mode)
    path = tmp_path / f"a.{FILES[mode]}"
    picture.save(path)
    assert np.abs(READERS[reader](path).astype(int) - copy).max() <= ROUNDED.get(mode, 1)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("mode", REFUSED)
def test_modes_without_a_white_are_refused(mode, reader, tmp_path):
    Image.new(mode, (8, 8), 100).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=f"must be a picture of mode 1, .* got mode {mode}$"):
        READERS[reader](tmp_path / "a.tif")


def test_grey_of_more_than_eight_bits_is_scaled():
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    expected = [0, 1, 128, 255]
    for name in ("PNG", "TIFF", "PPM", "JPEG2000"):  # a PPM is opened as mode I
        file = io.BytesIO()
        options = {"irreversible": False} if name == "JPEG2000" else {}
        Image.fromarray(np.tile(values, (4, 1))).save(file, name, **options)
        assert np.asarray(read_picture(file.getvalue()))[0, :, 0].tolist() == expected, name
    inverted = io.BytesIO()
    Image.fromarray(65535 - values).save(inverted, "TIFF", tiffinfo={262: 0})
    assert np.asarray(read_picture(inverted.getvalue()))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa", "P", "L", "I;16"])
def test_what_is_transparent_shows_the_ground(mode, tmp_path):
    """Black hides under the transparency, as painting programs leave it there."""
    if mode in ("P", "L", "I;16"):
        picture = Image.new(mode, (4, 2))
        picture.info["transparency"] = 0
    else:
        soft = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
        picture = soft.convert("LA").convert(mode) if mode[0] == "L" else soft.convert(mode)
    assert to_rgb(picture).getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb(picture, ground="black").getpixel((0, 0)) == (0, 0, 0)
    with pytest.raises(ValueError, match=f"without transparency, got mode {mode}"):
        to_rgb(picture, ground=None)


def test_half_transparent_pixels_are_mixed_to_the_nearest_value():
    value, alpha = np.meshgrid(np.arange(256), np.arange(256))
    mixed = np.asarray(to_rgb(Image.fromarray(np.dstack([value, alpha]).astype(np.uint8), "LA")))
    exact = (value * alpha + 255 * (255 - alpha)) / 255
    assert np.abs(mixed - exact[..., None]).max() <= 0.5


def test_a_transparent_mask_keeps_nothing(tmp_path):
    """White is kept; editors leave white or black under what was never painted."""
    from visual_ar.cli.drawing import _cells

    mask = np.zeros((4, 4, 4), np.uint8)
    mask[:, 2:] = 255  # painted white on nothing
    mask[0, 0, :3] = 255  # white that nobody sees
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert _cells(tmp_path / "mask.png", (4, 4)).tolist() == [[False, False, True, True]] * 4
    wide = np.where(mask[..., 3] > 0, 65535, 20000).astype(np.uint16)
    Image.fromarray(wide).save(tmp_path / "mask.png")
    assert _cells(tmp_path / "mask.png", (4, 4)).tolist() == [[False, False, True, True]] * 4


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_pictures_stand_upright(reader, ending, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the top is at the right
    picture = Image.new("RGB", (16, 8), "white")
    picture.paste("black", (0, 0, 8, 8))
    picture.save(tmp_path / f"a.{ending}", exif=exif)
    if reader == "python":
        with Image.open(tmp_path / f"a.{ending}") as image:
            found = np.asarray(to_rgb(image))
    else:
        found = READERS[reader](tmp_path / f"a.{ending}")
    assert found.shape == (16, 8, 3)
    assert found[:7].max() < 30 and found[9:].min() > 225


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tif"])
def test_animations_and_pages_are_refused(ending, tmp_path):
    first, second = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), "white")
    first.save(tmp_path / f"a.{ending}", save_all=True, append_images=[second])
    with pytest.raises(ValueError, match=rf"a\.{ending} must be one picture, got an animation"):
        read_picture(tmp_path / f"a.{ending}")
    first.save(tmp_path / f"b.{ending}", save_all=True, append_images=[])
    assert read_picture(tmp_path / f"b.{ending}").size == (8, 8)


def test_photographs_of_telephones_are_their_first_picture(tmp_path):
    first, second = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), "white")
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    assert read_picture(tmp_path / "a.jpg").getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize("reader", ["evaluation", "command line", "page"])
@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped", "bomb", "pipe"])
def test_damage_is_named(reader, damage, tmp_path):
    path = tmp_path / "a.png"
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    content = {
        "empty": b"",
        "text": b"not a picture",
        "cut": whole[:900],
        "flipped": whole[:500] + bytes(100) + whole[600:],
    }
    if damage == "pipe":
        path.unlink()
        os.mkfifo(path)
    elif damage == "bomb":
        bomb(path, 12_000)
    else:
        path.write_bytes(content[damage])
    named = "the upload" if reader == "page" else str(path)
    with pytest.raises(ValueError, match=f"^{named} must (be|have) "):
        READERS[reader](path)
    assert not is_whole_png(path)


@pytest.mark.parametrize("path", ["/dev/zero", "/tmp"])
def test_devices_and_folders_are_refused(path):
    with pytest.raises(ValueError, match=f"{path} must be a file, got a (device|folder)"):
        read_picture(path)


def test_python_takes_what_users_of_diffusers_give():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 4, 6, 3), np.uint8)
    expected = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
    several = (
        [Image.fromarray(one) for one in pixels],
        list(pixels),
        pixels,
        pixels / 255,
        (pixels / 255).astype(np.float32),
        list(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255),
        torch.from_numpy(pixels).permute(0, 3, 1, 2),
    )
    for given in several:
        assert torch.allclose(given_pixels(given, Size(4, 6), 2).float(), expected, atol=1e-6)
    for one in (pixels[0], [pixels[0]], [Image.fromarray(pixels[0])]):
        assert torch.allclose(given_pixels(one, Size(4, 6), 2), expected[:1], atol=1e-6)
    frames = [Image.fromarray(one) for one in pixels]
    clip = expected.transpose(0, 1)[None]
    for given in (frames, [frames], pixels, list(pixels), pixels[None]):
        assert torch.allclose(given_pixels(given, Size(4, 6, 2), 1), clip, atol=1e-6)
    assert given_pixels([frames, frames], Size(4, 6, 2), 2).shape == (2, 3, 2, 4, 6)
