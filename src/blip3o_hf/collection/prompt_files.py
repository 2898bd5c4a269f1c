"""Prompts from files: your own, and those of benchmarks, which must not become training data."""

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.texts import clean, is_text
from ..reading import read_json, read_text
from .similar_texts import SimilarTexts, runs_of, words_of

NAMES = ("prompt", "Prompt", "prompt_en", "text", "caption")
"""Keys and columns of a prompt: of GenEval and its second edition, WISE, OneIG and others."""
ENDINGS = (".txt", ".jsonl", ".json", ".csv")


@dataclass(frozen=True)
class GivenPrompt:
    """A prompt of a file, and its category, where the file states one."""

    text: str
    category: str | None = None


def read_prompts(path: str | os.PathLike) -> list[GivenPrompt]:
    """
    The prompts of a file, or of all files of a folder.

    Args:
        path: `.txt` with a prompt in each line; `.jsonl`, `.json` (a list) or `.csv` with one of the keys [`NAMES`];
            or a folder of these. A `.txt` file of a folder is one prompt, as DPG-Bench has them.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it has another form, or an item without a prompt; the message names its line.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in ENDINGS)
        prompts = [prompt for file in files for prompt in _of_file(file, is_one=file.suffix.lower() == ".txt")]
    else:
        prompts = list(_of_file(path, is_one=False))
    if not prompts:
        raise ValueError(f"A file of prompts must hold one at least. {path} holds none ({', '.join(ENDINGS)}).")
    return prompts


def _of_file(path: Path, is_one: bool) -> Iterator[GivenPrompt]:
    kind = path.suffix.lower()
    if kind not in ENDINGS:
        raise ValueError(f"Prompts are read from {', '.join(ENDINGS)}. Got {path}. Save them as one of these.")
    if kind == ".json":
        content = read_json(path)
        if not isinstance(content, list):
            raise ValueError(f"A .json file of prompts must be one list. {path} is none. Use .jsonl for single items.")
        yield from _of_items(path, enumerate(content, start=1))
        return
    try:
        text = read_text(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"Prompts must be UTF-8. {path} is not ({error.reason}). Save it as UTF-8.") from error
    lines = text.split("\n")
    if kind == ".txt":
        yield from (GivenPrompt(clean(line)) for line in ([" ".join(lines)] if is_one else lines) if is_text(line))
    elif kind == ".jsonl":
        yield from _of_items(path, ((n, _parsed(path, n, line)) for n, line in enumerate(lines, 1) if line.strip()))
    else:
        yield from _of_items(path, _rows(path, text))


def _rows(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """The rows of a table, each with the number of its last line; a text in quotes may have several lines."""
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(
            f"A .csv file of prompts must be a table. After line {reader.line_num} of {path}: {error}. Save it again."
        ) from error


def _parsed(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"A line of a .jsonl file must be JSON. Line {number} of {path} is not: {error}. It may be cut off."
        ) from error


def _of_items(path: Path, items: Iterable[tuple[int, Any]]) -> Iterator[GivenPrompt]:
    for number, item in items:
        content = {NAMES[0]: item} if isinstance(item, str) else item
        found = [content[name] for name in NAMES if is_text(content.get(name))] if isinstance(content, Mapping) else []
        if not found:
            raise ValueError(
                f"An item of a file of prompts must have one of the keys {', '.join(NAMES)}. Item or line {number} of "
                f"{path} has none. Add it."
            )
        category = content.get("category")
        yield GivenPrompt(clean(found[0]), category if is_text(category) else None)


class Excluded:
    """
    Prompts that must not be collected, such as those of benchmarks.

    A prompt is refused when it has the words of one of them, nearly the same words ([`SimilarTexts`]), or eight words
    in a row in common with one.

    Args:
        paths: files and folders as [`read_prompts`] takes them.
    """

    def __init__(self, paths: Iterable[str | os.PathLike] = ()):
        self._texts = SimilarTexts()
        self._equal: dict[tuple[str, ...], str] = {}
        self._runs: dict[tuple[str, ...], str] = {}
        self._files: dict[str, str] = {}
        for path in paths:
            for prompt in read_prompts(path):
                words = words_of(prompt.text)
                self._texts.add(prompt.text)
                self._files.setdefault(prompt.text, Path(path).name)
                self._equal.setdefault(words, prompt.text)
                self._runs.update(dict.fromkeys(runs_of(words), prompt.text))

    @property
    def digest(self) -> str:
        """A hash of the prompts, by which a later run knows whether they are the same."""
        return hashlib.sha256("\n".join(sorted(self._files)).encode("utf-8", "backslashreplace")).hexdigest()

    def problem(self, text: str) -> tuple[str, str] | None:
        """Why a prompt is refused: the reason, and what it was found in; `None` where it is not."""
        words = words_of(text)
        if words in self._equal:
            return "equal to a benchmark prompt", self._found(self._equal[words])
        shared = next((self._runs[run] for run in sorted(runs_of(words)) if run in self._runs), None)
        if shared is not None:
            return "words in common with a benchmark prompt", self._found(shared)
        similar = self._texts.find(text)
        return None if similar is None else ("similar to a benchmark prompt", self._found(similar))

    def _found(self, text: str) -> str:
        return f"{text[:200]} ({self._files[text]})"
