"""What a benchmark of drawing is: prompts in, pictures out, the official scorer's folder, and scores where honest."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from ...data.images import as_input_image
from ...hub.results import Score
from ...reading import read_bytes


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
        path: of the file, or of the folder of files.
        sha256: of the bytes; of a folder, of all names and bytes, in the order of the names.
    """

    path: Path
    sha256: str

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


class PictureBenchmark:
    """
    Base of benchmarks of drawing and editing. Your own is named `module:Class`.

    Args:
        prompts: the prompt file, or the folder of prompt files; by default the one that is shipped, if there is one.
        limit: take only the first so many items.

    Raises:
        ValueError: when ids are missing or there twice, or a row lacks what it must have.
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

    def __init__(self, prompts: str | os.PathLike, limit: int | None = None):
        self.prompt_file = PromptFile.read(prompts, self.pattern)
        items = self.read_items(self.prompt_file.path)
        check_ids([item.id for item in items], prompts)
        self.items = items[:limit]

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

    def lay_out(self, pictures: Pictures, folder: Path) -> None:
        """Write into an empty folder what the official scorer reads; nothing, where there is no such scorer."""

    def problems(self, folder: Path) -> list[str]:
        """
        What is wrong with a folder for the official scorer, in sentences that name the file: pictures missing, too
        many, of the wrong size or damaged, and prompts that are not those of the benchmark.
        """
        return []

    def score(self, pictures: Pictures, **judges: Any) -> list[Score]:
        """
        Scores that can honestly be given here; none by default.

        Args:
            pictures: all of them; the caller has seen to it that none is missing.
            judges: what the scores need, by the names that the class documents: a detector, a judge.
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


def json_lines(path: Path) -> list[dict[str, Any]]:
    """
    The mappings in a file of one JSON a line.

    Raises:
        ValueError: naming the line that is none.
    """
    rows = []
    for number, line in enumerate(read_bytes(path).decode("utf-8-sig").splitlines(), start=1):
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


__all__ = ["Item", "PictureBenchmark", "Pictures", "PromptFile", "check_ids", "json_lines"]
