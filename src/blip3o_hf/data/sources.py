"""Sources of training data: items by position, in shards, for all kinds of files."""

import itertools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import check_keys, find_class
from .images import decoded
from .paths import IMAGE_ENDINGS, ending, expand_paths, is_metadata, walk
from .records import BadItem, Record
from .rows import RowReader, SourceSettings

FORMATS = {
    "hub": "blip3o_hf.data.tables:HubSource",
    "imagefolder": "blip3o_hf.data.imagefolder:FolderSource",
    "json": "blip3o_hf.data.json_files:JsonSource",
    "webdataset": "blip3o_hf.data.tar_files:WebDatasetSource",
}
# Settings that decide which images are an item's, and which of them are bad.
IMAGE_SETTINGS = ("path", "format", "image", "target", "image_root", "reconstruct", "max_pixels", "min_size")
IMAGE_SETTINGS += ("name", "split")


class Source(RowReader):
    """
    Items by position, in shards. A reader gives `num_shards`, `_count(shard)` and `_fields(shard, position)`.

    `source[i]` and `source.read(shard, position, epoch)` give a [`Record`] or raise [`BadItem`]; nothing is skipped or
    replaced. The epoch matters only for the choice between a long and a short caption.

    `complete` makes what is given of a record whose images are still encoded; by default it decodes them.
    """

    num_shards = 1
    complete: Callable[[Record], Any] = staticmethod(decoded)

    def __init__(self, settings: SourceSettings):
        super().__init__(settings)
        self._counts: dict[int, int] = {}

    def _count(self, shard: int) -> int:
        raise NotImplementedError

    def _fields(self, shard: int, position: int) -> tuple[str, Mapping[str, Any]]:
        raise NotImplementedError

    def shard_length(self, shard: int) -> int:
        """Number of items of a shard; no image is decoded for it."""
        if shard not in self._counts:
            self._counts[shard] = self._count(shard)
        return self._counts[shard]

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([self.shard_length(shard) for shard in range(self.num_shards)])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def locate(self, index: int) -> tuple[int, int]:
        """Shard and position of an item."""
        if not 0 <= index < len(self):
            raise IndexError(f"Items are numbered from 0 to {len(self) - 1}. Got {index}.")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, int(index - (self._ends[shard - 1] if shard else 0))

    def __getitem__(self, index: int) -> Record:
        return self.read(*self.locate(index))

    def read(self, shard: int, position: int, epoch: int = 0) -> Record:
        """
        One item.

        Raises:
            BadItem: when it cannot be used.
        """
        rng = np.random.default_rng((self.settings.seed, epoch, shard, position))
        is_short = rng.random() < self.settings.short_caption_rate
        return self.complete(self.record(*self._fields(shard, position), is_short))

    def content(self, index: int) -> Mapping[str, Any]:
        """
        The values of an item by the names of its columns or keys, as they are before anything is made of them.

        Raises:
            BadItem: when they cannot be read.
        """
        return self._fields(*self.locate(index))[1]

    def variants(self, index: int) -> list[Record]:
        """
        An item with each of its captions, the long and the short one, its images still encoded.

        Raises:
            BadItem: when it cannot be used with any.
        """
        key, content = self._fields(*self.locate(index))
        has_short = self.settings.short_caption is not None and self.settings.short_caption_rate > 0
        records = []
        for is_short in (False, True) if has_short else (False,):
            try:
                records.append(self.record(key, content, is_short))
            except BadItem as item:
                problem = item
        if not records:
            raise problem
        return records

    @property
    def identity(self) -> str:
        """What, beside an item's key, decides which images it has."""
        return json.dumps([getattr(self.settings, name) for name in IMAGE_SETTINGS], default=str)


def guess_format(path: str | list[str]) -> str:
    """
    The format of existing files by their endings; a name that is no path is a dataset of the Hub.

    Raises:
        ValueError: when files say nothing.
    """
    if isinstance(path, str) and not Path(path).exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        is_file = ending(Path(path)) in ("tar", "json", "jsonl", "parquet")
        return guess_format([path]) if is_file else "hub"
    first = expand_paths(path)[0]
    if first.is_dir() and any((first / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return "hub"
    inside = walk(first) if first.is_dir() else [first]
    files = list(itertools.islice(inside, 10_000))
    if first.is_dir() and any(ending(file) in IMAGE_ENDINGS for file in files):
        files = [file for file in files if not is_metadata(file)]
    endings = {ending(file) for file in files}
    for name, form in (("tar", "webdataset"), ("parquet", "hub")):
        if name in endings:
            return form
    if first.is_dir() and endings & set(IMAGE_ENDINGS):
        return "imagefolder"
    if endings & {"json", "jsonl"} and not first.is_dir():
        return "json"
    raise ValueError(
        f"`format: auto` must find tars, parquet, .json, .jsonl or images. {first} has none. Name the file or format."
    )


def open_source(settings: Mapping[str, Any]) -> Source:
    """
    The source that a recipe describes.

    Args:
        settings: keys of [`SourceSettings`]; `path` is required.

    Raises:
        ValueError: for an unknown key, format or column, or files of no known format. Your own `format` is written
            `module:Class`, a subclass of [`Source`].
        FileNotFoundError: when the path stands for nothing.
    """
    check_keys(settings, (field.name for field in fields(SourceSettings)), "a data source")
    if not settings.get("path"):
        raise ValueError("A data source must have the key 'path'. It has none. Add it.")
    resolved = SourceSettings(**settings)
    name = guess_format(resolved.path) if resolved.format == "auto" else resolved.format
    if name == "imagefolder" and not (isinstance(resolved.path, str) and Path(resolved.path).is_dir()):
        raise FileNotFoundError(f"An imagefolder is one folder. There is none at {resolved.path}. Check the path.")
    return find_class(name, FORMATS, "`format` of a data source")(resolved)
