"""UniGenBench++: the folder that its scorer reads, for each of its languages."""

import csv
import io
import json
from typing import Any, ClassVar

from .base import Item, PictureBenchmark, prompt_text
from .layouts import flat_problems, save_png

COLUMNS = ("index", "prompt", "sub_dims")
MODEL = "blip3o"
"""Name of the folder of a model's pictures."""


class UniGenBenchmark(PictureBenchmark):
    """
    UniGenBench++, of which the prompts are a CSV with the columns index, prompt and sub_dims, in English here.

    The scores are those of its own scorer; none is given here.
    """

    name = "unigenbench-en"
    title = "UniGenBench++ (en)"
    about = "Four pictures of each of 600 prompts in English. The scores are those of the official scorer."
    pictures_per_prompt = 4
    pattern = "*.csv"
    language: ClassVar[str] = "en"
    official = f"Its scorer, with Gemini 2.5 Pro or a Qwen-VL judge, on FOLDER/<language>/{MODEL}."

    def read_items(self, path):
        if path.is_dir():
            raise ValueError(f"UniGenBench++ has a CSV for each kind of prompts. Got the folder {path}. Name a file.")
        reader = csv.DictReader(io.StringIO(prompt_text(path)))
        if not set(COLUMNS) <= set(reader.fieldnames or ()):
            raise ValueError(
                f"A prompt file of UniGenBench++ must have the columns {', '.join(COLUMNS)}. {path} has "
                f"{', '.join(reader.fieldnames or ()) or 'none'}. Check the path."
            )
        return [_item(row, f"{path}, line {reader.line_num}") for row in reader]

    def write_layout(self, pictures, folder):
        for item in pictures.items:
            for number in range(pictures.number):
                save_png(pictures.open(item, number), folder / self._path(item, number))

    def problems(self, folder):
        numbers = range(self.pictures_per_prompt)
        return flat_problems(folder, [self._path(item, number) for item in self.items for number in numbers])

    def _path(self, item: Item, number: int) -> str:
        return f"{self.language}/{MODEL}/{item.id}_{number}.png"


class UniGenChineseBenchmark(UniGenBenchmark):
    """UniGenBench++ with its prompts in Chinese."""

    name = "unigenbench-zh"
    title = "UniGenBench++ (zh)"
    about = "Four pictures of each of 600 prompts in Chinese. The scores are those of the official scorer."
    language = "zh"


def _item(row: dict[str, Any], where: str) -> Item:
    further = [value for name, value in row.items() if name not in COLUMNS]
    if further:
        raise ValueError(f"A comma in a prompt needs quotes. {where} has {further[0]!r:.60} too many. Add quotes.")
    try:
        sub_dims = json.loads(row["sub_dims"] or "")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`sub_dims` must be JSON. {where} has {row['sub_dims']!r:.60}. Correct it.") from error
    if not row["prompt"] or not (row["index"] or "").isdecimal():
        raise ValueError(
            f"A prompt of UniGenBench++ must have a number and a text. {where} has {row['index']!r:.20} and "
            f"{row['prompt']!r:.40}. Correct it."
        )
    return Item(row["index"], row["prompt"], {**row, "sub_dims": sub_dims})
