"""Whatever Pillow can open becomes upright RGB; whatever is unsafe or broken is a bad item with its reason."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from blip3o_hf.data.images import decode_image
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
        ("I", 257 * 40, "TIFF", (40, 40, 40)),
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
    with pytest.raises(BadItem, match="floating-point pixels have no stated range"):
        decode_image(encoded(Image.new("F", (4, 4)), "TIFF"), "k")
