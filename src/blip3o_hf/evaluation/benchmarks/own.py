"""A benchmark of your own: your prompts, and your function that scores pictures."""

import math
from collections.abc import Sequence
from typing import Any

from ...checks import find_function, is_finite_number
from ...hub.results import Figure, Score
from ..statistics import Rate
from .base import Item, PictureBenchmark, Pictures, field_of, json_lines

PROMPTS_AT_ONCE = 32
"""Of which a scorer gets the pictures; those of a whole benchmark may not fit into memory."""


class OwnBenchmark(PictureBenchmark):
    """
    Your own prompts: a JSON Lines file with `id`, `prompt` and whatever your scorer needs.

    A scorer is a function `scorer(pictures, rows)` that gets PIL images and the row of each, and returns for each a
    number, a truth value, or `None` where it cannot judge. It is called with the pictures of a few prompts at a time.

    Example:
        >>> def is_dark(pictures, rows):
        ...     return [sum(p.convert("L").histogram()[:128]) > p.width * p.height / 2 for p in pictures]
    """

    name = "own"
    title = "Own benchmark"
    about = "Own prompts and an own scorer, a function that judges each picture."
    pattern = "*.jsonl"
    judged_by = ("scorer",)

    def read_items(self, path):
        return [_item(row, f"Line {number} of {path}") for number, row in enumerate(json_lines(path), start=1)]

    def check_judges(self, **given: Any) -> None:
        if isinstance(given.get("scorer"), str):
            find_function(given["scorer"], "the scorer")

    def score(self, pictures: Pictures, **judges: Any) -> list[Score]:
        """
        Args:
            pictures: as in the base.
            judges: `scorer`, a function or its name as `module:function`; without it there is no score.

        Raises:
            TypeError: when the scorer returns something else than numbers, truth values and `None`.
            ValueError: when it returns fewer or more than there are pictures.
        """
        scorer = judges.get("scorer")
        if scorer is None:
            return []
        pictures.check_complete()
        function = find_function(scorer, "the scorer") if isinstance(scorer, str) else scorer
        name = scorer if isinstance(scorer, str) else getattr(function, "__name__", type(function).__name__)
        groups = []
        for start in range(0, len(pictures.items), PROMPTS_AT_ONCE):
            groups += _scored(function, name, pictures, pictures.items[start : start + PROMPTS_AT_ONCE])
        return summary(groups, name)


def _scored(function: Any, name: str, pictures: Pictures, items: Sequence[Item]) -> list[list[float | bool | None]]:
    """What a scorer says of all pictures of some items."""
    size = pictures.number
    images = [pictures.open(item, number) for item in items for number in range(size)]
    rows = [dict(item.row) for item in items for _ in range(size)]
    values = _checked(function(images, rows), len(images), name)
    return [values[start : start + size] for start in range(0, len(values), size)]


def summary(values: Sequence[Sequence[float | bool | None]], scorer: str) -> list[Score]:
    """
    The mean over prompts, if each picture was judged; else how many were not, and no mean.

    Args:
        values: of all pictures of each prompt.
        scorer: its name, which is in the name of every score.
    """
    flat = [value for group in values for value in group]
    label, missing = f"scorer {scorer}", sum(value is None for value in flat)
    if missing:
        rate = Rate(missing, len(flat))
        return [Score("text-to-image", f"{label}: not judged", Figure(rate.value, rate.interval), len(flat))]
    means = [math.fsum(float(value) for value in group if value is not None) / len(group) for group in values]
    is_single = all(isinstance(value, bool) for value in flat) and len(flat) == len(values)
    interval = Rate(sum(map(bool, flat)), len(flat)).interval if is_single else None
    return [Score("text-to-image", f"{label}: mean", Figure(math.fsum(means) / len(means), interval), len(values))]


def _checked(values: Any, number: int, scorer: str) -> list[float | bool | None]:
    if not isinstance(values, (list, tuple)) or len(values) != number:
        received = f"{len(values)} values" if isinstance(values, (list, tuple)) else type(values).__name__
        raise ValueError(
            f"A scorer returns a list with a value for each of {number} pictures. {scorer} returned {received}. "
            f"Return `None` for those it cannot judge."
        )
    for value in values:
        if value is not None and not isinstance(value, bool) and not is_finite_number(value):
            raise TypeError(
                f"A scorer returns finite numbers, truth values and None. {scorer} returned {value!r:.40}. Convert it "
                f"with float()."
            )
    return list(values)


def _item(row: dict[str, Any], where: str) -> Item:
    return Item(field_of(row, "id", str, where), field_of(row, "prompt", str, where), row)
