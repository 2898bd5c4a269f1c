"""Items in `.json` and `.jsonl` files."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from .records import BadItem
from .rows import SourceSettings
from .sources import Source, expand_paths


class JsonSource(Source):
    """`.jsonl` files, one item a line, read by position; or `.json` files that hold one list. A file is a shard."""

    def __init__(self, settings: SourceSettings):
        super().__init__(settings)
        self.files = expand_paths(settings.path)
        self.num_shards = len(self.files)
        self._loaded: dict[int, Any] = {}

    def _load(self, shard: int):
        """The list of a `.json` file, or where each line of a `.jsonl` file begins."""
        if shard not in self._loaded:
            path = self.files[shard]
            if path.suffix == ".json":
                try:
                    content = json.loads(path.read_bytes())
                except ValueError as error:
                    raise ValueError(
                        f"A .json file must be valid JSON. {path} is not: {error}. Correct it."
                    ) from error
                if not isinstance(content, list):
                    raise ValueError(f"A .json file must hold a list of items. {path} does not. Use .jsonl for lines.")
            else:
                with open(path, "rb") as file:
                    lines = ((len(line), not line.strip()) for line in file)
                    lengths, blank = np.fromiter(lines, dtype=np.dtype((np.int64, 2))).T
                content = np.stack([np.cumsum(lengths) - lengths, np.arange(1, len(lengths) + 1)])[:, blank == 0]
            self._loaded[shard] = content
        return self._loaded[shard]

    def _count(self, shard: int) -> int:
        content = self._load(shard)
        return len(content) if isinstance(content, list) else content.shape[1]

    def _fields(self, shard: int, position: int):
        content, path = self._load(shard), self.files[shard]
        if isinstance(content, list):
            return f"{path}[{position}]", content[position]
        start, number = content[:, position].tolist()
        with open(path, "rb") as file:
            file.seek(start)
            line = file.readline()
        try:
            return f"{path}:{number}", json.loads(line)
        except ValueError as error:
            raise BadItem(f"{path}:{number}", f"not a line of JSON ({error})") from error

    def _image_file(self, key: str, name: str) -> Path:
        return Path(self.settings.image_root or self.files[0].parent, name)
