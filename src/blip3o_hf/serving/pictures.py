"""Pictures of requests and answers: from bytes, data URLs and the web, and to base64."""

import asyncio
import base64
import binascii
import hashlib
import io
import threading
from collections import OrderedDict
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from ..data.images import MAX_RATIO, decode_image
from ..data.records import BadItem
from .errors import ApiError, wrong
from .fetching import fetch

MIME_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
MAX_IMAGES = 10
"""That a request can ask for."""
MAX_PIXELS = 25_000_000
"""Of a picture in a request."""
MAX_PIXELS_TOGETHER = 4 * MAX_PIXELS
"""Of all pictures of a request, and of those that are remembered: three times so many bytes of memory."""
REMEMBERED = 64
"""Pictures that are kept as they were decoded, so that a conversation that shows them again is known again."""


@dataclass(frozen=True)
class Encoding:
    """
    How pictures are written.

    Args:
        format: `"png"`, `"jpeg"` or `"webp"`.
        compression: 0 to 100, how much of the size is kept; for the last two.
    """

    format: str = "png"
    compression: int = 100

    def encode(self, image: Image.Image) -> str:
        """A picture in base64."""
        return base64.b64encode(self.write(image)).decode()

    def write(self, image: Image.Image) -> bytes:
        """A picture as a file; WebP of full quality has no loss."""
        file = io.BytesIO()
        options = {} if self.format == "png" else {"quality": self.compression}
        if self.format == "webp":
            options["lossless"] = self.compression == 100
        image.save(file, format=self.format, **options)
        return file.getvalue()

    def data_url(self, image: Image.Image) -> str:
        return self.url_of(self.write(image))

    def url_of(self, data: bytes) -> str:
        """A data URL of a file that `write` gave."""
        return f"data:{MIME_TYPES[self.format]};base64,{base64.b64encode(data).decode()}"


def open_picture(data: bytes, param: str) -> Image.Image:
    """
    An uploaded file as an upright RGB picture. What it says to be is not believed.

    Raises:
        ApiError: when it is no picture, or a too large one.
    """
    try:
        return decode_image(data, "the picture", MAX_PIXELS, max_ratio=MAX_RATIO)
    except BadItem as error:
        # What Pillow says of an unknown kind names an address of memory.
        is_unknown = isinstance(error.__cause__, UnidentifiedImageError)
        raise ApiError(
            400,
            f"`{param}` must be a picture (PNG, JPEG, WebP, AVIF, GIF, BMP or TIFF) of at most {MAX_PIXELS:,} pixels. "
            f"Got {len(data):,} bytes{' of another kind' if is_unknown else f': {error}'}. Save it as PNG.",
            param,
            "invalid_image",
        ) from error


class Pixels:
    """Counts the pixels of the pictures of one request; the same object counts once."""

    def __init__(self) -> None:
        self._counted: dict[int, Image.Image] = {}
        self._number = 0

    def count(self, image: Image.Image, param: str) -> Image.Image:
        """
        The picture, when there is room for it.

        Raises:
            ApiError: when the pictures have too many pixels together.
        """
        if id(image) not in self._counted:
            self._counted[id(image)] = image
            self._number += image.width * image.height
        if self._number > MAX_PIXELS_TOGETHER:
            raise ApiError(
                400,
                f"The pictures of a request must have at most {MAX_PIXELS_TOGETHER:,} pixels together. With `{param}` "
                f"they have {self._number:,}. Make them smaller.",
                param,
                "too_many_pixels",
            )
        return image


class PictureBook:
    """
    Opens the pictures of messages, and gives the same object for the same file.

    Args:
        allow_urls: whether pictures may be fetched from other servers, by https.
        max_bytes: of a fetched one.
    """

    def __init__(self, allow_urls: bool, max_bytes: int):
        self.allow_urls = allow_urls
        self.max_bytes = max_bytes
        self._known: OrderedDict[str, Image.Image] = OrderedDict()
        self._lock = threading.Lock()

    async def open(self, url: object, param: str) -> Image.Image:
        """
        The picture of a data URL, or of an address where these are allowed.

        Raises:
            ApiError: when there is none.
        """
        if not isinstance(url, str):
            raise wrong(param, "a text", url, "Send a data URL.")
        is_data = url.startswith("data:")
        if not is_data and not self.allow_urls:
            raise ApiError(
                400,
                f"`{param}` must be a data URL, such as data:image/png;base64,... . Got {url!r:.80}. This server "
                f"fetches nothing; whoever runs it may allow https with --allow-image-urls.",
                param,
                "invalid_image_url",
            )

        def read() -> Image.Image:
            data = decoded_url(url, param) if is_data else fetch(url, param, self.max_bytes)
            return self.remembered(data, param)

        return await asyncio.to_thread(read)

    def remembered(self, data: bytes, param: str) -> Image.Image:
        """The picture of a file, opened once."""
        key = hashlib.sha256(data).hexdigest()
        image = self._known.get(key)
        return self._remember(key, open_picture(data, param) if image is None else image)

    def exchange(self, known: Image.Image, other: Image.Image) -> None:
        """From now on, give another object with the same pixels."""
        with self._lock:
            for key, image in self._known.items():
                if image is known:
                    self._known[key] = other

    def _remember(self, key: str, image: Image.Image) -> Image.Image:
        with self._lock:
            self._known[key] = image
            self._known.move_to_end(key)
            while len(self._known) > REMEMBERED or self._num_pixels() > MAX_PIXELS_TOGETHER:
                self._known.popitem(last=False)
        return image

    def _num_pixels(self) -> int:
        return sum(image.width * image.height for image in self._known.values())

    def written(self, image: Image.Image, encoding: Encoding) -> str:
        """A data URL of a picture, which is known again when it comes back."""
        data = encoding.write(image)
        self._remember(hashlib.sha256(data).hexdigest(), image)
        return encoding.url_of(data)


def decoded_url(url: str, param: str) -> bytes:
    """
    The bytes of a data URL.

    Raises:
        ApiError: when it holds no base64.
    """
    head, comma, content = url.partition(",")
    try:
        if not comma or not head.endswith(";base64"):
            raise ValueError("it has no ;base64,")
        return base64.b64decode(content, validate=True)
    except (ValueError, binascii.Error) as error:
        raise ApiError(
            400,
            f"`{param}` must be a data URL in base64, such as data:image/png;base64,iVBORw0... . Got {url!r:.60}: "
            f"{error}. Encode the file again.",
            param,
            "invalid_image_url",
        ) from error


__all__ = ["Encoding", "PictureBook", "Pixels", "decoded_url", "open_picture"]
