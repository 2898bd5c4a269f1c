"""Benchmarks of editing: input images with instructions, and the folders that scorers read."""

from pathlib import Path
from typing import Any

from ...data.paths import find_file
from .base import Item, PictureBenchmark, field_of, json_lines
from .layouts import flat_problems, save_png

METHOD = "blip3o"
"""Name of the folder of a model's pictures."""
LANGUAGES = ("en", "cn")


class EditBenchmark(PictureBenchmark):
    """
    Base of benchmarks of editing.

    The prompts are a JSON Lines file: `key`, `edit_task`, `instruction` and `image`, the path of the input image from
    the file's own folder. Edited pictures may have any size.
    """

    pattern = "*.jsonl"

    def read_items(self, path):
        if path.is_dir():
            raise ValueError(f"The edits are one JSON Lines file. Got the folder {path}. Name the file.")
        return [
            self.item(row, f"Line {number} of {path}", path.parent)
            for number, row in enumerate(json_lines(path), start=1)
        ]

    def item(self, row: dict[str, Any], where: str, folder: Path) -> Item:
        """
        The item of a row.

        Args:
            where: the row, in words, for errors.
            folder: from which paths of images count.
        """
        field_of(row, "edit_task", str, where)
        image = find_file(field_of(row, "image", str, where), [folder])
        if not image.is_file():
            raise FileNotFoundError(f"An edit must have its input image. {where} names {image}. Put it there.")
        return Item(field_of(row, "key", str, where), field_of(row, "instruction", str, where), row, (image,))

    def picture_path(self, item: Item) -> str:
        """Of an edited picture in the layout."""
        raise NotImplementedError

    def write_layout(self, pictures, folder):
        for item in pictures.items:
            save_png(pictures.open(item), folder / self.picture_path(item))

    def problems(self, folder):
        return flat_problems(folder, [self.picture_path(item) for item in self.items], one_size=False)


class ImgEditBenchmark(EditBenchmark):
    """ImgEdit-Bench: one picture for each key. Its judges give 1 to 5 points; no score is given here."""

    name = "imgedit"
    title = "ImgEdit-Bench"
    about = "One edited picture of each instruction. The scores, 1 to 5, are those of the official judge."
    official = "Its scripts, which find a picture by its key: FOLDER/<key>.png. Check their own layout."

    def picture_path(self, item):
        return f"{item.id}.png"


def _is_no_name(name: str) -> bool:
    return Path(name).name != name or name.startswith(".")


class GEditBenchmark(EditBenchmark):
    """
    GEdit-Bench: one picture for each key and language, scored by VIEScore; no score is given here.

    A row also has `language`, `en` or `cn`.
    """

    name = "gedit"
    title = "GEdit-Bench"
    about = "One edited picture of each instruction. The scores (SC, PQ, O) are those of VIEScore with its judge."
    official = f"VIEScore on FOLDER, with the method {METHOD}."

    def item(self, row, where, folder):
        item = super().item(row, where, folder)
        names = (item.row["edit_task"], item.id)
        if row.get("language") not in LANGUAGES or any(map(_is_no_name, names)):
            raise ValueError(
                f"An edit of GEdit-Bench must have a language ({', '.join(LANGUAGES)}), a key and an edit_task that "
                f"can name files. {where} has {row.get('language')!r:.20}, {names[1]!r:.40} and {names[0]!r:.40}. "
                f"Correct it."
            )
        return Item(f"{row['language']}-{item.id}", item.prompt, item.row, item.images)

    def picture_path(self, item):
        row = item.row
        return f"{METHOD}/fullset/{row['edit_task']}/{row['language']}/{row['key']}.png"
