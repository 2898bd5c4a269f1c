"""Whatever Pillow can open becomes upright RGB; whatever is unsafe or broken is a bad item with its reason."""

import io
import os
import re
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from blip3o_hf.data.images import as_input_image, decode_image
from blip3o_hf.data.records import BadItem


def encoded(image, image_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def noise(mode="RGB", size=(64, 48)):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def huge_png(width, height):
    """A valid PNG header and nearly no pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def pixel(data):
    image = decode_image(data, "k")
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


@pytest.mark.parametrize(
    ("mode", "color", "image_format", "expected"),
    [
        ("RGB", (10, 20, 30), "PNG", (10, 20, 30)),
        ("L", 100, "PNG", (100, 100, 100)),
        ("1", 1, "PNG", (255, 255, 255)),
        ("LA", (0, 0), "PNG", (255, 255, 255)),
        ("RGBA", (255, 0, 0, 255), "PNG", (255, 0, 0)),
        ("RGBA", (255, 0, 0, 0), "PNG", (255, 255, 255)),
        ("RGBA", (0, 0, 0, 128), "PNG", (127, 127, 127)),
        ("CMYK", (0, 0, 0, 255), "TIFF", (0, 0, 0)),
        ("I;16", 65535, "PNG", (255, 255, 255)),
        ("I;16", 257 * 40, "PNG", (40, 40, 40)),
    ],
)
def test_modes_become_rgb(mode, color, image_format, expected):
    assert pixel(encoded(Image.new(mode, (4, 4), color), image_format)) == expected


def test_palettes_become_rgb_with_and_without_transparency():
    palette = Image.new("RGB", (4, 4), (0, 0, 255)).quantize(4)
    assert pixel(encoded(palette)) == (0, 0, 255)
    assert pixel(encoded(palette, transparency=palette.getpixel((0, 0)))) == (255, 255, 255)


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (0, 0, 10, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    upright = decode_image(encoded(image, "JPEG", exif=exif), "k")
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 2))[0] > 200 and upright.getpixel((10, 38))[0] < 50


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    assert pixel(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) == (255, 0, 0)
    assert pixel(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)) == (255, 0, 0)


@pytest.mark.parametrize("size", [(8000, 8001), (12000, 12000), (60000, 60000)])
def test_too_many_pixels_are_refused_without_reading_or_warning(size):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BadItem, match=r"a.tar:7: .*pixels"):
            decode_image(huge_png(*size), "a.tar:7")


def test_limits_are_settings():
    data = encoded(noise())
    with pytest.raises(BadItem, match="image of 64 x 48 pixels, more than max_pixels 1000"):
        decode_image(data, "k", max_pixels=1000)
    with pytest.raises(BadItem, match="image of 64 x 48 pixels, less than min_size 49"):
        decode_image(data, "k", min_size=49)
    assert decode_image(data, "k", max_pixels=64 * 48, min_size=48).size == (64, 48)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_truncated_file_is_a_bad_item(image_format):
    data = encoded(noise(), image_format)
    with pytest.raises(BadItem, match="k: not a readable image"):
        decode_image(data[: len(data) // 2], "k")


def test_what_is_no_image_is_a_bad_item(tmp_path):
    for data in (b"", b"<html>404</html>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", huge_png(4, 4)):
        with pytest.raises(BadItem, match="k: not a readable image"):
            decode_image(data, "k")
    with pytest.raises(BadItem, match=r"k: no image file at .*none.png"):
        decode_image(tmp_path / "none.png", "k")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(BadItem, match=r"k: no image file at .*pipe.png"):  # nobody ever writes into it
        decode_image(tmp_path / "pipe.png", "k")
    with pytest.raises(BadItem, match="floating-point pixels have no stated range"):
        decode_image(encoded(Image.new("F", (4, 4)), "TIFF"), "k")


@pytest.mark.parametrize(
    ("low", "high"), [(0, 2**31 - 1), (0, 100_000), (-5, 5), (0, 255), (0, 1000), (10_280, 10_280), (0, 0)]
)
def test_32_bit_integers_are_refused_as_floating_point_is(low, high):
    pixels = np.linspace(low, high, 16).astype(np.int32).reshape(4, 4)
    with pytest.raises(BadItem, match=f"32-bit integer pixels, here {low} to {high}, have no stated range; save 8 or"):
        decode_image(encoded(Image.fromarray(pixels), "TIFF"), "k")
    with pytest.raises(ValueError, match="32-bit integer pixels"):
        as_input_image(Image.fromarray(pixels))


def test_a_png_of_16_bits_is_read_also_where_pillow_opens_it_with_32(tmp_path):
    Image.new("I;16", (4, 4), 257 * 40).save(tmp_path / "a.png")
    opened = Image.open(tmp_path / "a.png")
    assert as_input_image(opened).getpixel((0, 0)) == (40, 40, 40)
    older = Image.new("I", (4, 4), 257 * 40)
    older.format = "PNG"
    assert as_input_image(older).getpixel((0, 0)) == (40, 40, 40)


# What a user gives


def test_a_picture_an_array_and_a_path_are_one_image(tmp_path):
    image = noise()
    image.save(tmp_path / "a.png")
    array = np.asarray(image)
    for given in (image, array, array.copy(order="F"), tmp_path / "a.png", str(tmp_path / "a.png")):
        taken = as_input_image(given)
        assert (taken.mode, taken.size) == ("RGB", image.size)
        assert np.array_equal(taken, image)


def test_arrays_may_be_grey_or_have_transparency():
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    assert np.array_equal(as_input_image(grey), np.stack([grey] * 3, axis=-1))
    clear = np.zeros((6, 8, 4), np.uint8)
    assert np.array_equal(as_input_image(clear), np.full((6, 8, 3), 255))


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("L", 100, (100, 100, 100)),
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
        ("CMYK", (0, 0, 0, 255), (0, 0, 0)),
        ("I;16", 257 * 40, (40, 40, 40)),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_an_opened_image_of_any_mode_becomes_rgb(mode, color, expected):
    given = Image.new(mode, (4, 4), color)
    assert as_input_image(given).getpixel((0, 0)) == expected
    assert given.mode == mode


def test_a_photo_is_turned_upright_and_an_animation_is_its_first_frame(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise().save(tmp_path / "turned.jpg", exif=exif)
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    for given in (str, Image.open):
        assert as_input_image(given(tmp_path / "turned.jpg")).size == (48, 64)
        assert as_input_image(given(tmp_path / "moving.gif")).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("image", "received"),
    [
        (None, "NoneType"),
        (b"123", "bytes"),
        ([[0]], "list"),
        (np.zeros((4, 4, 3)), "an array of float64 (4, 4, 3)"),
        (np.zeros((4, 4, 3), np.float32), "an array of float32 (4, 4, 3)"),
        (np.zeros((4, 4), bool), "an array of bool (4, 4)"),
        (np.zeros((3, 8, 8), np.uint8), "an array of uint8 (3, 8, 8)"),
        (np.zeros((4, 4, 5), np.uint8), "an array of uint8 (4, 4, 5)"),
        (np.zeros((4, 4, 1), np.uint8), "an array of uint8 (4, 4, 1)"),
        (np.zeros((1, 4, 4, 3), np.uint8), "an array of uint8 (1, 4, 4, 3)"),
        (np.zeros(4, np.uint8), "an array of uint8 (4,)"),
    ],
)
def test_what_is_no_image_is_refused_by_type(image, received):
    message = (
        f"An image must be a PIL image, a uint8 array [H, W, 3], or the path of a file. Got {received}. Open it with "
        f"PIL.Image.open(path)."
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        as_input_image(image)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (Image.new("RGB", (0, 4)), "the image: image of 0 x 4 pixels, less than min_size 1"),
        (np.zeros((0, 3, 3), np.uint8), "the image: image of 3 x 0 pixels, less than min_size 1"),
        (Image.new("F", (4, 4)), "the image: not a readable image (floating-point pixels have no stated range)"),
        ("nowhere/none.png", "nowhere/none.png: no image file at nowhere/none.png"),
    ],
)
def test_an_image_that_cannot_be_read_is_refused(image, reason):
    message = f"An image must be readable, with 1 to 64,000,000 pixels. Got {reason}."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        as_input_image(image)


def test_an_image_too_large_or_damaged_is_refused(tmp_path):
    message = "An image must be readable, with 1 to 1,000 pixels. Got the image: image of 64 x 48 pixels, more than "
    with pytest.raises(ValueError, match=re.escape(message) + "max_pixels 1000"):
        as_input_image(noise(), max_pixels=1000)
    (tmp_path / "huge.png").write_bytes(huge_png(8000, 8001))
    (tmp_path / "cut.png").write_bytes(encoded(noise())[:500])
    for name, reason in (("huge", r"image of 8000 x 8001 pixels, more than"), ("cut", "not a readable image")):
        with pytest.raises(ValueError, match=rf"with 1 to 64,000,000 pixels\. Got .*{name}\.png: {reason}"):
            as_input_image(tmp_path / f"{name}.png")
