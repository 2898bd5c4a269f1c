"""Items in a folder of images."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .rows import SourceSettings
from .sources import FOLDER_ENDINGS, Source


class FolderSource(Source):
    """
    A folder of images. The caption is that of `metadata.jsonl` or `metadata.csv` (key `file_name`), as in Hugging Face
    `imagefolder`; else the text of the `.txt` file of the same name; else what `prompt_template` makes of the folder.
    """

    def __init__(self, settings: SourceSettings):
        super().__init__(settings)
        self.folder = Path(settings.path)
        files = {path for path in self.folder.rglob("*") if path.suffix.lower()[1:] in FOLDER_ENDINGS}
        self._rows: dict[Path, dict[str, Any]] = {}
        for table in sorted([*self.folder.rglob("metadata.jsonl"), *self.folder.rglob("metadata.csv")]):
            with open(table, encoding="utf-8", newline="") as file:
                rows = csv.DictReader(file) if table.suffix == ".csv" else _json_lines(table, file)
                for number, row in enumerate(rows, start=1):
                    if not isinstance(row, dict) or not row.get("file_name"):
                        raise ValueError(f"Rows must have a `file_name`. Row {number} of {table} has none. Add it.")
                    self._rows[table.parent / row["file_name"]] = row
        self.files = sorted(files | self._rows.keys())

    def _count(self, shard: int) -> int:
        return len(self.files)

    def _fields(self, shard: int, position: int):
        path = self.files[position]
        content = {"folder": path.parent.name, **self._rows.get(path, {}), self.settings.image: str(path.absolute())}
        if self.settings.caption not in content and path.with_suffix(".txt").is_file():
            content[self.settings.caption] = path.with_suffix(".txt").read_text(encoding="utf-8", errors="replace")
        return str(path), content

    def _image_file(self, key: str, name: str) -> Path:
        return self.folder / name


def _json_lines(path: Path, lines: Iterable[str]):
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path} must hold one JSON mapping a line. Line {number}: {error}.") from error
