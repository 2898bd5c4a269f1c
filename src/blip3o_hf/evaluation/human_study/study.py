"""A study on disk: what raters see (study.json, images/), and which picture is whose (key.json), apart from it."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ...files import expanded, written_whole
from ...reading import read_json
from .criteria import Criterion, as_criteria, as_rows

FORMAT = 1
STUDY, KEY, IMAGES, ANSWERS = "study.json", "key.json", "images", "answers"
MAX_STUDY_BYTES = 200_000_000
IDENTICAL = "identical"
"""In the key, of a control pair that shows one picture twice; of a repeated pair, the key names what it repeats."""


@dataclass(frozen=True)
class Pair:
    """
    Two pictures of one prompt.

    Args:
        id: of the pair.
        prompt_id: of the prompt, as its file names it.
        prompt: what both pictures were drawn from.
        images: names of two files in `images/`, in the order of their names, which says nothing of the systems.
    """

    id: str
    prompt_id: str
    prompt: str
    images: tuple[str, str]


@dataclass(frozen=True)
class Question:
    """
    What one rater is asked once.

    Args:
        pair: id of the pair.
        criterion: id of the criterion.
        round: counted from 1.
    """

    pair: str
    criterion: str
    round: int


@dataclass(frozen=True)
class Study:
    """
    The public part of a study: all that pages, raters and answers need.

    Args:
        folder: where it lies.
        seed: of the order of questions, and of what stands left.
        rounds: how many times each rater is asked the same.
        ties: whether "no difference" is an answer.
        criteria: what is asked about each pair.
        pairs: control pairs among them, which look like all others.
    """

    folder: Path
    seed: int
    rounds: int
    ties: bool
    criteria: tuple[Criterion, ...]
    pairs: tuple[Pair, ...]

    @cached_property
    def id(self) -> str:
        """A checksum of the content: an edited study has another one."""
        return checksum(json.dumps(self._content(), sort_keys=True))

    @cached_property
    def by_id(self) -> Mapping[str, Pair]:
        """Pairs by their ids."""
        return {pair.id: pair for pair in self.pairs}

    @cached_property
    def images(self) -> frozenset[str]:
        """Names of all pictures."""
        return frozenset(name for pair in self.pairs for name in pair.images)

    @property
    def choices(self) -> tuple[str, ...]:
        """What may be chosen."""
        return ("left", "right", "tie") if self.ties else ("left", "right")

    @property
    def questions_per_rater(self) -> int:
        return len(self.pairs) * len(self.criteria) * self.rounds

    def image_path(self, name: str) -> Path:
        return self.folder / IMAGES / name

    def _content(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "seed": str(self.seed),  # JavaScript would round a large number
            "rounds": self.rounds,
            "ties": self.ties,
            "criteria": as_rows(self.criteria),
            "pairs": [{**asdict(pair), "images": list(pair.images)} for pair in self.pairs],
        }

    def as_json(self) -> dict[str, Any]:
        """What study.json holds."""
        return {"id": self.id, **self._content()}

    def write(self) -> None:
        """Write study.json, whole or not at all."""
        write_json(self.folder / STUDY, self.as_json())

    @classmethod
    def read(cls, folder: str | os.PathLike) -> "Study":
        """
        Raises:
            FileNotFoundError: when there is no study in the folder, or pictures of it are missing.
            ValueError: when study.json was edited or is none.
        """
        folder = expanded(folder)
        path = folder / STUDY
        if not path.is_file():
            raise FileNotFoundError(
                f"A study is a folder with {STUDY}. There is none in {folder}. Make one with "
                f"`blip3o-hf human-study make`."
            )
        study = _as_study(folder, read_json(path, MAX_STUDY_BYTES))
        missing = sorted(name for name in study.images if not study.image_path(name).is_file())
        if missing:
            raise FileNotFoundError(
                f"All pictures of a study must lie in {folder / IMAGES}. {len(missing)} are missing, such as "
                f"{missing[0]}. Copy the whole folder again."
            )
        return study


def _as_study(folder: Path, content: Any) -> Study:
    path = folder / STUDY
    try:
        pairs = tuple(_as_pair(**row) for row in content["pairs"])
        criteria = as_criteria(content["criteria"], str(path))
        study = Study(folder, int(content["seed"]), content["rounds"], content["ties"], criteria, pairs)
        is_ours = (content["format"], content["id"]) == (FORMAT, study.id)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} must be as `human-study make` wrote it. It is not ({type(error).__name__}: {error}). "
            f"Make the study again."
        ) from error
    if not is_ours or not all(_is_image_name(name) for name in study.images):
        raise ValueError(
            f"{path} must be as `human-study make` wrote it. Its content does not give its id "
            f"{content['id']!r:.40}: it was edited. Make the study again."
        )
    return study


def _as_pair(images: list[str], **texts: str) -> Pair:
    first, second = images
    return Pair(images=(first, second), **texts)


def _is_image_name(name: object) -> bool:
    stem, _, ending = str(name).partition(".")
    return ending == "png" and len(stem) == 24 and set(stem) <= set("0123456789abcdef")


@dataclass(frozen=True)
class Key:
    """
    Which picture is whose: for the analysis, never for raters.

    Args:
        study: id of the study.
        systems: their names, in the order in which they were given.
        pictures: system by the name of its picture.
        controls: of control pairs by their ids, `IDENTICAL`, or the id of the pair that is shown again.
        left_out: ids of prompts without a picture of every system, which were left out on request.
    """

    study: str
    systems: tuple[str, ...]
    pictures: Mapping[str, str]
    controls: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        """Write key.json, whole or not at all."""
        write_json(folder / KEY, asdict(self))

    @classmethod
    def read(cls, study: Study) -> "Key":
        """
        Raises:
            FileNotFoundError: when the study has no key, as where only its public part was copied.
            ValueError: when it is that of another study, or damaged.
        """
        path = study.folder / KEY
        if not path.is_file():
            raise FileNotFoundError(
                f"The analysis needs the key of the study, {KEY}. There is none in {study.folder}. Run it where the "
                f"study was made."
            )
        content = read_json(path, MAX_STUDY_BYTES)
        try:
            lists = {name: tuple(content.pop(name)) for name in ("systems", "left_out")}
            key = cls(**content, **lists)
            is_whole = set(key.pictures) == study.images and set(key.pictures.values()) <= set(key.systems)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} must be as `human-study make` wrote it. It is not ({type(error).__name__}: {error}). "
                f"Make the study again."
            ) from error
        if key.study != study.id or not is_whole:
            raise ValueError(
                f"{path} must belong to its study, {study.id}. It is of {key.study!r:.40}, or incomplete. "
                f"Copy both files of one study."
            )
        return key


def checksum(text: str) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
