"""Items in `.json` and `.jsonl` files."""

import io
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .paths import check_split, ending, expand_paths, find_file
from .records import BadItem
from .rows import SourceSettings
from .sources import Source
from .texts import WIDE_MARKS, decode_text, parse_json


class JsonSource(Source):
    """`.jsonl` files, one item a line, read by position; or `.json` files that hold one list. A file is a shard."""

    def __init__(self, settings: SourceSettings):
        super().__init__(settings)
        self.files = expand_paths(settings.path)
        self.num_shards = len(self.files)
        for path in self.files:
            if path.is_dir():
                raise IsADirectoryError(f"JSON is read from files. {path} is a folder. Name them, as {path}/*.jsonl.")
        check_split(settings.split, ("train",), settings.path)
        self._recoded: dict[Path, bytes] = {}
        self._loaded: dict[int, Any] = {}

    def _load(self, shard: int):
        """The list of a `.json` file, or where each line of a `.jsonl` file begins."""
        if shard not in self._loaded:
            path = self.files[shard]
            if ending(path) == "json":
                try:
                    content = parse_json(path.read_bytes())
                except ValueError as error:
                    raise ValueError(
                        f"A .json file must be valid JSON. {path} is not: {error}. Correct it."
                    ) from error
                if not isinstance(content, list):
                    raise ValueError(f"A .json file must hold a list of items. {path} does not. Use .jsonl for lines.")
            else:
                self._recode(path)
                with self._open(path) as file:
                    lines = ((len(line), not line.strip()) for line in file)
                    lengths, blank = np.fromiter(lines, dtype=np.dtype((np.int64, 2))).T
                content = np.stack([np.cumsum(lengths) - lengths, np.arange(1, len(lengths) + 1)])[:, blank == 0]
            self._loaded[shard] = content
        return self._loaded[shard]

    def _recode(self, path: Path) -> None:
        """Hold the lines of a file in UTF-16 or UTF-32 as UTF-8, where a line ends with one byte."""
        with open(path, "rb") as file:
            is_wide = file.read(4).startswith(tuple(WIDE_MARKS))
        if is_wide:
            try:
                self._recoded[path] = decode_text(path.read_bytes()).encode()
            except ValueError as error:
                raise ValueError(f"A .jsonl file must be text. {path} is {error}.") from error

    def _open(self, path: Path) -> BinaryIO:
        return io.BytesIO(self._recoded[path]) if path in self._recoded else open(path, "rb")

    def _count(self, shard: int) -> int:
        content = self._load(shard)
        return len(content) if isinstance(content, list) else content.shape[1]

    def _fields(self, shard: int, position: int):
        content, path = self._load(shard), self.files[shard]
        if isinstance(content, list):
            return f"{path}[{position}]", content[position]
        start, number = content[:, position].tolist()
        with self._open(path) as file:
            file.seek(start)
            line = file.readline()
        try:
            return f"{path}:{number}", parse_json(line)
        except ValueError as error:
            raise BadItem(f"{path}:{number}", f"not a line of JSON ({error})") from error

    def _image_file(self, key: str, name: str) -> Path:
        return find_file(name, self._folders(key)[:1])

    def _folders(self, key: str) -> list[str | Path]:
        beside, root = Path(re.sub(r"(:\d+|\[\d+\])$", "", key)).parent, self.settings.image_root
        return [beside] if root is None else [root, beside]
