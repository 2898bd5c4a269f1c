"""Prompts to learn from rewards on: rows with a `prompt`, and any columns that rewards read."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ..checks import check_unicode


class PromptDataset:
    """
    Rows of a dataset of `datasets`, or of a list, each with a text under `prompt`.

    Args:
        rows: of one length each, read by their numbers.
        name: of the argument, for errors.

    Raises:
        TypeError: when there are no rows to read.
        ValueError: when a row has no prompt.
    """

    checks_all: ClassVar[bool] = True
    """Whether all rows are read at once, so that a bad one is found before anything is drawn."""

    def __init__(self, rows: Any, name: str):
        if isinstance(rows, (str, bytes, Mapping)) or not hasattr(rows, "__getitem__") or not hasattr(rows, "__len__"):
            raise TypeError(
                f"`{name}` must be prompts: a dataset of `datasets` or a list of rows. Got {type(rows).__name__}. "
                f"Example: [{{'prompt': 'two red circles'}}]."
            )
        if not len(rows):
            raise ValueError(f"`{name}` must have a prompt. It is empty. Add rows.")
        self.rows, self.name = rows, name
        for index in range(len(rows) if self.checks_all else 1):
            self[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        prompt = row.get("prompt") if isinstance(row, Mapping) else None
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(
                f"Each row must have a text under `prompt`. {self.name}[{index}] has {prompt!r:.40}. Correct it."
            )
        check_unicode([prompt], f"The prompt of {self.name}[{index}]")
        return dict(row)


def collated(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """
    Rows as columns.

    Raises:
        ValueError: when rows have different columns.
    """
    names = set(rows[0])
    for row in rows:
        if set(row) != names:
            odd = sorted(names ^ set(row))
            raise ValueError(f"All rows must have the same columns. {', '.join(odd)} are not in all. Fill them in.")
    return {name: [row[name] for row in rows] for name in rows[0]}


__all__ = ["PromptDataset", "collated"]
