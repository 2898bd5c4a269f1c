"""What raters are asked: the two criteria of the paper, or those of a file."""

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ...checks import check_keys
from ...reading import read_json

ID = re.compile(r"[a-z][a-z0-9_]{0,39}")
SAME_INPUT = "All images were generated from the same text input using different methods."


@dataclass(frozen=True)
class Criterion:
    """
    One question about two pictures.

    Args:
        id: short, of small letters, digits and `_`, for files.
        name: for people.
        instruction: what raters read, word for word.
    """

    id: str
    name: str
    instruction: str


PAPER_CRITERIA = (
    Criterion(
        "visual_quality",
        "Visual Quality",
        f"{SAME_INPUT} Please select the BEST image you prefer based on visual appeal, such as layout, clarity, "
        "object shapes, and overall cleanliness.",
    ),
    Criterion(
        "prompt_alignment",
        "Prompt Alignment",
        f"{SAME_INPUT} Please select the image with the BEST image-text content alignment.",
    ),
)
"""The instructions of the paper, section 5.4, word for word."""


def read_criteria(path: str | os.PathLike) -> tuple[Criterion, ...]:
    """
    Criteria of your own: a JSON list of `{"id": ..., "name": ..., "instruction": ...}`.

    Raises:
        FileNotFoundError: when there is no file.
        ValueError: when it holds something else, or an id twice.
    """
    return as_criteria(read_json(path), str(path))


def as_criteria(rows: object, where: str) -> tuple[Criterion, ...]:
    """
    Criteria from what JSON holds.

    Args:
        rows: a list of mappings.
        where: what it was read from, for errors.

    Raises:
        ValueError: when it is no list of criteria.
    """
    names = ("id", "name", "instruction")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"Criteria must be a JSON list of mappings. {where} holds {rows!r:.60}. Correct it.")
    criteria = []
    for row in rows:
        check_keys(row, names, where)
        if not all(isinstance(row.get(name), str) and row[name].strip() for name in names):
            raise ValueError(f"A criterion must have the texts {', '.join(names)}. {where} has {row!r:.80}. Add them.")
        if not ID.fullmatch(row["id"]):
            raise ValueError(
                f"The id of a criterion must be small letters, digits and `_`. {where} has {row['id']!r:.60}. "
                f"Write one such as 'visual_quality'."
            )
        criteria.append(Criterion(**row))
    if len({criterion.id for criterion in criteria}) < len(criteria):
        raise ValueError(f"Each criterion must have an id of its own. {where} has one twice. Rename one.")
    return tuple(criteria)


def as_rows(criteria: Sequence[Criterion]) -> list[dict[str, str]]:
    """Criteria as JSON holds them."""
    return [asdict(criterion) for criterion in criteria]
