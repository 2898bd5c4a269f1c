"""Items in tables of the library `datasets`: of the Hub, in parquet files, saved on disk, in memory, or a stream."""

import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from functools import partial
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import IterableDataset
from yaml import YAMLError

from ..checks import check_keys
from ..reading import MAX_CARD_BYTES, read_bytes, read_json, read_text
from ..yaml_text import parse_yaml
from .images import decoded
from .mixture import MixtureDataset
from .paths import check_split, ending, expand_paths, find_file
from .records import BadItem, Record
from .rows import CAPTION_NAMES, RowReader, SourceSettings
from .sources import Source
from .tolerance import BadItemCounter, TolerantSource

if TYPE_CHECKING:
    import datasets

CONVERSATIONS = ("turns", "conversations", "messages")
"""Columns that hold what user and assistant say."""


class TableReader(RowReader):
    """Rows of a table in memory or of a stream: paths of images are those that a program can open as they are."""

    folders: Sequence[str | Path] = (Path(),)
    """Where images are looked for that a row names by a relative path."""
    is_given = True
    """Whether a program of the user gives the rows, and no file of somebody else."""

    def __init__(self, settings: SourceSettings):
        super().__init__(settings)
        if settings.image_root is not None:
            self.folders = (settings.image_root,)

    def _image_file(self, key: str, name: str) -> Path:
        if not self.folders and not os.path.isabs(os.path.expanduser(name)):
            return super()._image_file(key, name)
        return find_file(name, self.folders or (Path(),))

    def _folders(self, key: str) -> Sequence[str | Path] | None:
        return None if self.is_given else self.folders


class TableSource(TableReader, Source):
    """
    A table in memory or on disk.

    Args:
        table: images stay encoded until they are read.
        settings: which column is what; its `path` is the table's name in addresses.
        folders: where images are looked for that a row names by a relative path, where there is no `image_root`.
    """

    def __init__(self, table: "datasets.Dataset", settings: SourceSettings, folders: Sequence[Path] = (Path(),)):
        super().__init__(settings)
        self.table = table.with_format("arrow")
        if settings.image_root is None:
            self.folders = folders

    def _count(self, shard: int) -> int:
        return len(self.table)

    def _fields(self, shard: int, position: int):
        key = f"{self.settings.path}[{position}]"
        try:
            return key, self.table[position].to_pylist()[0]
        except (ValueError, OverflowError) as error:  # texts that are no UTF-8, dates of no calendar
            raise BadItem(key, f"not a readable row ({error})") from error


class HubSource(TableSource):
    """
    A dataset of the Hub, parquet files, or a folder written by `save_to_disk`, through `datasets`.

    Of several splits, that of the setting `split` is read. A folder of parquet files has the splits that
    `datasets.load_dataset` finds in it; files that are named one by one are `train`. Relative paths of images are
    looked for in the folder and beside the parquet files.
    """

    is_given = False

    def __init__(self, settings: SourceSettings):
        path = settings.path if isinstance(settings.path, str) else None
        folders: list[Path] = []
        splits: list[str] = []
        if path and any(Path(path, name).is_file() for name in ("state.json", "dataset_dict.json")):
            table, splits = _saved(path, settings.split)
            folders = [Path(path)]
        elif path and not (Path(path).exists() or ending(Path(path)) == "parquet"):
            table = _of_split(settings, path, settings.name)
        else:
            files: dict[str, list[Path]] = {}
            for given in expand_paths(settings.path):
                found = _splits_of_folder(given, settings.name) if given.is_dir() else {"train": [given]}
                for split, paths in found.items():
                    files.setdefault(split, []).extend(paths)
                    folders += [given if given.is_dir() else given.parent, *(file.parent for file in paths)]
            if not files:
                raise FileNotFoundError(
                    f"A table is .parquet files. There is none in {settings.path}. Check the path."
                )
            for file in dict.fromkeys(path for paths in files.values() for path in paths):
                _check_parquet(file)
            splits = list(files)
            names = {split: [escape(str(file)) for file in paths] for split, paths in files.items()}
            table = _of_split(settings, "parquet", data_files=names)
        named = {key: getattr(settings, key) for key in ("image", "caption", "target", "short_caption")}
        defaults = {field.name: field.default for field in fields(SourceSettings)}
        for key, column in named.items():
            if column not in (None, defaults[key]):
                check_keys([column], table.column_names, f"`{key}` of {settings.path}, which names a column")
        super().__init__(table, settings, list(dict.fromkeys(folders)))
        if len(splits) > 1:
            self.note(f"split={settings.split} of {', '.join(splits)}")


def _saved(path: str, split: str) -> tuple["datasets.Dataset", list[str]]:
    """What `save_to_disk` wrote: a dataset, or the split of a `DatasetDict` and the names of all."""
    import datasets
    from pyarrow import ArrowException

    _check_data_files(Path(path))
    try:
        saved = datasets.load_from_disk(path)
    except (ArrowException, ValueError, LookupError, TypeError, AttributeError, OSError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"A saved dataset must be what `save_to_disk` wrote. {path} is not: {type(error).__name__}, {reason}. "
            f"Save it again."
        ) from error
    if isinstance(saved, datasets.DatasetDict):
        names = list(map(str, saved))
        check_split(split, names, path)
        return saved[split], names
    check_split(split, ["train", *([str(saved.split)] if saved.split else [])], path)
    return saved, []


def _check_data_files(folder: Path) -> None:
    """
    Raises:
        ValueError: when a saved dataset, or a split of it, names files outside of its folder.
    """
    for state in (*folder.glob("state.json"), *folder.glob("*/state.json")):
        content = read_json(state)
        files = content.get("_data_files") if isinstance(content, dict) else None
        for entry in files if isinstance(files, list) else ():
            name = entry.get("filename") if isinstance(entry, dict) else None
            if not isinstance(name, str) or Path(name).name != name or not (state.parent / name).is_file():
                raise ValueError(
                    f"A saved dataset names files beside it. {state} names {name!r:.80}. Save or download it again."
                )


def _of_split(settings: SourceSettings, *name: Any, **files: Any) -> "datasets.Dataset":
    """The split of a dataset that `datasets.load_dataset` opens by these arguments."""
    import datasets
    from datasets.exceptions import DatasetGenerationError
    from pyarrow import ArrowException

    # It logs what is wrong with a file, too, which would be printed beside the error.
    reader = logging.getLogger("datasets.packaged_modules.parquet.parquet")
    was_on, reader.disabled = not reader.disabled, True
    try:
        return datasets.load_dataset(*name, **files, split=settings.split)
    except (ArrowException, DatasetGenerationError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise ValueError(
            f"A table must be whole. The library `datasets` cannot read {settings.path}: {reason}. Save or download "
            f"it again."
        ) from error
    except ValueError as error:
        unknown = re.match(r"Unknown split .*Should be one of \[(.*)\]", str(error))
        if unknown is None:
            raise
        check_split(settings.split, re.findall(r"'([^']*)'", unknown[1]), settings.path)
        raise
    finally:
        reader.disabled = not was_on


def _check_parquet(file: Path) -> None:
    """
    Raises:
        ValueError: naming a file whose table of contents is damaged.
    """
    from pyarrow import ArrowException, parquet

    if file.is_file() and ending(file) == "parquet":
        try:
            parquet.read_schema(file)
        except (ArrowException, OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"A table must be parquet. {file} is not: {reason}. Save or download it again."
            ) from error


def _splits_of_folder(folder: Path, name: str | None) -> dict[str, list[Path]]:
    """The parquet files in a folder by their splits, as `datasets.load_dataset(folder, name)` finds them."""
    import datasets

    card = folder / "README.md"
    if card.is_file() and re.search(rb"^configs:", read_bytes(card, MAX_CARD_BYTES), re.MULTILINE):
        if problem := _configs_problem(card):
            raise ValueError(
                f"`configs` of a card must name parquet files in the folder. {card} {problem}. Correct it."
            )
        builder = datasets.load_dataset_builder(str(folder), name)
    else:
        builder = datasets.load_dataset_builder("parquet", data_dir=escape(str(folder)))
    splits = {str(split): map(Path, map(str, files)) for split, files in (builder.config.data_files or {}).items()}
    splits = {split: [file for file in files if ending(file) == "parquet"] for split, files in splits.items()}
    return {split: files for split, files in splits.items() if files}


def _configs_problem(card: Path) -> str:
    """Why the front matter of a card cannot be what `datasets` reads; empty where it can."""
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    block = REGEX_YAML_BLOCK.search(read_text(card, MAX_CARD_BYTES, errors="replace"))
    try:
        content = parse_yaml(block[2]) if block else {}
    except (ValueError, YAMLError) as error:
        return f"is no YAML ({' '.join(str(error).split())[:200]})"
    configs = content.get("configs", []) if isinstance(content, dict) else None
    if not isinstance(configs, list) or not all(isinstance(config, dict) for config in configs):
        return "holds no list of mappings there"
    named = re.findall(r"'(\w+://[^']*|/[^']*|(?:[^']*/)?\.\.(?:/[^']*)?)'", str(configs))
    return f"names {named[0]!r:.80}" if named else ""


class TableStream(IterableDataset):
    """
    The records of a `datasets.IterableDataset`. A bad row is logged, counted and left out.

    Args:
        table: read anew by each epoch.
        settings: which column is what; its `path` is the table's name in addresses.
        complete: makes what is given of a record whose images are still encoded.
    """

    def __init__(
        self,
        table: "datasets.IterableDataset",
        settings: SourceSettings,
        complete: Callable[[Record], Any] = decoded,
    ):
        self.table, self.reader, self.complete = table, TableReader(settings), complete
        self.bad_items = BadItemCounter()

    def set_epoch(self, epoch: int) -> None:
        """Let a table that was shuffled be shuffled anew."""
        self.table.set_epoch(epoch)

    def __iter__(self) -> Iterator[Record]:
        for number, row in enumerate(self.table):
            self.bad_items.num_read += 1
            try:
                yield self.complete(self.reader.record(f"{self.reader.settings.path}[{number}]", row))
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


def open_table(
    table: Any, name: str, complete: Callable[[str, Record], Any] | None = None
) -> MixtureDataset | TableStream:
    """
    A table of `datasets` as a dataset of records.

    Args:
        table (`datasets.Dataset` or `datasets.IterableDataset`): with `image` and `caption`, or the other columns of a
            source.
        name: for addresses, such as `train_dataset`.
        complete: as in [`~data.mixture.open_mixture`].

    Raises:
        ValueError: when it has no caption and no conversation, no rows, or several splits.
    """
    import datasets

    if isinstance(table, datasets.DatasetDict | datasets.IterableDatasetDict):
        splits = ", ".join(map(repr, table)) or "none"
        raise ValueError(f"A dataset must be one split. {name} holds {splits}. Pass dataset['train'], or another.")
    check_columns(table.column_names)
    settings = SourceSettings(path=name)
    if isinstance(table, datasets.IterableDataset):
        encoded = [key for key, kind in (table.features or {}).items() if isinstance(kind, datasets.Image)]
        for column in encoded:
            table = table.cast_column(column, datasets.Image(decode=False))
        return TableStream(table, settings, decoded if complete is None else partial(complete, name))
    source = TableSource(table, settings)
    if complete is not None:
        source.complete = partial(complete, name)
    return MixtureDataset([TolerantSource(source)])
