"""Pictures that look the same: a difference hash and coarse colours."""

import numpy as np
from PIL import Image

SIDE = 16
COARSE = 4
STEP = 4
"""By so much, of 255, a part must be brighter, so that the noise of plain surfaces counts for nothing."""
MAX_BITS = 6
"""Of the 256 bits of a hash, so many may differ: what saving as JPEG or resizing changes."""
MAX_COLOR = 12
"""By so much, of 255, the mean colours of the 16 parts of a picture may differ."""


def fingerprint(image: Image.Image) -> str:
    """
    A picture in few bytes: whether each of 16 x 16 parts is brighter than the next one (dHash), and the mean colours
    of 4 x 4 parts, since pictures of plain surfaces have no differences.
    """
    gray = np.asarray(image.convert("L").resize((SIDE + 1, SIDE), Image.Resampling.BILINEAR), dtype=np.int16)
    bits = np.packbits(gray[:, :-1] > gray[:, 1:] + STEP)
    colors = np.asarray(image.convert("RGB").resize((COARSE, COARSE), Image.Resampling.BOX))
    return (bits.tobytes() + colors.tobytes()).hex()


class SeenPictures:
    """Pictures by their fingerprints, with the names of those that were kept."""

    def __init__(self):
        self._names: list[str] = []
        self._hashes: list[int] = []
        self._colors: list[np.ndarray] = []

    def add(self, name: str, print_: str) -> None:
        """Remember a picture."""
        number, colors = _split(print_)
        self._names.append(name)
        self._hashes.append(number)
        self._colors.append(colors)

    def find(self, print_: str) -> str | None:
        """The name of the first remembered picture that looks the same; `None` where there is none."""
        number, colors = _split(print_)
        for index, other in enumerate(self._hashes):
            is_near = (number ^ other).bit_count() <= MAX_BITS
            if is_near and np.abs(colors - self._colors[index]).max() <= MAX_COLOR:
                return self._names[index]
        return None


def _split(print_: str) -> tuple[int, np.ndarray]:
    data, length = bytes.fromhex(print_), SIDE * SIDE // 8
    return int.from_bytes(data[:length], "big"), np.frombuffer(data[length:], dtype=np.uint8).astype(np.int16)
