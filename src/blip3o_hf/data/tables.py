"""Items in tables of the library `datasets`: of the Hub, in parquet files, saved on disk, in memory, or a stream."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import IterableDataset

from ..names import check_keys
from .images import decoded
from .mixture import MixtureDataset
from .records import BadItem, Record
from .rows import CAPTION_NAMES, RowReader, SourceSettings
from .sources import Source, expand_paths
from .tolerance import BadItemCounter, TolerantSource

if TYPE_CHECKING:
    import datasets

CONVERSATIONS = ("turns", "conversations", "messages")
"""Columns that hold what user and assistant say."""


class TableSource(Source):
    """
    A table in memory or on disk.

    Args:
        table: images stay encoded until they are read.
        settings: which column is what; its `path` is the table's name in addresses.
    """

    def __init__(self, table: "datasets.Dataset", settings: SourceSettings):
        super().__init__(settings)
        self.table = table.with_format("arrow")

    def _count(self, shard: int) -> int:
        return len(self.table)

    def _fields(self, shard: int, position: int):
        return f"{self.settings.path}[{position}]", self.table[position].to_pylist()[0]

    def _image_file(self, key: str, name: str) -> Path:
        return Path(self.settings.image_root or "", name)


class HubSource(TableSource):
    """A dataset of the Hub, parquet files, or a folder written by `Dataset.save_to_disk`, through `datasets`."""

    def __init__(self, settings: SourceSettings):
        import datasets

        path = settings.path if isinstance(settings.path, str) else None
        if path and Path(path, "state.json").is_file():
            table = datasets.load_from_disk(path)
        elif path and not (Path(path).exists() or path.endswith(".parquet")):
            table = datasets.load_dataset(path, settings.name, split=settings.split)
        else:
            files = [
                f for p in expand_paths(settings.path) for f in (sorted(p.rglob("*.parquet")) if p.is_dir() else [p])
            ]
            table = datasets.load_dataset("parquet", data_files=[str(file) for file in files], split="train")
        named = {key: getattr(settings, key) for key in ("image", "caption", "target", "short_caption")}
        defaults = {field.name: field.default for field in fields(SourceSettings)}
        for key, column in named.items():
            if column not in (None, defaults[key]):
                check_keys([column], table.column_names, f"`{key}` of {settings.path}, which names a column")
        super().__init__(table, settings)


class TableStream(IterableDataset):
    """
    The records of a `datasets.IterableDataset`. A bad row is logged, counted and left out.

    Args:
        table: read anew by each epoch.
        settings: which column is what; its `path` is the table's name in addresses.
    """

    def __init__(self, table: "datasets.IterableDataset", settings: SourceSettings):
        self.table, self.reader = table, RowReader(settings)
        self.bad_items = BadItemCounter()

    def set_epoch(self, epoch: int) -> None:
        """Let a table that was shuffled be shuffled anew."""
        self.table.set_epoch(epoch)

    def __iter__(self) -> Iterator[Record]:
        for number, row in enumerate(self.table):
            self.bad_items.num_read += 1
            try:
                yield decoded(self.reader.record(f"{self.reader.settings.path}[{number}]", row))
            except BadItem as item:
                self.bad_items.count(item)


def check_columns(columns: list[str] | None) -> None:
    """
    Raises:
        ValueError: when none of a table's columns can hold what an image is to be drawn from, or a conversation.
    """
    known = (SourceSettings.caption, *CAPTION_NAMES, *CONVERSATIONS)
    if columns is None or set(known) & set(columns):
        return
    text = next((name for name in columns if "capt" in name or "text" in name or "desc" in name), "NAME")
    raise ValueError(
        f"A dataset must have a column 'caption' (or 'text'), or 'messages' for conversations. Its columns are "
        f"{', '.join(map(repr, columns)) or 'none'}. Rename the one that holds captions: "
        f"dataset.rename_column({text!r}, 'caption')."
    )


def open_table(table: Any, name: str) -> MixtureDataset | TableStream:
    """
    A table of `datasets` as a dataset of records.

    Args:
        table (`datasets.Dataset` or `datasets.IterableDataset`): with `image` and `caption`, or the other columns of a
            source.
        name: for addresses, such as `train_dataset`.

    Raises:
        ValueError: when it has no caption and no conversation, or no rows.
    """
    import datasets

    check_columns(table.column_names)
    settings = SourceSettings(path=name)
    if isinstance(table, datasets.IterableDataset):
        encoded = [key for key, kind in (table.features or {}).items() if isinstance(kind, datasets.Image)]
        for column in encoded:
            table = table.cast_column(column, datasets.Image(decode=False))
        return TableStream(table, settings)
    return MixtureDataset([TolerantSource(TableSource(table, settings))])
