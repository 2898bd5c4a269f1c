"""Images of unknown origin become upright RGB, or an error with the reason."""

import io
import logging
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageOps

from .records import BadItem, Record

MAX_PIXELS = 64_000_000
MAX_RATIO = 200
"""How many times the longer side of an image may be the shorter one; Qwen2.5-VL reads no longer ones."""
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")  # rasters only: EPS would start Ghostscript
# Pillow says some of what is wrong with an image to its logger, too, which would print it.
logging.getLogger("PIL").addHandler(logging.NullHandler())
DECODING_ERRORS = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError, RuntimeError)
DECODING_ERRORS += (struct.error, zlib.error, Image.DecompressionBombError)


def to_rgb(image: Image.Image) -> Image.Image:
    """
    Any mode as 8-bit RGB: transparency on white, 16 bits scaled to 8.

    Raises:
        ValueError: for pixels of floating point or of 32-bit integers, which have no stated range.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels have no stated range")
    if image.mode == "I" and image.format != "PNG":  # as which older Pillow opens a PNG of 16 bits
        low, high = image.getextrema()
        raise ValueError(f"32-bit integer pixels, here {low} to {high}, have no stated range; save 8 or 16 bits")
    if image.mode.startswith("I"):
        pixels = np.asarray(image).astype(np.int64)
        return Image.fromarray((pixels.clip(0, 65535) / 257).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def decode_image(
    data: bytes | str | os.PathLike | Image.Image,
    key: str,
    max_pixels: int = MAX_PIXELS,
    min_size: int = 1,
    max_ratio: float | None = None,
) -> Image.Image:
    """
    The first frame as RGB, upright.

    Args:
        data: an encoded image, the path of one, or an opened one.
        key: address for the error.
        max_pixels: larger images are refused before their pixels are read.
        min_size: the shorter side must have at least so many pixels.
        max_ratio: the longer side may be at most so many times the shorter one; any by default.

    Raises:
        BadItem: when the data is no complete image of a known format, too large, too small or too long.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, on which `max_pixels` decides, and of damage
            if isinstance(data, (str, os.PathLike)) and not os.path.isfile(data):
                raise BadItem(key, f"no image file at {str(data)[:200]}")  # a pipe would wait for a writer for ever
            if not isinstance(data, Image.Image):
                data = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=FORMATS)
            _check_size(data.size, key, max_pixels, min_size, max_ratio)
            data.load()
            upright = ImageOps.exif_transpose(data)
            upright.format = data.format  # of which a copy knows nothing, and `to_rgb` asks for it
            image = to_rgb(upright)
        image.info.pop("exif", None)  # it may be damaged, and whoever opens the image again would read it
        return image
    except DECODING_ERRORS as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise BadItem(key, f"not a readable image ({reason})") from error


def _check_size(size: tuple[int, int], key: str, max_pixels: int, min_size: int, max_ratio: float | None) -> None:
    width, height = size
    if width * height > max_pixels:
        raise BadItem(key, f"image of {width} x {height} pixels, more than max_pixels {max_pixels}")
    if min(width, height) < min_size:
        raise BadItem(key, f"image of {width} x {height} pixels, less than min_size {min_size}")
    if max_ratio is not None and max(width, height) > max_ratio * min(width, height):
        raise BadItem(key, f"image of {width} x {height} pixels, one side more than {max_ratio} times the other")


def image_header(path: str | os.PathLike) -> tuple[str, tuple[int, int]]:
    """
    The format of an image file, such as `JPEG`, and its width and height in pixels; its pixels are not read.

    Raises:
        BadItem: when the file is no image of a known format.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not os.path.isfile(path):
                raise BadItem(str(path), "no file")
            with Image.open(path, formats=FORMATS) as image:
                return str(image.format), image.size
    except DECODING_ERRORS as error:
        raise BadItem(str(path), "not a readable image") from error


def image_kind(data: bytes) -> str | None:
    """
    The usual ending of an encoded image by what it begins with, such as `jpg`; `None` where it is of no kind that is
    read. It may still be damaged.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            kind = (image.format or "").lower()
    except DECODING_ERRORS:
        return None
    return {"jpeg": "jpg", "tiff": "tif"}.get(kind, kind)


def image_texts(path: str | os.PathLike) -> list[str]:
    """What an image file says beside its pixels, where that is compressed; nothing where it is no image."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            image.load()  # texts may follow the pixels
            said = {**image.info, **getattr(image, "text", {})}
    except DECODING_ERRORS:
        return []
    return [f"{name} {value}" for name, value in said.items() if isinstance(value, (str, bytes))]


def as_input_image(image: Image.Image | np.ndarray | str | os.PathLike, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """
    What a user gives as an image, as upright RGB: transparency on white, 16 bits scaled to 8, the first frame of
    several.

    Args:
        image: PIL image, uint8 array `[H, W, 3]`, `[H, W, 4]` or `[H, W]`, or the path of a file.
        max_pixels: larger images are refused.

    Raises:
        TypeError: when it is something else.
        ValueError: when it has no pixels or too many, is too long, or cannot be read.
    """
    is_array = isinstance(image, np.ndarray) and image.dtype == np.uint8
    if is_array and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))):
        image = Image.fromarray(image)
    if not isinstance(image, (Image.Image, str, os.PathLike)):
        received = (
            f"an array of {image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        )
        raise TypeError(
            f"An image must be a PIL image, a uint8 array [H, W, 3], or the path of a file. Got {received}. "
            f"Open it with PIL.Image.open(path)."
        )
    try:
        key = "the image" if isinstance(image, Image.Image) else str(image)
        return decode_image(image, key, max_pixels, max_ratio=MAX_RATIO)
    except BadItem as error:
        raise ValueError(f"An image must be readable, with 1 to {max_pixels:,} pixels. Got {error}.") from error


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """
    An image that is not decoded yet.

    Args:
        data: an encoded image, the path of one, an opened one, or a function that reads one.
        key, max_pixels, min_size: as in [`decode_image`].
    """

    data: bytes | str | os.PathLike | Image.Image | Callable[[], bytes]
    key: str
    max_pixels: int = MAX_PIXELS
    min_size: int = 1

    def decode(self) -> Image.Image:
        """The image; raises [`BadItem`] as [`decode_image`] does."""
        data = self.data if isinstance(self.data, (bytes, str, os.PathLike, Image.Image)) else self.data()
        return decode_image(data, self.key, self.max_pixels, self.min_size, MAX_RATIO)


def as_picture(image: Image.Image | EncodedImage | None) -> Image.Image | None:
    """A picture as it is, and an encoded one decoded; raises [`BadItem`] when it cannot be used."""
    return image.decode() if isinstance(image, EncodedImage) else image


def decoded(record: Record) -> Record:
    """
    A record whose images are pictures, also where they were encoded.

    Raises:
        BadItem: when one of them cannot be used.
    """
    images = {id(image): as_picture(image) for image in (record.target, *record.images)}
    return replace(
        record, target=images[id(record.target)], images=tuple(images[id(image)] for image in record.images)
    )
