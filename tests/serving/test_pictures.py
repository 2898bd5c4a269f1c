"""Pictures of requests: what they are and not what they say, within limits, and known again."""

import asyncio
import base64
import re
from functools import partial

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from blip3o_hf.serving import pictures
from blip3o_hf.serving.errors import ApiError
from blip3o_hf.serving.pictures import Encoding, PictureBook, Pixels, decoded_url, open_picture

PREFIX = "data:image/png;base64,"


def fails(call, *texts):
    """The error of a call that says these texts, and nothing of this process."""
    with pytest.raises(ApiError) as caught:
        call()
    assert caught.value.status == 400
    for text in texts:
        assert text in caught.value.message
    assert not re.search("0x[0-9a-f]{6}|BytesIO", caught.value.message)
    return caught.value


def url_of(data):
    return PREFIX + base64.b64encode(data).decode()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_picture_is_what_its_bytes_say(form, make_image, as_png, same_picture):
    image = make_image().quantize(64).convert("RGB")
    opened = open_picture(as_png(image, form), "image")  # nobody asks for its name or type
    assert opened.mode == "RGB" and same_picture(opened, image, levels=255 if form in ("JPEG", "WEBP") else 1)


def test_a_picture_comes_upright_and_transparency_is_white(as_png, same_picture):
    assert open_picture(as_png(Image.new("RGBA", (2, 2), (255, 0, 0, 0))), "image").getpixel((0, 0)) == (255,) * 3
    exif = Image.Exif()
    exif[0x0112] = 6
    file = pictures.io.BytesIO()
    Image.new("RGB", (40, 20)).save(file, "JPEG", exif=exif)
    assert open_picture(file.getvalue(), "image").size == (20, 40)


def test_what_is_no_picture_is_refused(as_png, make_image):
    data = as_png(make_image())
    no_picture = "`image` must be a picture (PNG, JPEG, WebP, AVIF, GIF, BMP or TIFF) of at most 25,000,000 pixels."
    for content in (b"", b"no picture", b"%!PS-Adobe-3.0 EPSF-3.0", b"<svg xmlns='http://www.w3.org/2000/svg'/>"):
        error = fails(
            partial(open_picture, content, "image"), no_picture, f"Got {len(content):,} bytes of another kind."
        )
        assert (error.param, error.code) == ("image", "invalid_image")
    fails(lambda: open_picture(data[: len(data) // 2], "image"), no_picture, "not a readable image", "Save it as PNG.")
    fails(lambda: open_picture(as_png(Image.new("L", (3000, 2))), "image"), "one side more than 200 times the other")


def test_a_bomb_is_refused_before_its_pixels_are_made(as_png):
    for side, reason in (
        (6_000, "image of 6000 x 6000 pixels, more than max_pixels 25000000"),
        (60_000, "Image size (3600000000 pixels) exceeds limit"),
    ):
        bomb = bytearray(as_png(Image.new("1", (8, 8))))
        bomb[16:24] = side.to_bytes(4, "big") * 2
        bomb[29:33] = pictures.binascii.crc32(bytes(bomb[12:29])).to_bytes(4, "big")
        fails(partial(open_picture, bytes(bomb), "image"), reason)
    text = PngImagePlugin.PngInfo()
    text.add_text("a", "b" * 70_000_000, zip=True)  # 68 KB in the file
    file = pictures.io.BytesIO()
    Image.new("1", (8, 8)).save(file, "PNG", pnginfo=text)
    fails(lambda: open_picture(file.getvalue(), "image"), "`image` must be a picture")


def test_a_data_url_gives_its_bytes():
    for head in ("data:image/png;base64,", "data:;base64,", "data:image/jpeg;name=x;base64,"):
        assert decoded_url(head + "aGk=", "url") == b"hi"


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("data:image/png;base64", "it has no ;base64,"),
        ("data:image/png,aGk=", "it has no ;base64,"),
        ("data:image/png;base64,aGk", "Incorrect padding"),
        ("data:image/png;base64,aG k=", "Only base64 data is allowed"),
        ("data:image/png;base64,aéGk=", "ASCII"),
        ("data:image/png;base64,../../etc/passwd", "Only base64 data is allowed"),
    ],
)
def test_a_broken_data_url_is_refused(url, text):
    error = fails(
        lambda: decoded_url(url, "url"), "`url` must be a data URL in base64", text, "Encode the file again."
    )
    assert (error.param, error.code) == ("url", "invalid_image_url")


@pytest.mark.parametrize("url", [None, 1, ["data:"], {"url": "data:"}])
def test_an_address_is_a_text(url):
    fails(lambda: asyncio.run(PictureBook(False, 100).open(url, "url")), "`url` must be a text.")


@pytest.mark.parametrize("url", ["https://example.org/a.png", "file:///etc/passwd", "/etc/passwd", "DATA:x", ""])
def test_nothing_is_fetched_unless_that_is_allowed(url, monkeypatch):
    monkeypatch.setattr(pictures, "fetch", None)
    error = fails(lambda: asyncio.run(PictureBook(False, 100).open(url, "url")), "`url` must be a data URL", repr(url))
    assert "may allow https with --allow-image-urls" in error.message


def test_addresses_are_fetched_where_they_are_allowed(monkeypatch, as_png, make_image, same_picture):
    asked = []
    monkeypatch.setattr(pictures, "fetch", lambda *given: asked.append(given) or as_png(make_image()))
    book = PictureBook(True, 100)
    image = asyncio.run(book.open("https://example.org/a.png", "url"))
    assert same_picture(image, make_image()) and asked == [("https://example.org/a.png", "url", 100)]
    assert asyncio.run(book.open(url_of(as_png(make_image())), "url")) is image  # the same file


def test_the_same_file_is_the_same_object(as_png, make_image):
    book = PictureBook(False, 100)
    first, other = as_png(make_image(0)), as_png(make_image(1))
    image = asyncio.run(book.open(url_of(first), "url"))
    assert asyncio.run(book.open(url_of(first), "url")) is image
    assert asyncio.run(book.open(url_of(other), "url")) is not image
    kept = make_image()
    book.exchange(image, kept)
    assert asyncio.run(book.open(url_of(first), "url")) is kept


@pytest.mark.parametrize("encoding", [Encoding(), Encoding("jpeg", 80), Encoding("webp", 100), Encoding("webp", 50)])
def test_a_picture_that_was_sent_is_known_when_it_comes_back(encoding, make_image):
    book, image = PictureBook(False, 100), make_image()
    url = book.written(image, encoding)
    assert url.startswith(f"data:image/{encoding.format};base64,")
    assert asyncio.run(book.open(url, "url")) is image


def test_only_the_last_pictures_and_so_many_pixels_are_remembered(monkeypatch, make_image, as_png):
    monkeypatch.setattr(pictures, "REMEMBERED", 3)
    book = PictureBook(False, 100)
    data = [as_png(make_image(seed)) for seed in range(5)]
    for content in [*data[:3], data[0], data[3]]:
        book.remembered(content, "url")
    assert len(book._known) == 3 and book.remembered(data[0], "url") is next(reversed(book._known.values()))
    monkeypatch.setattr(pictures, "MAX_PIXELS_TOGETHER", 2 * 64 * 64)
    book.remembered(data[4], "url")
    assert len(book._known) == 2


def test_a_request_shows_so_many_pixels_and_a_picture_counts_once(monkeypatch, make_image):
    monkeypatch.setattr(pictures, "MAX_PIXELS_TOGETHER", 2 * 64 * 64)
    pixels, image = Pixels(), make_image()
    for _ in range(10):
        assert pixels.count(image, "url") is image
    pixels.count(make_image(1), "url")
    error = fails(
        lambda: pixels.count(make_image(2), "url"), "at most 8,192 pixels together. With `url` they have 12,2"
    )
    assert error.code == "too_many_pixels"


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_a_picture_is_written_in_the_format_that_was_asked_for(form, make_image, opened, same_picture):
    image = make_image()
    written = opened(Encoding(form).encode(image))
    assert written.format == form.upper() and same_picture(written, image, levels=0 if form != "jpeg" else 255)
    if form != "png":
        small = Encoding(form, 10).write(image)
        assert len(small) < len(Encoding(form, 90).write(image)) < len(Encoding(form).write(image))
        assert opened(base64.b64encode(small).decode()).format == form.upper()


def test_a_data_url_holds_the_picture(make_image, opened, same_picture):
    assert same_picture(opened(Encoding().data_url(make_image())), make_image())
    assert np.asarray(opened(Encoding().data_url(make_image()))).shape == (64, 64, 3)
