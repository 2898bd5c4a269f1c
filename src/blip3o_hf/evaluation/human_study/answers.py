"""Answers of raters as lines of JSON: appended one by one, replayed to go on, and refused where they do not fit."""

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from typing import Any

from ...checks import check_keys, check_name
from ...reading import read_bytes
from .study import ANSWERS, Question, Study

UNDO = "undo"
RATER = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
MAX_MS = 7 * 24 * 3600 * 1000
MAX_ANSWERS_BYTES = 500_000_000
TORN = "its last line was cut off while it was written; it is left out"


@dataclass(frozen=True)
class Answer:
    """
    One line of a file of answers: a choice, or that the choice before is taken back.

    Args:
        study: id of the study.
        rater: name of the rater.
        pair: id of the pair.
        criterion: id of the criterion.
        round: counted from 1.
        left, right: names of the pictures, as they stood.
        choice: `left`, `right`, `tie`, or `undo`.
        ms: milliseconds from both pictures being shown to the answer.
        time: in UTC, as `2026-01-31T12:00:00Z`.
    """

    study: str
    rater: str
    pair: str
    criterion: str
    round: int
    left: str
    right: str
    choice: str
    ms: int
    time: str

    @property
    def question(self) -> Question:
        return Question(self.pair, self.criterion, self.round)

    @property
    def chosen(self) -> str | None:
        """The name of the chosen picture; `None` for a tie."""
        return {"left": self.left, "right": self.right}.get(self.choice)

    def as_line(self) -> str:
        return json.dumps(asdict(self)) + "\n"


def check_rater(name: object) -> str:
    """
    A rater's name, which is safe as the name of a file.

    Raises:
        ValueError: when it has other signs.
    """
    if not isinstance(name, str) or not RATER.fullmatch(name):
        raise ValueError(
            f"A rater's name must be 1 to 40 small letters, digits, `_` and `-`. Got {name!r:.60}. Choose another."
        )
    return name


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def as_answer(row: Any, study: Study) -> Answer:
    """
    An answer from what a line of JSON holds.

    Raises:
        ValueError: when it is none, or does not belong to the study.
    """
    names = [field.name for field in fields(Answer)]
    if not isinstance(row, dict):
        raise ValueError(f"An answer must be a JSON mapping. Got {row!r:.60}. Correct it.")
    check_keys(row, names, "an answer")
    texts = [name for name in names if name not in ("round", "ms")]
    lacking = [name for name in texts if not isinstance(row.get(name), str)]
    lacking += [name for name in ("round", "ms") if type(row.get(name)) is not int]
    if lacking:
        raise ValueError(f"An answer must have {', '.join(names)}. It has no valid {lacking[0]!r}. Correct it.")
    answer = Answer(**row)
    if answer.study != study.id:
        raise ValueError(
            f"Answers must be of this study, {study.id}. This one is of {answer.study!r:.40}. Take the other study."
        )
    check_rater(answer.rater)
    if answer.pair not in study.by_id:
        raise ValueError(f"An answer must be about a pair of this study. It has none {answer.pair!r:.40}. Correct it.")
    check_name("criterion", answer.criterion, [criterion.id for criterion in study.criteria])
    check_name("choice", answer.choice, (*study.choices, UNDO))
    if not 1 <= answer.round <= study.rounds or not 0 <= answer.ms <= MAX_MS:
        raise ValueError(
            f"A round must be from 1 to {study.rounds}, and a time in milliseconds from 0 to a week. Got round "
            f"{answer.round}, {answer.ms} ms. Correct it."
        )
    if {answer.left, answer.right} != set(study.by_id[answer.pair].images):
        raise ValueError(
            f"An answer must have both pictures of its pair. Got {answer.left!r:.40} and {answer.right!r:.40}. "
            f"Correct it."
        )
    return answer


def read_lines(path: str | os.PathLike, study: Study) -> tuple[list[Answer], int]:
    """
    All lines of a file of answers, and how many bytes at its end are a torn line.

    Raises:
        FileNotFoundError: when there is no file.
        ValueError: naming the line that is no answer of this study, unless it is the last and cut off.
    """
    content = read_bytes(path, MAX_ANSWERS_BYTES)
    answers = []
    lines = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        is_last = number == len(lines)
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if is_last:  # it has no end of line
                return answers, len(line)
            raise ValueError(
                f"{path} must hold one JSON a line. Line {number} is none: {error}. Correct it."
            ) from error
        try:
            answers.append(as_answer(row, study))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return answers, 0


def standing(answers: Iterable[Answer], where: str) -> dict[Question, Answer]:
    """
    Of one rater's lines in their order, the answers that were not taken back, in their order.

    Raises:
        ValueError: when a question is answered twice, or something is taken back that was not said.
    """
    stand: dict[Question, Answer] = {}
    for answer in answers:
        if answer.choice == UNDO:
            if stand.pop(answer.question, None) is None:
                raise ValueError(
                    f"Only an answer that was given can be taken back. {where} takes back {answer.question} of "
                    f"{answer.rater} without one. Restore the file."
                )
        elif answer.question in stand:
            raise ValueError(
                f"Each question has one answer of each rater. {where} has two of {answer.rater} for "
                f"{answer.question}. Restore the file."
            )
        else:
            stand[answer.question] = answer
    return stand


def answers_of(study: Study, paths: Sequence[str | os.PathLike]) -> tuple[list[Answer], list[str]]:
    """
    The standing answers of several files, in an order that does not depend on that of files and lines.

    Args:
        study: whose answers they are.
        paths: files; by default, of an empty list, all in the study's `answers/`.

    Returns:
        the answers, and notes on torn lines and on answers that are in two files.

    Raises:
        FileNotFoundError: when there is none.
        ValueError: when a file holds what is no answer of this study, or two files do not agree.
    """
    paths = list(paths) or sorted((study.folder / ANSWERS).glob("*.jsonl"))
    if not paths:
        raise FileNotFoundError(
            f"An analysis needs answers. There are none in {study.folder / ANSWERS}. Collect some."
        )
    found: dict[tuple[str, Question], tuple[Answer, str]] = {}
    notes, num_twice = [], 0
    for path in paths:
        lines, torn = read_lines(path, study)
        notes += [f"{path}: {TORN}"] if torn else []
        for rater in sorted({answer.rater for answer in lines}):
            mine = [answer for answer in lines if answer.rater == rater]
            for question, answer in standing(mine, str(path)).items():
                before, first = found.setdefault((rater, question), (answer, str(path)))
                if before != answer:
                    raise ValueError(
                        f"Each question has one answer of each rater. {first} and {path} have two of {rater} for "
                        f"{question}. Leave one of the files out."
                    )
                num_twice += first != str(path)
    notes += [f"{num_twice} answers are in two files; they count once"] if num_twice else []
    answers = [answer for answer, _ in found.values()]
    return sorted(answers, key=lambda a: (a.rater, a.round, a.criterion, a.pair)), notes
