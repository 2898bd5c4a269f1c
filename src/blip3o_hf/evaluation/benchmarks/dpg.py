"""DPG-Bench: the grids of four pictures that its scorer reads, and the damage that it would not tell."""

from collections import Counter
from pathlib import Path

from PIL import Image

from .base import Item, PictureBenchmark, prompt_text
from .layouts import SUFFIXES, picture_sizes, save_png

COLUMNS = 2
"""Of the grid, whose order is top left, top right, bottom left, bottom right."""


class DpgBenchmark(PictureBenchmark):
    """
    DPG-Bench (ELLA, Hu et al., 2024), of which the prompts are a folder of `.txt` files, one prompt each.

    The scores are those of its own scorer, which asks mPLUG-large; none is given here.
    """

    name = "dpg"
    title = "DPG-Bench"
    about = "Four pictures of each long prompt, in one grid. The scores are those of the official scorer, mPLUG-large."
    pictures_per_prompt = 4
    pattern = "*.txt"
    official = (
        "PYTHONHASHSEED=0 PIC_NUM=4 bash dpg_bench/dist_eval.sh FOLDER SIDE, where SIDE is that of one picture in "
        "pixels. Give `--res-path` outside of FOLDER: else its results are read as pictures the next time. It leaves "
        "out files that it cannot read, so look for problems first."
    )

    def read_items(self, path):
        if path.is_file():
            raise ValueError(
                f"DPG-Bench's prompts are a folder of .txt files. Got the file {path}. Give the folder "
                f"`dpg_bench/prompts`."
            )
        return [_item(file) for file in sorted(path.glob(self.pattern))]

    def write_layout(self, pictures, folder):
        for item in pictures.items:
            save_png(
                grid([pictures.open(item, number) for number in range(pictures.number)], item.id), folder / _name(item)
            )

    def problems(self, folder):
        if not folder.is_dir():
            return [f"There is no folder {folder}."]
        problems: list[str] = []
        expected = {item.id: _name(item) for item in self.items}
        sizes = picture_sizes(folder, expected.values(), problems)
        return [*problems, *_size_problems(sizes), *_name_problems(folder, expected)]


def grid(pictures: list[Image.Image], name: str) -> Image.Image:
    """
    Four pictures as the scorer cuts them apart.

    Args:
        pictures: squares of one size.
        name: of the prompt, for the error.

    Raises:
        ValueError: when they are not four squares of one size.
    """
    sizes = {picture.size for picture in pictures}
    side = pictures[0].width
    if len(pictures) != COLUMNS**2 or sizes != {(side, side)}:
        raise ValueError(
            f"DPG-Bench wants four square pictures of one size for each prompt. {name} has {len(pictures)}, of "
            f"{', '.join(f'{width} x {height}' for width, height in sorted(sizes))} pixels. Draw them again."
        )
    sheet = Image.new("RGB", (COLUMNS * side, COLUMNS * side))
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % COLUMNS * side, index // COLUMNS * side))
    return sheet


def _item(file: Path) -> Item:
    text = prompt_text(file).strip()
    if not text or "." in file.stem:
        raise ValueError(
            f"A prompt of DPG-Bench must be a text in a file with one dot in its name. {file} has {text!r:.40}. "
            f"Correct it."
        )
    return Item(file.stem, text)


def _name(item: Item) -> str:
    return f"{item.id}.png"


def _size_problems(sizes: dict[str, tuple[int, int]]) -> list[str]:
    """The scorer cuts tiles of one side from all grids, and what lies outside of a grid is black to it."""
    squares = Counter(width for width, height in sizes.values() if width == height and width % COLUMNS == 0)
    if not squares:
        return [f"{name} is no square of four pictures: {w} x {h} pixels." for name, (w, h) in sizes.items()]
    side, sentences = squares.most_common(1)[0][0], []
    for name, (width, height) in sizes.items():
        if (width, height) != (side, side):
            fault = "its pictures are too small" if min(width, height) < side else "wrong size"
            sentences.append(f"{name} has {width} x {height} pixels, most have {side} x {side}: {fault}.")
    return sentences


def _name_problems(folder: Path, expected: dict[str, str]) -> list[str]:
    """The scorer reads every file, and takes what stands before the first dot as the prompt's name."""
    sentences = []
    for path in sorted(folder.iterdir()):
        name, key = path.name, path.name.split(".")[0]
        if name in expected.values():
            continue
        if path.suffix.lower() not in SUFFIXES:
            sentences.append(f"{name} is no picture, and is read as one. Move it out of the folder.")
        elif name.count(".") > 1:
            sentences.append(f"{name} has several dots: it is read as a picture of {key}.")
        elif key in expected:
            sentences.append(f"{name} is a duplicate of {expected[key]}.")
        else:
            sentences.append(f"{name} is the picture of no prompt.")
    return sentences
