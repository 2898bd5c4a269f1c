"""Results with all that is needed to measure them again: the file that an evaluation writes and a card includes."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

from ..files import written_whole
from ..reading import read_json

MEASURED = "measured here"
REPORTED = "reported by the authors"
ORIGINS = (MEASURED, REPORTED)
EVAL_RESULTS = ".eval_results"


@dataclass(frozen=True)
class Figure:
    """
    Args:
        value: a measured number.
        interval: its 95 % interval `(low, high)`, where there is one.
    """

    value: float
    interval: tuple[float, float] | None = None

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.interval[0]:.3f}, {self.interval[1]:.3f}]"


@dataclass(frozen=True)
class Score:
    """
    One row of a benchmark.

    Args:
        task: a task of the Hub, such as `text-to-image`.
        name: of the row, such as `counting`.
        figure: the model's own.
        total: how many prompts or questions it was measured on.
        beside: what to compare it with, by name, such as `chance`.
        metric: a metric of the Hub.
    """

    task: str
    name: str
    figure: Figure
    total: int
    beside: Mapping[str, Figure] = field(default_factory=dict)
    metric: str = "accuracy"


@dataclass(frozen=True)
class Evaluation:
    """
    What one run of a benchmark measured.

    Args:
        benchmark: its name, for people.
        about: what is measured and how it is judged, in sentences.
        command: that measures it again.
        date: when, as `2026-01-31T12:00:00Z`.
        settings: of sampling and scoring, the seed among them.
        versions: of code and libraries.
        scores: the rows.
        dataset: Hub id of the benchmark, where it has one.
    """

    benchmark: str
    about: str
    command: str
    date: str
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    scores: tuple[Score, ...]
    dataset: str | None = None

    def write(self, path: str | os.PathLike) -> None:
        """Write a results file, JSON, whole or not at all."""
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, path: str | os.PathLike) -> "Evaluation":
        """
        Raises:
            ValueError: when the file was not written by `write`.
            OSError: when it cannot be read.
        """
        content = read_measured(path)
        try:
            if "schema" in content:  # of a manifest, which holds more
                content = {each.name: content[each.name] for each in fields(cls)}
            scores = tuple(_score(**row) for row in content.pop("scores"))
            return cls(scores=scores, **content)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(_no_results(path, f"{type(error).__name__}: {error}")) from error

    def tables(self) -> dict[str, tuple[list[str], list[list[str]]]]:
        """Head and rows of a table for each task; a cell is empty where a row has nothing in that column."""
        tables: dict[str, tuple[list[str], list[list[str]]]] = {}
        for task in dict.fromkeys(score.task for score in self.scores):
            scores = [score for score in self.scores if score.task == task]
            names = list(dict.fromkeys(name for score in scores for name in score.beside))
            rows = [
                [
                    score.name,
                    str(score.figure),
                    *(str(score.beside[name]) if name in score.beside else "" for name in names),
                    f"{score.total:,}",
                ]
                for score in scores
            ]
            tables[task] = ([task, "score", *names, "of"], rows)
        return tables

    def for_model_index(self) -> list[EvalResult]:
        """
        As the front matter of a card holds them, each with its mark. The split keeps them apart from results that were
        reported on the same benchmark: what has the same task, dataset and split would share one source.
        """
        return [
            EvalResult(
                task_type=score.task,
                dataset_type=self.dataset or re.sub(r"[^a-z0-9]+", "-", self.benchmark.lower()).strip("-"),
                dataset_name=self.benchmark,
                dataset_split="test",
                metric_type=score.metric,
                metric_name=f"{score.name}, {MEASURED}",
                metric_value=round(score.figure.value, 4),
            )
            for score in self.scores
        ]


def digest_of(content: Mapping[str, Any]) -> str:
    """The sha256 of the content of a manifest, without the digest that it may hold."""
    held = {name: value for name, value in content.items() if name != "digest"}
    return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()


def write_measured(path: str | os.PathLike, content: Mapping[str, Any], indent: int | None = None) -> None:
    """Write the content of a manifest as JSON, whole or not at all, with its digest, which `read_measured` checks."""
    content = json.loads(json.dumps(content))  # tuples become lists, as they are read again
    content["digest"] = digest_of(content)
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=indent) + "\n")


def read_measured(path: str | os.PathLike) -> dict[str, Any]:
    """
    The content of a file of results, or of a manifest, which must be as it was written.

    Raises:
        ValueError: when it is no mapping, or a manifest that was changed.
        OSError: when it cannot be read.
    """
    try:
        content = read_json(path)
    except ValueError as error:
        raise ValueError(_no_results(path, str(error))) from error
    if not isinstance(content, dict):
        raise ValueError(_no_results(path, f"it holds {type(content).__name__}"))
    if "schema" in content and content.get("digest") != digest_of(content):
        raise ValueError(
            f"A manifest must be as it was written. {path} was changed afterwards: its digest is not that of its "
            f"content. Measure it again."
        )
    return content


def _no_results(path: str | os.PathLike, reason: str) -> str:
    return (
        f"Results are read from a file that `blip3o-hf evaluate --output` wrote. {path} is not one ({reason}). Run "
        f"that command."
    )


def _score(figure: Mapping, beside: Mapping[str, Mapping], **rest) -> Score:
    return Score(figure=_figure(**figure), beside={name: _figure(**value) for name, value in beside.items()}, **rest)


def _figure(value: float, interval: list[float] | None) -> Figure:
    return Figure(value, None if interval is None else (interval[0], interval[1]))


def hub_entries(results: list[EvalResult]) -> dict[str, list[EvalResultEntry]]:
    """
    The results of a card whose benchmark is a dataset of the Hub, by the name of the file in `.eval_results/` that
    holds them. Other benchmarks have no entry there: the format names a dataset.
    """
    files: dict[str, list[EvalResultEntry]] = {}
    for result in results:
        if "/" not in result.dataset_type:
            continue
        entry = EvalResultEntry(
            dataset_id=result.dataset_type,
            task_id=result.dataset_config or "default",
            value=result.metric_value,
            dataset_revision=result.dataset_revision,
            source_url=result.source_url,
            source_name=result.source_name,
            notes=result.metric_name,
        )
        files.setdefault(f"{result.dataset_type.replace('/', '--')}.yaml", []).append(entry)
    return files


def write_hub_entries(folder: Path, results: list[EvalResult]) -> list[Path]:
    """Write the results of a repository's card to its `.eval_results/`, and return the files."""
    paths = []
    for name, entries in hub_entries(results).items():
        path = folder / EVAL_RESULTS / name
        path.parent.mkdir(exist_ok=True)
        with written_whole(path) as temporary:
            temporary.write_text(yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False))
        paths.append(path)
    return paths
