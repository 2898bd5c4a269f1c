"""Pictures of a folder, for distances between sets: all of them or an error, in one size, made in a stated way."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ..checks import check_name, check_sizes
from ..data.images import as_input_image, image_header
from ..data.paths import IMAGE_ENDINGS, UNREAD_ENDINGS, ending, visible_files
from ..data.records import BadItem

FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
"""Pillow's; all but `nearest` average over more pixels where a picture shrinks, as clean-fid does."""
NAMED = 10
"""How many files an error names."""


@dataclass(frozen=True)
class Preparation:
    """
    How pictures are resized before an extractor sees them.

    Args:
        size: height and width in pixels; the whole picture becomes a square, and nothing is cut off. `None` leaves
            pictures as they are.
        resize: one of [`FILTERS`], of Pillow.

    Raises:
        ValueError: when there is no such filter, or no such size.
    """

    size: int | None
    resize: str = "bicubic"

    def __post_init__(self):
        check_name("resize filter", self.resize, FILTERS)
        if self.size is not None:
            check_sizes(size=self.size)

    def __call__(self, image: Image.Image) -> Image.Image:
        """The picture in its size."""
        if self.size is None or image.size == (self.size, self.size):
            return image
        return image.resize((self.size, self.size), Image.Resampling[self.resize.upper()])

    def __str__(self) -> str:
        return "as they are" if self.size is None else f"{self.resize} to {self.size} x {self.size}"


@dataclass(frozen=True)
class PictureFile:
    """
    Args:
        path: of the file.
        name: its path below the folder, with `/`.
        sha256: of its bytes.
        format: of the file, as its bytes say, such as `PNG`.
        size: width and height in pixels.
    """

    path: Path
    name: str
    sha256: str
    format: str
    size: tuple[int, int]


class PictureFolder:
    """
    All pictures of a folder and its subfolders, in the order of their names. Hidden files, and files that are no
    pictures, are left out.

    Args:
        folder: of the pictures.
        progress: show a bar while the files are read.

    Raises:
        FileNotFoundError: when there is no such folder.
        ValueError: when there is no picture in it, or a picture cannot be read; all of them count.
    """

    def __init__(self, folder: str | os.PathLike, progress: bool = False):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"Pictures are read from a folder. There is none at {folder}. Check the path.")
        paths = visible_files(self.folder)
        raise_damaged(self.folder, [f"{path} (.{ending(path)})" for path in paths if ending(path) in UNREAD_ENDINGS])
        paths = [path for path in paths if ending(path) in IMAGE_ENDINGS]
        if not paths:
            raise ValueError(f"A set of pictures needs at least one. {folder} has none. Check the path.")
        self.files: list[PictureFile] = []
        damaged = []
        for path in tqdm(paths, desc=f"reading {self.folder.name}", disable=not progress, leave=False):
            try:
                image_format, size = image_header(path)
            except BadItem as error:
                damaged.append(str(error))
                continue
            name = path.relative_to(self.folder).as_posix()
            self.files.append(PictureFile(path, name, _sha256(path), image_format, size))
        raise_damaged(self.folder, damaged)

    @cached_property
    def sha256(self) -> str:
        """Of all names and bytes, in the order of the names."""
        state = hashlib.sha256()
        for file in self.files:
            state.update(f"{file.name}\0{file.sha256}\n".encode(errors="surrogateescape"))
        return state.hexdigest()

    @property
    def formats(self) -> dict[str, int]:
        """How many files there are of each format."""
        return dict(sorted(Counter(file.format for file in self.files).items()))

    @property
    def sizes(self) -> list[str]:
        """The sizes of the pictures, the most frequent one first, such as `64 x 64`."""
        return [
            f"{width} x {height}" for (width, height), _ in Counter(file.size for file in self.files).most_common()
        ]

    def categories(self) -> dict[str, list[int]]:
        """
        Which pictures are in which subfolder, as `<category>/<id>.jpg` of MJHQ-30K.

        Raises:
            ValueError: when a picture is in no subfolder.
        """
        groups: dict[str, list[int]] = {}
        for number, file in enumerate(self.files):
            category, slash, _ = file.name.partition("/")
            if not slash:
                raise ValueError(
                    f"By folder, each picture must be in a subfolder, whose name is its category. {file.path} is in "
                    f"none. Move it."
                )
            groups.setdefault(category, []).append(number)
        return groups


def open_pictures(files: Sequence[PictureFile], prepare: Preparation) -> tuple[list[Image.Image], list[str]]:
    """Pictures of these files as an extractor takes them, and what is wrong with those that cannot be opened."""
    images, damaged = [], []
    for file in files:
        try:
            images.append(prepare(as_input_image(file.path)))
        except ValueError as error:
            damaged.append(str(error.__cause__ or error))
    return images, damaged


def raise_damaged(folder: Path, damaged: Sequence[str]) -> None:
    """
    Raises:
        ValueError: naming files that cannot be read, if there are any.
    """
    if damaged:
        rest = f", and {len(damaged) - NAMED} more" if len(damaged) > NAMED else ""
        raise ValueError(
            f"A distance counts every picture of a folder. {len(damaged)} of {folder} cannot be read: "
            f"{'; '.join(damaged[:NAMED])}{rest}. Replace or delete them."
        )


def _sha256(path: Path) -> str:
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            state.update(block)
    return state.hexdigest()
