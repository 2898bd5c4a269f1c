"""What a benchmark of drawing is: prompts in, pictures out, the official scorer's folder, and scores where honest."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from ...checks import check_sizes
from ...data.images import as_input_image
from ...hub.results import Score
from ...reading import read_bytes, read_text

RUN_SETTINGS, RUN_PICTURES = "run.json", "pictures"
"""In the folder of a run: the settings with which it goes on, and the pictures."""


@dataclass(frozen=True)
class Item:
    """
    One prompt of a benchmark.

    Args:
        id: unlike that of any other item; letters, digits, `_`, `-` and `.`, since it names a folder.
        prompt: what is drawn, as the benchmark words it.
        row: all that the prompt file says of it.
        images: input images, for edits: paths.
    """

    id: str
    prompt: str
    row: Mapping[str, Any] = field(default_factory=dict)
    images: tuple[Path, ...] = ()


@dataclass(frozen=True)
class PromptFile:
    """
    A prompt file as a run read it.

    Args:
        path: of the file, or of the folder of files; `None` where the benchmark makes its prompts itself.
        sha256: of the bytes; of a folder, of all names and bytes, in the order of the names; without a file, of all
            ids and prompts.
    """

    path: Path | None
    sha256: str

    @classmethod
    def of_items(cls, items: Sequence[Item]) -> "PromptFile":
        """What stands for a prompt file where a benchmark makes its prompts itself: the same items, the same hash."""
        content = json.dumps([[item.id, item.prompt] for item in items])
        return cls(None, hashlib.sha256(content.encode()).hexdigest())

    @classmethod
    def read(cls, path: str | os.PathLike, pattern: str = "*") -> "PromptFile":
        """
        Args:
            path: a file, or a folder whose files match `pattern`.
            pattern: of names in a folder.

        Raises:
            FileNotFoundError: when there is none.
        """
        path, digest = Path(path), hashlib.sha256()
        if path.is_file():
            digest.update(read_bytes(path))
            return cls(path, digest.hexdigest())
        files = sorted(path.glob(pattern)) if path.is_dir() else []
        if not files:
            raise FileNotFoundError(
                f"A benchmark needs its prompt file, or a folder of {pattern}. None is at {path}. Check the path."
            )
        for file in files:
            digest.update(f"{file.name}\0".encode())
            digest.update(read_bytes(file))
        return cls(path, digest.hexdigest())


class Pictures:
    """
    The pictures of a run, in `FOLDER/<item id>/<number>.png`; what is missing is known, and never passed over.

    Args:
        folder: of the pictures.
        items: of the benchmark.
        number: of pictures for each.
    """

    def __init__(self, folder: str | os.PathLike, items: Sequence[Item], number: int = 1):
        self.folder = Path(folder)
        self.items = list(items)
        self.number = number

    def path(self, item: Item, number: int = 0) -> Path:
        """Where picture `number` of an item lies, or will lie."""
        return self.folder / item.id / f"{number}.png"

    def open(self, item: Item, number: int = 0) -> Image.Image:
        """
        Picture `number` of an item, in RGB.

        Raises:
            ValueError: when it is missing or damaged.
        """
        return as_input_image(self.path(item, number))

    def missing(self) -> list[Path]:
        """The pictures that are not there."""
        paths = (self.path(item, number) for item in self.items for number in range(self.number))
        return [path for path in paths if not path.is_file()]

    def check_complete(self) -> None:
        """
        Raises:
            ValueError: when pictures are missing, since a mean over the others would be one of another benchmark.
        """
        missing = self.missing()
        if missing:
            raise ValueError(
                f"All {len(self.items) * self.number} pictures must be there. {len(missing)} are missing, the first "
                f"is {missing[0]}. Draw them first."
            )


class PictureBenchmark:
    """
    Base of benchmarks of drawing and editing. Your own is named `module:Class`.

    Args:
        prompts: the prompt file, or the folder of prompt files; not needed where the benchmark makes its prompts.
        limit: take only the first so many items.

    Raises:
        ValueError: when ids are missing or there twice, a row lacks what it must have, or there are no prompts.
        FileNotFoundError: when the prompts are not there.
    """

    name: ClassVar[str]
    """In commands, such as `geneval`."""
    title: ClassVar[str]
    """For people, such as `GenEval`."""
    about: ClassVar[str] = ""
    """What is measured and how it is judged, in sentences."""
    pictures_per_prompt: ClassVar[int] = 1
    pattern: ClassVar[str] = "*"
    """Of the names of prompt files, where `prompts` is a folder."""
    judged_by: ClassVar[tuple[str, ...]] = ()
    """Options of the command that `score` takes."""
    official: ClassVar[str] = ""
    """How the official scorer is started on the folder that `lay_out` writes, and what to know of it."""

    def __init__(self, prompts: str | os.PathLike | None = None, limit: int | None = None):
        if prompts is None:
            items = self.make_items()
            self.prompt_file = PromptFile.of_items(items)
        else:
            self.prompt_file = PromptFile.read(prompts, self.pattern)
            items = self.read_items(Path(prompts))
        check_ids([item.id for item in items], self.title if prompts is None else prompts)
        if not items:
            raise ValueError(f"A benchmark must have a prompt. {prompts} has none. Check the file.")
        if limit is not None:
            check_sizes(limit=limit)
        self.items, self.number_of_all = items[:limit], len(items)

    @property
    def hashes(self) -> dict[str, str]:
        """The sha256 of what is drawn, by name: of the prompts with their input images, and of the prompt file."""
        digest = hashlib.sha256()
        for item in self.items:
            digest.update(json.dumps([item.id, item.prompt, dict(item.row)], sort_keys=True).encode())
            for path in item.images:
                digest.update(hashlib.sha256(path.read_bytes()).digest())
        return {"prompts": digest.hexdigest(), "prompt file": self.prompt_file.sha256}

    def read_items(self, path: Path) -> list[Item]:
        """All items of a prompt file or folder, in its order."""
        raise NotImplementedError

    def make_items(self) -> list[Item]:
        """All items of a benchmark that makes its prompts itself."""
        raise ValueError(
            f"{self.title} reads its prompts from a file. No file was given. Give the path of the benchmark's own "
            f"prompts, which are not part of this package."
        )

    def lay_out(self, pictures: Pictures, folder: Path) -> None:
        """
        Write what the official scorer reads, whole or not at all; nothing, where there is no such scorer.

        Args:
            pictures: all of them.
            folder: that is empty or not there.

        Raises:
            ValueError: when pictures are missing or cannot be laid out.
            FileExistsError: when the folder holds something.
        """
        if type(self).write_layout is PictureBenchmark.write_layout:
            return
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(f"A layout is written into an empty folder. {folder} is none. Choose another.")
        if pictures.number != self.pictures_per_prompt:
            raise ValueError(
                f"{self.title} wants {self.pictures_per_prompt} pictures of each prompt. There are {pictures.number}. "
                f"Draw as many as it wants."
            )
        pictures.check_complete()
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".layout-"))
        try:
            self.write_layout(pictures, temporary)
            temporary.chmod(0o755)
            temporary.replace(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def write_layout(self, pictures: Pictures, folder: Path) -> None:
        """Write what the official scorer reads into an empty folder; a subclass has this where there is a scorer."""

    def problems(self, folder: Path) -> list[str]:
        """
        What is wrong with a folder for the official scorer, in sentences that name the file: pictures missing, too
        many, of the wrong size or damaged, and prompts that are not those of the benchmark.
        """
        return []

    def check_judges(self, **given: Any) -> None:
        """
        See before anything is drawn whether scores can be given afterwards.

        Args:
            given: what `score` will get, by its names: files as they were read, and names of models and functions.

        Raises:
            ValueError: when something is missing that belongs to it, or is no such thing.
        """

    def score(self, pictures: Pictures, **judges: Any) -> list[Score]:
        """
        Scores that can honestly be given here; none by default.

        Args:
            pictures: all of them.
            judges: what the scores need, by the names that the class documents: a detector, a judge.

        Raises:
            ValueError: when pictures are missing: there is no mean over fewer pictures than the benchmark has.
        """
        return []


def check_ids(ids: Sequence[str], source: str | os.PathLike) -> None:
    """
    Raises:
        ValueError: when an id is missing, there twice, or cannot name a folder.
    """
    seen: set[str] = set()
    for number, name in enumerate(ids):
        if not isinstance(name, str) or not name.strip(".") or not set(name) <= _ID_SIGNS:
            raise ValueError(
                f"Each prompt must have an id of letters, digits, `_`, `-` and `.`. Number {number} of {source} has "
                f"{name!r:.60}. Correct it."
            )
        if name in seen:
            raise ValueError(f"Each prompt must have an id of its own. {source} has {name!r:.60} twice. Correct it.")
        seen.add(name)


_ID_SIGNS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")


def prompt_text(path: str | os.PathLike) -> str:
    """
    The text of a prompt file, in UTF-8.

    Raises:
        ValueError: when it is none.
    """
    try:
        return read_text(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"A prompt file must be UTF-8. {path} is not: {error}. Save it as UTF-8.") from error


def json_lines(path: Path) -> list[dict[str, Any]]:
    """
    The mappings in a file of one JSON a line.

    Raises:
        ValueError: naming the line that is none.
    """
    rows = []
    for number, line in enumerate(prompt_text(path).split("\n"), start=1):  # other line ends may be in texts
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} must hold one JSON a line. Line {number} is none: {error}. Correct it."
            ) from error
        if not isinstance(row, dict):
            raise ValueError(f"{path} must hold one JSON mapping a line. Line {number} is {row!r:.60}. Correct it.")
        rows.append(row)
    return rows


def field_of(row: Mapping[str, Any], name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """
    A field of a row that must be there.

    Args:
        kind: what the value must be.
        where: the row, in words, for the error.

    Raises:
        ValueError: when it is missing, empty, or something else.
    """
    value = row.get(name)
    if not isinstance(value, kind) or isinstance(value, bool) or value in ("", []):
        kinds = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{where} must have `{name}`, a {kinds}. It has {value!r:.60}. Correct the prompt file.")
    return value


__all__ = ["Item", "PictureBenchmark", "Pictures", "PromptFile", "check_ids", "field_of", "json_lines", "prompt_text"]
