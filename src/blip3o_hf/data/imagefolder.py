"""Items in a folder of images."""

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from ..files import is_inside
from .paths import IMAGE_ENDINGS, UNREAD_ENDINGS, ending, files_of_split, find_file, is_metadata, visible_files
from .records import BadItem
from .rows import SourceSettings, given
from .sources import Source
from .texts import decode_text, parse_json

DELIMITERS = (",", ";", "\t")
"""What programs for spreadsheets write between columns; the first under which there is a `file_name` is taken."""


class FolderSource(Source):
    """
    A folder of images. The caption is that of `metadata.jsonl`, `.csv` or `.parquet` (key `file_name`), as in Hugging
    Face `imagefolder`; else the text of the `.txt` file of the same name; else what `prompt_template` makes of the
    folder.

    Further images that a row names, as inputs or target, are looked for beside the file with the row, then in the
    folder; they are no items of their own, unless they have a row or a `.txt`. Where subfolders are named `train` and
    `test` or `validation`, those of the setting `split` are read. Hidden files are left out.
    """

    def __init__(self, settings: SourceSettings):
        super().__init__(settings)
        self.folder = Path(cast("str", settings.path))  # `open_source` refuses a list
        files = visible_files(self.folder)
        images = {path for path in files if ending(path) in IMAGE_ENDINGS}
        tables = list(filter(is_metadata, files))
        known = {os.path.abspath(path): path for path in images} if tables else {}
        self._rows: dict[Path, list[dict[str, Any]]] = {}
        self._named: set[Path] = set()
        for table in tables:
            self._rows |= self._read_table(table, known)
        images -= {path for path in self._named - self._rows.keys() if _caption_file(path) is None}
        images |= self._rows.keys()
        paths = files_of_split(images, self.folder, settings.split)
        self.items = [(path, number) for path in paths for number in range(len(self._rows.get(path, "1")))]
        self._note_left_out([path for path in files if ending(path) in UNREAD_ENDINGS], len(images))

    def _read_table(self, table: Path, known: dict[str, Path]) -> dict[Path, list[dict[str, Any]]]:
        """The rows of a metadata file by the images they are about; images that they name are noted in `_named`."""
        if not table.is_file() or not (self.settings.allow_outside or is_inside(table, [self.folder])):
            raise ValueError(
                f"Metadata must be a file in the folder of its images. {table} leads out of {self.folder}, or is no "
                f"file. Copy it there."
            )
        found: dict[Path, list[dict[str, Any]]] = {}
        folders = [Path(folder) for folder in (self.settings.image_root, table.parent, self.folder) if folder]

        def beside(name: str) -> Path | None:
            return known.get(os.path.abspath(os.path.join(table.parent, name)))

        def find(name: str) -> Path:
            path = beside(name) or find_file(name, folders)
            return known.get(os.path.abspath(path), path)

        read = {"csv": _csv_rows, "jsonl": _json_rows, "parquet": _parquet_rows}[ending(table)]
        for number, row in enumerate(read(table), start=1):
            if not isinstance(row, dict) or not isinstance(row.get("file_name"), str) or not row["file_name"].strip():
                raise ValueError(f"Rows must have a `file_name`. Row {number} of {table} has none. Add it.")
            for key, value in row.items():
                names = [name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str)]
                if key in (self.settings.target, "images") and given(value) is not None:
                    paths = {name: find(name) for name in names}
                    row[key] = _exchanged(value, {name: str(path.absolute()) for name, path in paths.items()})
                    self._named.update(paths.values())
                else:
                    self._named.update(filter(None, map(beside, names)))
            found.setdefault(find(row["file_name"]), []).append(row)
        return found

    def _note_left_out(self, unread: list[Path], number: int) -> None:
        if unread:
            counts = ", ".join(f"{count} .{name}" for name, count in Counter(map(ending, unread)).most_common())
            self.note(f"not read: {counts}, such as {unread[0]}; convert them to JPEG or PNG")
        taken = len({path for path, _ in self.items})
        if taken < number:
            self.note(f"split={self.settings.split}: {taken} of {number} images, by the names of folders")

    def _count(self, shard: int) -> int:
        return len(self.items)

    def _fields(self, shard: int, position: int):
        path, number = self.items[position]
        key = f"{path}#{number + 1}" if number else str(path)
        row = self._rows[path][number] if path in self._rows else {}
        content = {"folder": path.parent.name, **row, self.settings.image: str(path.absolute())}
        if not self.has_caption(content) and (file := _caption_file(path)):
            self._inside(key, file.name, file)
            try:
                content[self.settings.caption] = decode_text(file.read_bytes())
            except ValueError as error:
                raise BadItem(key, f"{file.name} is {error}") from error
        return key, content

    def _image_file(self, key: str, name: str) -> Path:
        return find_file(name, [self.folder])

    def _folders(self, key: str) -> list[str | Path]:
        return [self.folder, *([self.settings.image_root] if self.settings.image_root else [])]


def _exchanged(value: Any, names: dict[str, str]) -> Any:
    """A name, or a list of what may be names, with other names."""
    if isinstance(value, list):
        return [names.get(each, each) if isinstance(each, str) else each for each in value]
    return names.get(value, value) if isinstance(value, str) else value


def _caption_file(path: Path) -> Path | None:
    files = (path.with_suffix(suffix) for suffix in (".txt", ".TXT"))
    return next((file for file in files if file.is_file()), None)


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = decode_text(path.read_bytes(), keep_bad_bytes=True)
        first, _, rest = text.partition("\n")
        if first.strip().lower() in ("sep=,", "sep=;", "sep=\t", "sep="):  # a line for Excel alone
            text = rest
        for delimiter in DELIMITERS:
            rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
            names = [name.strip() for name in next(rows, [])]
            if "file_name" in names:
                break
        yield from (dict(zip(names, row, strict=False)) for row in rows if any(map(str.strip, row)))
    except (ValueError, csv.Error) as error:
        raise ValueError(f"A table must be CSV in UTF-8. {path} is not: {error}. Correct it.") from error


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        yield from parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"A table must be parquet. {path} is not: {error}. Save it again.") from error


def _json_rows(path: Path) -> Iterator[Any]:
    try:
        lines = decode_text(path.read_bytes(), keep_bad_bytes=True).split("\n")
    except ValueError as error:
        raise ValueError(f"{path} must hold one JSON mapping a line. It is {error}.") from error
    for number, line in enumerate(lines, start=1):
        if line.strip("\ufeff \t\r"):
            try:
                yield parse_json(line.encode("utf-8", "surrogateescape"))
            except ValueError as error:
                raise ValueError(f"{path} must hold one JSON mapping a line. Line {number}: {error}.") from error
