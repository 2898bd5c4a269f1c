"""The answers of a running study on the disk: each one synced before the page goes on, and a torn line taken off."""

import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .answers import TORN, UNDO, Answer, as_answer, check_rater, now, read_lines, standing
from .order import sides_of
from .study import ANSWERS, Question, Study

logger = logging.getLogger(__name__)


class AnswerFiles:
    """
    The files of a running study, one for each rater; every answer is on the disk before it counts.

    Args:
        study: whose answers they are.
    """

    def __init__(self, study: Study):
        self.study = study
        self._lock = threading.Lock()
        self._stand: dict[str, dict[Question, Answer]] = {}

    def path(self, rater: str) -> Path:
        return self.study.folder / ANSWERS / f"{check_rater(rater)}.jsonl"

    def of(self, rater: str) -> list[Answer]:
        """
        The standing answers of a rater, in the order in which they were given.

        Raises:
            ValueError: when the file was edited.
        """
        with self._lock:
            return list(self._opened(rater).values())

    def append(self, row: Mapping[str, Any]) -> int:
        """
        Write an answer, or an undo, to the disk. The same answer again is not written again: a page whose line broke
        sends it twice.

        Args:
            row: as [`Answer`], without the time.

        Returns:
            the number of standing answers.

        Raises:
            ValueError: when it is no answer to an open question of this rater.
            OSError: when it cannot be written; the file is then as it was.
        """
        answer = as_answer({**row, "time": now()}, self.study)
        with self._lock:
            stand = self._opened(answer.rater, is_writing=True)
            before = stand.get(answer.question)
            if (answer.left, answer.right) != sides_of(self.study, answer.rater, answer.question):
                raise ValueError("The pictures must stand as the study has them. They do not. Load the page again.")
            if answer.choice == UNDO and before is None:
                return len(stand)
            if answer.choice != UNDO and before is not None:
                if before.choice == answer.choice:
                    return len(stand)
                raise ValueError("A question is answered once. This one has another answer. Load the page again.")
            _append(self.path(answer.rater), answer.as_line().encode())
            if answer.choice == UNDO:
                del stand[answer.question]
            else:
                stand[answer.question] = answer
            return len(stand)

    def _opened(self, rater: str, is_writing: bool = False) -> dict[Question, Answer]:
        path = self.path(rater)
        if rater not in self._stand:
            lines, torn = read_lines(path, self.study) if path.exists() else ([], 0)
            if any(answer.rater != rater for answer in lines):
                raise ValueError(f"{path} must hold the answers of {rater}. It has those of others. Restore it.")
            stand = standing(lines, str(path))
            if not path.exists():
                return self._stand.setdefault(rater, stand) if is_writing else stand
            _mend(path, torn)  # before it is known: what follows a torn line would be lost with it
            if torn:
                logger.warning("%s: %s", path, TORN)
            self._stand[rater] = stand
        return self._stand[rater]


def _mend(path: Path, torn: int) -> None:
    """Take a torn line off the end of a file; end a whole last line."""
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        if torn:
            file.truncate(size - torn)
        elif size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.flush()
        os.fsync(file.fileno())


def _append(path: Path, line: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    is_new = not path.exists()
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        try:
            written = file.write(line)
            if written != len(line):
                raise OSError(f"The disk must have room for an answer. Only {written} bytes were written. Make room.")
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise
    if is_new and os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
