"""Folders of pictures for official scorers: what is written into them, and what is found wrong in them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from ...data.images import as_input_image
from ...files import written_whole

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Of pictures."""


def save_png(image: Image.Image, path: Path) -> None:
    """Write a picture as PNG, and the folder that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        image.save(temporary, format="PNG")


def picture_sizes(folder: Path, names: Iterable[str], problems: list[str]) -> dict[str, tuple[int, int]]:
    """
    Sizes `(width, height)` of the pictures that are there and whole; of the others, a sentence goes to `problems`.

    Args:
        names: paths below `folder` that must be there.
    """
    sizes = {}
    for name in names:
        if not (folder / name).is_file():
            problems.append(f"{name} is missing.")
            continue
        try:
            sizes[name] = as_input_image(folder / name).size
        except ValueError as error:
            problems.append(f"{name} is damaged: {error}")
    return sizes


def odd_sizes(sizes: Mapping[str, tuple[int, int]]) -> list[str]:
    """A sentence for each picture that has not the size of most of them."""
    if not sizes:
        return []
    (width, height), _ = Counter(sizes.values()).most_common(1)[0]
    return [
        f"{name} has {size[0]} x {size[1]} pixels, most have {width} x {height}."
        for name, size in sizes.items()
        if size != (width, height)
    ]


def surplus(folder: Path, expected: Iterable[str], beside: Iterable[str] = ()) -> list[str]:
    """
    A sentence for each file below `folder` that is neither expected nor in `beside`; a duplicate has the name of an
    expected picture with another ending.
    """
    stems = {name.rsplit(".", 1)[0]: name for name in expected}
    known = {*stems.values(), *beside}
    sentences = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or name in known:
            continue
        twin = stems.get(name.rsplit(".", 1)[0])
        sentences.append(f"{name} is a duplicate of {twin}." if twin else f"{name} does not belong there.")
    return sentences


def flat_problems(
    folder: Path, expected: Sequence[str], one_size: bool = True, beside: Sequence[str] = ()
) -> list[str]:
    """
    What is wrong with a folder that must hold exactly the expected pictures.

    Args:
        expected: paths below the folder.
        one_size: whether all pictures must have one size.
        beside: files that may be there, too.
    """
    if not folder.is_dir():
        return [f"There is no folder {folder}."]
    problems: list[str] = []
    sizes = picture_sizes(folder, expected, problems)
    if one_size:
        problems += odd_sizes(sizes)
    return problems + surplus(folder, expected, beside)


__all__ = ["SUFFIXES", "flat_problems", "odd_sizes", "picture_sizes", "save_png", "surplus"]
