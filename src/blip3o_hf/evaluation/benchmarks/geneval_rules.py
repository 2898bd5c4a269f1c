"""GenEval's rules as a pure function of what a detector found: objects, numbers, colours, places."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""Kinds of prompts."""
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
THRESHOLD = 0.3
"""A box counts when its score is higher."""
COUNTING_THRESHOLD = 0.9
"""The same, for prompts of the tag `counting`."""
MAX_OBJECTS = 16
"""Boxes of one class that are looked at, the surest first."""
POSITION_MARGIN = 0.1
"""Share of both objects' widths, or heights, by which an offset is made smaller."""
MIN_DIRECTION = 0.5
"""Share of an offset along one axis above which it is a relation."""


@dataclass(frozen=True)
class Detection:
    """
    One object that a detector found.

    Args:
        box: `(left, top, right, bottom)` in pixels.
        score: in [0, 1].
        mask: bool `[height, width]` of the whole picture, or `None` where the detector gives boxes alone.
    """

    box: tuple[float, float, float, float]
    score: float
    mask: np.ndarray | None = None

    @property
    def center(self) -> tuple[float, float]:
        """`(x, y)` in pixels."""
        left, top, right, bottom = self.box
        return ((left + right) / 2, (top + bottom) / 2)

    @property
    def size(self) -> tuple[float, float]:
        """`(width, height)` in pixels."""
        left, top, right, bottom = self.box
        return (right - left, bottom - top)


Colors = Callable[[Sequence[Detection], str], Sequence[str]]
"""Names of colours for detections of one class in a picture."""


@dataclass(frozen=True)
class Judgement:
    """Whether a picture shows what its prompt asks for, and each reason why not."""

    is_correct: bool
    reasons: tuple[str, ...] = ()


def kept(detections: Sequence[Detection], tag: str) -> list[Detection]:
    """The detections of one class that count: sure enough, the surest first, at most `MAX_OBJECTS`."""
    threshold = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    sure = [detection for detection in detections if detection.score > threshold]
    return sorted(sure, key=lambda detection: -detection.score)[:MAX_OBJECTS]


def relations(a: Detection, b: Detection) -> set[str]:
    """
    How `a` stands to `b`: of `RELATIONS`, at most two, or none.

    The offset of the centres is made smaller along each axis by `POSITION_MARGIN` of both sizes, not below 0, and
    divided by its length before that.
    """
    offset = [p - q for p, q in zip(a.center, b.center, strict=True)]
    length = math.hypot(*offset)
    if length == 0:
        return set()
    margins = [POSITION_MARGIN * (p + q) for p, q in zip(a.size, b.size, strict=True)]
    x, y = (math.copysign(max(abs(o) - m, 0), o) / length for o, m in zip(offset, margins, strict=True))
    found = {
        "left of": x < -MIN_DIRECTION,
        "right of": x > MIN_DIRECTION,
        "above": y < -MIN_DIRECTION,
        "below": y > MIN_DIRECTION,
    }
    return {name for name, holds in found.items() if holds}


def judge(row: Mapping[str, Any], detections: Mapping[str, Sequence[Detection]], colors: Colors) -> Judgement:
    """
    GenEval's verdict on one picture.

    Of each class in `include`, the `count` surest objects must be there; more may be. Colour and position look at
    these alone: each must have the colour, and each must stand as asked to each of the objects that an earlier entry
    found. A class in `exclude` must be there less often than its `count`.

    Args:
        row: a line of the prompt file: `tag`, `include` and, for some, `exclude`.
        detections: by class, all that a detector found.
        colors: names the colours of detections; called only where a colour is asked for and all objects are there.
    """
    objects = {name: kept(found, row["tag"]) for name, found in detections.items()}
    reasons: list[str] = []
    groups: list[list[Detection] | None] = []
    for wanted in row["include"]:
        found = objects.get(wanted["class"], [])[: wanted["count"]]
        reason = _why_not(wanted, found, groups, colors)
        groups.append(None if reason else found)
        reasons += [reason] if reason else []
    for unwanted in row.get("exclude", ()):
        number = len(objects.get(unwanted["class"], []))
        if number >= unwanted["count"]:
            reasons.append(f"expected fewer than {unwanted['count']} {unwanted['class']}, found {number}")
    return Judgement(not reasons, tuple(reasons))


def _why_not(
    wanted: Mapping[str, Any], found: list[Detection], groups: Sequence[list[Detection] | None], colors: Colors
) -> str | None:
    name, count = wanted["class"], wanted["count"]
    if len(found) < count:
        return f"expected {count} {name}, found {len(found)}"
    if "color" in wanted:
        seen = list(colors(found, name))
        if seen.count(wanted["color"]) < count:
            return f"expected {count} {wanted['color']} {name}, found {', '.join(seen)}"
    if "position" in wanted:
        relation, index = wanted["position"]
        targets = groups[index]
        if targets is None:
            return f"nothing for {name} to be {relation}"
        if not all(relation in relations(a, b) for a in found for b in targets):
            return f"{name} is not {relation} the other"
    return None


def check_row(row: Mapping[str, Any], where: str) -> None:
    """
    Raises:
        ValueError: when a line of the prompt file is not as GenEval writes them.
    """
    include, exclude = row.get("include"), row.get("exclude", [])
    is_good = (
        row.get("tag") in TAGS
        and isinstance(row.get("prompt"), str)
        and isinstance(include, list)
        and len(include) > 0
        and isinstance(exclude, list)
        and all(_is_entry(entry) for entry in [*include, *exclude])
        and all(_is_position(entry.get("position"), index) for index, entry in enumerate(include))
        and all(entry.get("color") in (None, *COLORS) for entry in include)
    )
    if not is_good:
        raise ValueError(
            f"A line of GenEval's prompts must have a tag ({', '.join(TAGS)}), a prompt and `include`, with classes, "
            f"counts, known colours and positions to earlier entries. {where} has {dict(row)!r:.200}. Take the file "
            f"`evaluation_metadata.jsonl`."
        )


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("class"), str):
        return False
    return isinstance(entry.get("count"), int) and not isinstance(entry["count"], bool) and entry["count"] > 0


def _is_position(position: Any, index: int) -> bool:
    """Whether the position of entry number `index`, if there is one, names a relation to an earlier entry."""
    if position is None:
        return True
    if not isinstance(position, (list, tuple)) or len(position) != 2 or position[0] not in RELATIONS:
        return False
    return isinstance(position[1], int) and not isinstance(position[1], bool) and 0 <= position[1] < index
