"""A result with all that it takes to get it again, and what differs when it is made again."""

import hashlib
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import try_to_load_from_cache
from PIL import Image

from ..hub.results import Evaluation, Score, read_measured, write_measured

SCHEMA = 1
MANIFEST = "manifest.json"
_UNHASHED = ("README.md",)
"""Files of a model that tell about it, and do not change what it draws."""


@dataclass(frozen=True)
class Picture:
    """
    A picture of a run.

    Args:
        id: of its item.
        number: among the pictures of the item, from 0.
        seed: of its noise.
        sha256: of its size and its pixels.
    """

    id: str
    number: int
    seed: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """
    What was measured, on what, and how to measure it again.

    Args:
        evaluation: benchmark, settings, versions and scores, as a card takes them up.
        words: of the command that measures it again, without `blip3o-hf` and without where it writes.
        inputs: sha256 of what was read, by name: the files of the model, the prompt file, other models.
        environment: device, precision, threads and machine.
        started: when, as `2026-01-31T12:00:00Z`; `evaluation.date` is when it ended.
        pictures: those that were drawn.
    """

    evaluation: Evaluation
    words: tuple[str, ...]
    inputs: Mapping[str, str]
    environment: Mapping[str, Any]
    started: str
    pictures: tuple[Picture, ...] = field(default=())

    def write(self, path: str | os.PathLike) -> None:
        """Write it as JSON, whole or not at all, with the digest that `read` checks."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("evaluation", "pictures")}
        content = {"schema": SCHEMA, **asdict(self.evaluation), **own, "pictures": [asdict(p) for p in self.pictures]}
        write_measured(path, content, indent=1)

    @classmethod
    def read(cls, path: str | os.PathLike) -> "Manifest":
        """
        Raises:
            ValueError: when the file is no manifest, of another schema, or was changed after it was written.
            OSError: when it cannot be read.
        """
        content = read_measured(path)
        if content.get("schema") != SCHEMA:
            raise ValueError(
                f"A manifest is a file that `blip3o-hf evaluate` wrote, of schema {SCHEMA}. {path} is of "
                f"{content.get('schema')!r:.20}. Measure it again."
            )
        evaluation = Evaluation.read(path)
        own = {f.name: content[f.name] for f in fields(cls) if f.name not in ("evaluation", "pictures", "words")}
        pictures = tuple(Picture(**picture) for picture in content["pictures"])
        return cls(evaluation, tuple(content["words"]), pictures=pictures, **own)


@dataclass
class Comparison:
    """
    A result and the same one made again.

    Attributes:
        differences: in results, in words: pictures, scores, numbers of prompts.
        tolerated: differences in results that are within the tolerance, in words.
        causes: what else is not the same: inputs, settings, versions, machine.
    """

    differences: list[str] = field(default_factory=list)
    tolerated: list[str] = field(default_factory=list)
    causes: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """`equal`, `differs within tolerance`, or `differs`."""
        return "differs" if self.differences else "differs within tolerance" if self.tolerated else "equal"


def compare(before: Manifest, after: Manifest, tolerance: float = 0.0) -> Comparison:
    """
    What differs between two manifests of one command.

    Args:
        before, after: the two.
        tolerance: largest difference of a score that is tolerated; pixels behind scores may then differ, too.
    """
    found = Comparison()
    _compare_pictures(before, after, tolerance > 0 and bool(before.evaluation.scores), found)
    _compare_scores(before.evaluation.scores, after.evaluation.scores, tolerance, found)
    for name in ("settings", "versions"):
        _note_changes(name, getattr(before.evaluation, name), getattr(after.evaluation, name), found.causes)
    _note_changes("inputs", before.inputs, after.inputs, found.causes)
    _note_changes("environment", before.environment, after.environment, found.causes)
    return found


def _compare_pictures(before: Manifest, after: Manifest, is_tolerated: bool, found: Comparison) -> None:
    """Other pixels may be tolerated where scores of the pictures are compared; other pictures never."""
    old, new = ({(p.id, p.number): p for p in manifest.pictures} for manifest in (before, after))
    for text, keys in (("missing", old.keys() - new.keys()), ("new", new.keys() - old.keys())):
        if keys:
            name, number = min(keys)
            found.differences.append(f"pictures: {len(keys)} {text}, {name}/{number} among them")
    changed = [key for key in old.keys() & new.keys() if old[key].sha256 != new[key].sha256]
    if changed:
        name, number = min(changed)
        results = found.tolerated if is_tolerated else found.differences
        results.append(f"pictures: {len(changed)} of {len(old)} have other pixels, {name}/{number} among them")


def _compare_scores(before: Sequence[Score], after: Sequence[Score], tolerance: float, found: Comparison) -> None:
    old, new = ({(score.task, score.name): score for score in scores} for scores in (before, after))
    for task, name in dict.fromkeys([*old, *new]):
        first, second = old.get((task, name)), new.get((task, name))
        label = f"{task}, {name}"
        if first is None or second is None:
            found.differences.append(f"{label}: {'new' if first is None else 'missing'}")
        elif first.total != second.total:
            found.differences.append(f"{label}: of {first.total} before, of {second.total} now")
        elif not _is_equal(first.figure.value, second.figure.value):
            difference = abs(first.figure.value - second.figure.value)
            list_ = found.tolerated if difference <= tolerance else found.differences
            list_.append(f"{label}: {first.figure.value:.6g} before, {second.figure.value:.6g} now")


def _is_equal(first: float, second: float) -> bool:
    return first == second or (first != first and second != second)


def _note_changes(what: str, before: Mapping[str, Any], after: Mapping[str, Any], causes: list[str]) -> None:
    for name in dict.fromkeys([*before, *after]):
        if before.get(name) != after.get(name):
            causes.append(f"{what}: {name} was {before.get(name)!s:.80}, and is {after.get(name)!s:.80}")


def pixel_hash(image: Image.Image) -> str:
    """The sha256 of an image's size and RGB pixels."""
    pixels = np.asarray(image.convert("RGB"))
    return hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()


def file_hash(path: str | os.PathLike) -> str:
    """The sha256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def folder_hash(folder: str | os.PathLike) -> str:
    """The sha256 of the names and contents of all files in a folder, but for its card and hidden files."""
    digest = hashlib.sha256()
    for path in _files(Path(folder)):
        digest.update(f"{path.relative_to(folder)}\0{file_hash(path)}\n".encode())
    return digest.hexdigest()


def model_hash(model: str | os.PathLike) -> str:
    """
    The sha256 of a model's files.

    Args:
        model: folder, or Hub id of a repository that was loaded before.

    Raises:
        FileNotFoundError: when the repository is not on this machine.
    """
    if os.path.isdir(model):
        return folder_hash(model)
    cached = (try_to_load_from_cache(str(model), name) for name in ("model_index.json", "config.json"))
    folders = [Path(path).parent for path in cached if isinstance(path, str)]
    if not folders:
        raise FileNotFoundError(
            f"A manifest names the files of a model, which must be on this machine. There are none of {model}. Load "
            f"it first."
        )
    return folder_hash(folders[0])


def _files(folder: Path) -> Iterable[Path]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name not in _UNHASHED)
    return sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def environment_of(device: Any, dtype: Any) -> dict[str, Any]:
    """
    The machine that measured.

    Args:
        device (`torch.device`), dtype (`torch.dtype`): of the model.
    """
    import torch

    name = torch.cuda.get_device_name(device) if getattr(device, "type", "") == "cuda" else platform.machine()
    return {
        "device": getattr(device, "type", str(device)),
        "machine": name,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


__all__ = [
    "MANIFEST",
    "Comparison",
    "Manifest",
    "Picture",
    "compare",
    "environment_of",
    "file_hash",
    "folder_hash",
    "model_hash",
    "pixel_hash",
]
