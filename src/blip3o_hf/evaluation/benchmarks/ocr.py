"""Whether words that a prompt asks for can be read in the picture."""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from PIL import Image

from ...hub.results import Figure, Score
from .base import Item, PictureBenchmark, Pictures, field_of, json_lines

Reader = Callable[[Image.Image], str]
"""Reads all words of a picture."""


class OcrBenchmark(PictureBenchmark):
    """
    Written words of your own prompts: a JSON Lines file with `id`, `prompt` and `text`, what must be read.

    A picture's score is that of `text_score`.
    """

    name = "ocr"
    title = "Written words"
    about = (
        "A reader of characters reads the picture. Its score is 1 minus the edit distance to the wanted text over the "
        "wanted text's length, not below 0; spaces and large letters do not count. *Exact* counts pictures on which "
        "nothing else can be read."
    )
    pattern = "*.jsonl"
    judged_by = ("reader",)

    def read_items(self, path):
        rows = [(f"Line {number} of {path}", row) for number, row in enumerate(json_lines(path), start=1)]
        return [_item(row, where) for where, row in rows]

    def check_judges(self, **given: Any) -> None:
        if given.get("reader") is None:
            RapidOcrReader()  # which says how to get it

    def score(self, pictures: Pictures, **judges: Any) -> list[Score]:
        """
        Args:
            pictures: as in the base.
            judges: `reader`, a `Reader` with a `name`; [`RapidOcrReader`] by default.
        """
        pictures.check_complete()
        reader = judges.get("reader") or RapidOcrReader()
        values = [
            sum(text_score(reader(pictures.open(item, n)), item.row["text"]) for n in range(pictures.number))
            / pictures.number
            for item in pictures.items
        ]
        label = f"Written words, reader {reader.name}"
        exact = sum(value == 1 for value in values) / len(values)
        return [
            Score(
                "text-to-image", f"{label}: 1 - edit distance / length", Figure(sum(values) / len(values)), len(values)
            ),
            Score("text-to-image", f"{label}: exact", Figure(exact), len(values)),
        ]


class RapidOcrReader:
    """
    [RapidOCR](https://github.com/RapidAI/RapidOCR) on onnxruntime; its wheel holds the weights.

    Raises:
        ImportError: when it is not installed.
    """

    def __init__(self):
        try:
            from rapidocr import RapidOCR
        except ImportError as error:
            raise ImportError(
                "Reading words needs RapidOCR, which is not installed. Run `pip install 'blip3o-hf[ocr]'`."
            ) from error
        self.name = f"rapidocr {version('rapidocr')}"
        self._read = RapidOCR(params={"Global.log_level": "error"})

    def __call__(self, image: Image.Image) -> str:
        """All lines of a picture, in reading order, with spaces between them."""
        output = self._read(np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1]))  # blue comes first
        return " ".join(output.txts or ())


def text_score(read: str, wanted: str) -> float:
    """
    How much of a text was read, in [0, 1]: 1 - edit distance / length of the wanted text, not below 0. Spaces and
    large letters do not count.

    Example:
        >>> text_score("Helo World", "hello world")
        0.9
    """
    read, wanted = _bare(read), _bare(wanted)
    if not wanted:
        raise ValueError("A wanted text must have letters. Got none. Correct the prompt file.")
    return max(0.0, 1 - edit_distance(read, wanted) / len(wanted))


def edit_distance(a: Sequence, b: Sequence) -> int:
    """
    Levenshtein distance: the least number of insertions, deletions and replacements.

    Example:
        >>> edit_distance("kitten", "sitting")
        3
    """
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def _bare(text: str) -> str:
    return "".join(text.casefold().split())


def _item(row: dict[str, Any], where: str) -> Item:
    text = field_of(row, "text", str, where)
    if not _bare(text):
        raise ValueError(f"{where} must have a text to read. It has {text!r:.40}. Correct the prompt file.")
    return Item(field_of(row, "id", str, where), field_of(row, "prompt", str, where), row)
