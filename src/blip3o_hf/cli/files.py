"""Reading and writing files for the commands: checked before any work, and never half-written."""

import os
from pathlib import Path

from ..files import check_can_write, written_whole


def check_writable(path: str | os.PathLike) -> Path:
    """
    The path of a file that can be written.

    Raises:
        OSError: when it names a folder, or its folder does not exist or cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(
            f"The output must be a file. {path} is a folder. Add a file name, such as {path}/a.png."
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"The output's folder must exist. There is no {path.parent.absolute()}. Create it first."
        )
    check_can_write(path.parent.absolute(), "The output's folder")
    return path


def check_picture_path(path: str | os.PathLike) -> Path:
    """
    As `check_writable`, for a picture.

    Raises:
        ValueError: when the ending is not one of a picture format.
    """
    from PIL import Image

    path = check_writable(path)
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:  # some formats are only read
        raise ValueError(
            f"The output must be a picture file. {path.name!r} has no ending of a picture format. Use a name like "
            f"'out.png'."
        )
    return path


def save_picture(image, path: Path) -> None:
    """Write a PIL image, whole or not at all."""
    with written_whole(path) as temporary:
        image.save(temporary)


def open_picture(path: str | os.PathLike):
    """
    An image as RGB, upright, transparency on white.

    Raises:
        OSError: when the file does not exist, is empty, is no picture, has too many pixels, or is too long.
    """
    from ..data.images import MAX_RATIO, decode_image
    from ..data.records import BadItem

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"The image must be a file. There is none at {path.absolute()}. Check the path.")
    if path.stat().st_size == 0:
        raise OSError(f"The image must be a picture file. {path} is empty (0 bytes). Save it again.")
    try:
        return decode_image(path, str(path), max_ratio=MAX_RATIO)
    except BadItem as error:
        raise OSError(f"The image must be a picture file. Got {error}. Save it as PNG or JPEG.") from error
