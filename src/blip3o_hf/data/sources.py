"""Readers of training data: image folders, JSON, webdataset tars and datasets of the Hub, all by position."""

import contextlib
import csv
import itertools
import json
import os
import re
import string
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property, partial
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np

from ..names import check_keys
from .images import MAX_PIXELS, EncodedImage, decoded
from .records import BadItem, Record

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp")
FOLDER_ENDINGS = (*IMAGE_ENDINGS, "bmp", "gif", "tif", "tiff", "avif")
USER_NAMES = ("human", "user")
ASSISTANT_NAMES = ("gpt", "assistant")
# Settings that decide which images are an item's, and which of them are bad.
IMAGE_SETTINGS = ("path", "format", "image", "target", "image_root", "reconstruct", "max_pixels", "min_size")
IMAGE_SETTINGS += ("name", "split")


@dataclass(frozen=True)
class SourceSettings:
    """
    The settings of one source, keys of a recipe.

    Args:
        path: a folder, a file, a glob or braces such as `{000..127}` for several, a list of these, or a Hub name.
        format: `"auto"`, `"imagefolder"`, `"json"`, `"webdataset"` or `"hub"` (also parquet files and saved datasets).
        image: column or key of the image.
        caption: column or key of the caption.
        target: column or key of the image to generate where `image` is an input; `None` where it means something else.
        short_caption: column or key of a second, short caption, or `None`.
        short_caption_rate: share in [0, 1] of readings that take the short caption where an item has one.
        prompt_template: text around the caption, such as `"a photo: {caption}"`; `{folder}` is the image's folder.
        image_root: folder of relative image paths. Default: the folder of the file that names them.
        reconstruct: give images without captions, as input and target at once.
        max_pixels: larger images are bad items.
        min_size: images with a shorter side below are bad items.
        name: configuration of a Hub dataset.
        split: split of a Hub dataset.
        seed: of the choice between captions.
    """

    path: str | list[str]
    format: str = "auto"
    image: str = "image"
    caption: str = "caption"
    target: str | None = "target"
    short_caption: str | None = None
    short_caption_rate: float = 0.1
    prompt_template: str | None = None
    image_root: str | None = None
    reconstruct: bool = False
    max_pixels: int = MAX_PIXELS
    min_size: int = 1
    name: str | None = None
    split: str = "train"
    seed: int = 0

    def __post_init__(self):
        if not 0 <= self.short_caption_rate <= 1:
            raise ValueError(f"`short_caption_rate` must be in [0, 1]. Got {self.short_caption_rate}. Example: 0.1.")
        if self.prompt_template is not None:
            names = {name for _, name, _, _ in string.Formatter().parse(self.prompt_template) if name is not None}
            if not names or not names <= {"caption", "folder"}:
                raise ValueError(
                    "`prompt_template` must hold {caption} or {folder} and nothing else in braces. "
                    f"Got {self.prompt_template!r}. Example: 'a photo: {{caption}}'."
                )


def expand_paths(path: str | list[str]) -> list[Path]:
    """
    The existing files that globs and braces stand for, in a fixed order.

    Raises:
        FileNotFoundError: when a name or pattern stands for no file.

    Example:
        >>> expand_paths("shards/{000..002}.tar")  # doctest: +SKIP
        [PosixPath('shards/000.tar'), PosixPath('shards/001.tar'), PosixPath('shards/002.tar')]
    """
    if not isinstance(path, str | Path):
        return [file for entry in path for file in expand_paths(entry)]
    braces = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", str(path))
    if braces:
        first, last, words = braces.groups()
        if words is None:
            words = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
        else:
            words = words.split(",")
        return expand_paths([path[: braces.start()] + word + path[braces.end() :] for word in words])
    files = [Path(path)] if Path(path).exists() else sorted(map(Path, glob(str(path), recursive=True)))
    if not files:
        raise FileNotFoundError(f"A source must be files that exist. There is none at {path}. Check the path.")
    return files


class Source:
    """
    Items by position, in shards. A reader gives `num_shards`, `_count(shard)` and `_fields(shard, position)`.

    `source[i]` and `source.read(shard, position, epoch)` give a [`Record`] or raise [`BadItem`]; nothing is skipped or
    replaced. The epoch matters only for the choice between a long and a short caption.

    `complete` makes what is given of a record whose images are still encoded; by default it decodes them.
    """

    num_shards = 1
    complete: Callable[[Record], Any] = staticmethod(decoded)

    def __init__(self, settings: SourceSettings):
        self.settings = settings
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
        return self.complete(self._checked_record(*self._fields(shard, position), is_short))

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
                records.append(self._checked_record(key, content, is_short))
            except BadItem as item:
                problem = item
        if not records:
            raise problem
        return records

    @property
    def identity(self) -> str:
        """What, beside an item's key, decides which images it has."""
        return json.dumps([getattr(self.settings, name) for name in IMAGE_SETTINGS], default=str)

    def _checked_record(self, key: str, content: Any, is_short: bool) -> Record:
        if not isinstance(content, Mapping):
            raise BadItem(key, f"an item must be a mapping of keys, not {type(content).__name__}")
        try:
            return self._record(key, content, is_short)
        except ValueError as error:
            raise BadItem(key, str(error)) from error

    def _record(self, key: str, content: Mapping[str, Any], is_short: bool) -> Record:
        settings = self.settings
        image, target = content.get(settings.image), content.get(settings.target) if settings.target else None
        if settings.reconstruct:
            picture = self._image(key, image if target is None else target)
            return Record(key, target=picture, images=(picture,))
        turns = conversation(key, content)
        images = content.get("images")
        if not images:
            images = [] if image is None or (target is None and not turns) else image
        images = tuple(self._image(key, each) for each in (images if isinstance(images, list) else [images]))
        if turns:
            placeholders = sum(text.count("<image>") for turn in turns for text in turn)
            if placeholders and placeholders != len(images):
                raise BadItem(key, f"the turns hold {placeholders} times <image> and there are {len(images)} images")
            turns = tuple(tuple(text.replace("<image>", "").strip() for text in turn) for turn in turns)
            return Record(key, images=images, turns=turns)
        prompt = self._prompt(key, content, is_short)
        return Record(key, self._image(key, image if target is None else target), prompt, images)

    def _prompt(self, key: str, content: Mapping[str, Any], is_short: bool) -> str:
        settings = self.settings
        short = content.get(settings.short_caption) if is_short and settings.short_caption else None
        caption = short or content.get(settings.caption) or content.get("prompt")
        template = settings.prompt_template or "{caption}"
        if "{caption}" in template and not (isinstance(caption, str) and caption.strip()):
            raise BadItem(key, f"no text under '{settings.caption}'; there is {_names(content)}")
        if "{folder}" in template and "folder" not in content:
            raise BadItem(key, "`prompt_template` holds {folder}, which only images of an imagefolder have")
        return template.format(caption=(caption or "").strip(), folder=content.get("folder"))

    def _image(self, key: str, value) -> EncodedImage:
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if value is None:
            raise BadItem(key, f"no image under '{self.settings.image}'")
        if isinstance(value, str):
            value = self._image_file(key, value)
        elif not (isinstance(value, bytes) or callable(value)):
            raise BadItem(key, f"an image must be a path or encoded bytes, not {type(value).__name__}")
        return EncodedImage(value, key, self.settings.max_pixels, self.settings.min_size)

    def _image_file(self, key: str, name: str) -> Path:
        if self.settings.image_root is None:
            raise BadItem(key, f"image path {name!r} without `image_root`")
        return Path(self.settings.image_root, name)


def _names(content: Mapping[str, Any]) -> str:
    return ", ".join(f"'{name}'" for name in content) or "nothing"


def conversation(key: str, content: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """
    The turns of an item: our `turns`, LLaVA's `conversations` or chat `messages`; empty when it has none.

    Raises:
        BadItem: when user and assistant do not take turns.
    """
    if content.get("turns"):
        turns = content["turns"]
        if not isinstance(turns, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in turns):
            raise BadItem(key, "turns must be a list of pairs, a user's text and its answer")
        return _texts(key, tuple(tuple(turn) for turn in turns))
    messages = content.get("conversations") or content.get("messages") or ()
    speakers, texts = [], []
    for message in messages:
        if not isinstance(message, Mapping):
            raise BadItem(key, f"a message must be a mapping, not {type(message).__name__}")
        speakers.append(message.get("from") or message.get("role"))
        texts.append(message.get("value", message.get("content")))
    expected = (USER_NAMES, ASSISTANT_NAMES) * (len(speakers) // 2)
    if len(speakers) % 2 or any(speaker not in names for speaker, names in zip(speakers, expected, strict=True)):
        raise BadItem(key, f"user and assistant must take turns; the speakers are {', '.join(map(str, speakers))}")
    return _texts(key, tuple(zip(texts[::2], texts[1::2], strict=True)))


def _texts(key: str, turns: tuple[tuple, ...]) -> tuple[tuple[str, str], ...]:
    if not all(isinstance(text, str) for turn in turns for text in turn):
        raise BadItem(key, "a message must be a text")
    return turns


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


class WebDatasetSource(Source):
    """
    Plain tars in the webdataset layout: members of one name before the first dot are one item.

    `jpg`, `jpeg`, `png` or `webp` is the image, `txt` the caption, `json` any further keys, which win over `txt`. Of
    named images such as `0001.target.png` and `0001.input.png`, `target` is the target and the others are inputs.
    A tar is a shard; only its headers are read to find the items, and nothing is ever unpacked to disk.
    """

    def __init__(self, settings: SourceSettings):
        super().__init__(settings)
        paths = expand_paths(settings.path)
        self.files = [f for path in paths for f in (sorted(path.glob("*.tar")) if path.is_dir() else [path])]
        if not self.files:
            raise FileNotFoundError(f"A webdataset is .tar files. There is none in {settings.path}. Check the path.")
        self.num_shards = len(self.files)
        self._starts: dict[int, np.ndarray] = {}

    def _index(self, shard: int) -> np.ndarray:
        """Where the first header of each item stands."""
        if shard not in self._starts:
            path, starts, last = self.files[shard], [], None
            try:
                with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
                    with contextlib.suppress(tarfile.TarError):  # where it breaks off, an item cannot be read
                        for member in tar:
                            name = _split_name(member.name)[0]
                            if not member.isdir():
                                starts += [member.offset] if name != last else []
                                last = name
                    file.seek(tar.offset)
                    if any(file.read(tarfile.BLOCKSIZE)):
                        starts.append(tar.offset)
            except tarfile.TarError as error:
                raise ValueError(
                    f"A shard must be a plain tar, not compressed. {path} is none ({error}). Unpack or remove it."
                ) from error
            self._starts[shard] = np.array(starts, dtype=np.int64)
        return self._starts[shard]

    def _count(self, shard: int) -> int:
        return len(self._index(shard))

    def _fields(self, shard: int, position: int):
        path, start = self.files[shard], int(self._index(shard)[position])
        key, members = None, {}
        with open(path, "rb") as file, contextlib.suppress(tarfile.TarError):  # a break after it is the next item's
            end = file.seek(0, os.SEEK_END)
            file.seek(start)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    name, ending = _split_name(member.name)
                    if member.isdir():
                        continue
                    if key is not None and key != f"{path}:{name}":
                        break
                    key = f"{path}:{name}"
                    if member.name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", member.name):
                        raise BadItem(key, f"member {member.name!r} leaves the archive")
                    if not member.isfile() or member.issparse():
                        raise BadItem(key, f"member {member.name!r} is no regular file")
                    if ending in members:
                        raise BadItem(key, f"two members of the name {member.name!r}")
                    if not 0 <= member.size <= end - member.offset_data:
                        raise BadItem(key, f"the tar ends within {member.name!r}")
                    read = partial(_read_part, path, member.offset_data, member.size)
                    members[ending] = read if ending.rpartition(".")[2] in IMAGE_ENDINGS else read()
        if key is None:
            raise BadItem(f"{path}@{start}", "broken tar, nothing after this byte can be read")
        return key, self._content(key, members)

    def _content(self, key: str, members: Mapping[str, bytes | Callable[[], bytes]]) -> dict[str, Any]:
        content: dict[str, Any] = {}
        if "txt" in members:
            content[self.settings.caption] = members["txt"].decode("utf-8", errors="replace")
        if "json" in members:
            try:
                further = json.loads(members["json"])
            except ValueError as error:
                raise BadItem(key, f"member json is not valid JSON ({error})") from error
            if not isinstance(further, dict):
                raise BadItem(key, "member json must be a mapping")
            content.update(further)
        inputs = []
        for ending, data in sorted(members.items()):
            name, _, image_format = ending.rpartition(".")
            if image_format in IMAGE_ENDINGS and name in ("", self.settings.target):
                content[name or self.settings.image] = data
            elif image_format in IMAGE_ENDINGS:
                inputs.append(data)
        return content | ({"images": inputs} if inputs else {})


def _read_part(path: Path, start: int, size: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(size)


def _split_name(name: str) -> tuple[str, str]:
    folder, slash, file = name.rpartition("/")
    base, _, ending = file.partition(".")
    return folder + slash + base, ending.lower()


class HubSource(Source):
    """A dataset of the Hub, parquet files, or a folder written by `Dataset.save_to_disk`, through `datasets`."""

    def __init__(self, settings: SourceSettings):
        super().__init__(settings)
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
        self.table = table.with_format("arrow")  # images stay encoded until they are read

    def _count(self, shard: int) -> int:
        return len(self.table)

    def _fields(self, shard: int, position: int):
        return f"{self.settings.path}[{position}]", self.table[position].to_pylist()[0]

    def _image_file(self, key: str, name: str) -> Path:
        return Path(self.settings.image_root or "", name)


FORMATS: dict[str, Callable[[SourceSettings], Source]] = {
    "hub": HubSource,
    "imagefolder": FolderSource,
    "json": JsonSource,
    "webdataset": WebDatasetSource,
}


def guess_format(path: str | list[str]) -> str:
    """
    The format of existing files by their endings; a name that is no path is a dataset of the Hub.

    Raises:
        ValueError: when files say nothing.
    """
    if isinstance(path, str) and not Path(path).exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        is_file = Path(path).suffix in (".tar", ".json", ".jsonl", ".parquet")
        return guess_format([path]) if is_file else "hub"
    first = expand_paths(path)[0]
    if first.is_dir() and (first / "state.json").is_file():
        return "hub"
    inside = first.rglob("*") if first.is_dir() else [first]
    endings = {file.suffix.lower()[1:] for file in itertools.islice(inside, 10_000)}
    for ending, name in (("tar", "webdataset"), ("parquet", "hub")):
        if ending in endings:
            return name
    if first.is_dir() and endings & set(FOLDER_ENDINGS):
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
        ValueError: for an unknown key, format or column, or files of no known format.
        FileNotFoundError: when the path stands for nothing.
    """
    check_keys(settings, (field.name for field in fields(SourceSettings)), "a data source")
    if not settings.get("path"):
        raise ValueError("A data source must have the key 'path'. It has none. Add it.")
    resolved = SourceSettings(**settings)
    name = guess_format(resolved.path) if resolved.format == "auto" else resolved.format
    check_keys([name], [*FORMATS, "auto"], "`format` of a data source")
    if name == "imagefolder" and not (isinstance(resolved.path, str) and Path(resolved.path).is_dir()):
        raise FileNotFoundError(f"An imagefolder is one folder. There is none at {resolved.path}. Check the path.")
    return FORMATS[name](resolved)
