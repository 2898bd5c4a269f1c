"""WISE in its two variants, whose prompts, judges and formulas differ and whose scores cannot be compared."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from ...checks import check_name
from ...hub.results import Figure, Score
from ...reading import read_json
from .base import Item, PictureBenchmark, Pictures, field_of
from .layouts import flat_problems, save_png

CATEGORIES = ("culture", "time", "space", "biology", "physics", "chemistry")
LEGACY_WEIGHTS = dict(zip(CATEGORIES, (0.4, 0.167, 0.133, 0.1, 0.1, 0.1), strict=True))
VERIFIED_WEIGHTS = dict(zip(CATEGORIES, (0.4, 0.12, 0.12, 0.12, 0.12, 0.12), strict=True))
ASPECTS = ("consistency", "realism", "aesthetic quality")
"""What the legacy judge gives 0, 1 or 2 points for."""
_ASPECT_WEIGHTS = (7, 2, 1)  # of 10, so that sums are exact
_WORDS = {"cultur": "culture", **{name: name for name in CATEGORIES[1:]}}


def wiscore(points: Sequence[float]) -> float:
    """
    Legacy WiScore of one picture, in [0, 1]: `(0.7 C + 0.2 R + 0.1 A) / 2`.

    Args:
        points: for consistency, realism and aesthetic quality, 0, 1 or 2 each.

    Raises:
        ValueError: when they are not.

    Example:
        >>> wiscore((2, 1, 0))
        0.8
    """
    is_triple = isinstance(points, (list, tuple)) and len(points) == len(ASPECTS)
    if not is_triple or any(value not in (0, 1, 2) for value in points):
        raise ValueError(
            f"The legacy WISE judge gives 0, 1 or 2 points for {', '.join(ASPECTS)}. Got {points!r:.60}. Correct it."
        )
    return sum(weight * value for weight, value in zip(_ASPECT_WEIGHTS, points, strict=True)) / 20


def verified_score(verdict: float) -> float:
    """
    Score of one picture in WISE Verified: 1 where the judge finds it right, else 0.

    Raises:
        ValueError: when the verdict is neither 0 nor 1.
    """
    if verdict not in (0, 1):
        raise ValueError(f"The judge of WISE Verified says 0 or 1. Got {verdict!r:.60}. Correct it.")
    return float(verdict)


def overall(means: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """
    The score of all categories.

    Args:
        means: by category, all of them.
        weights: `LEGACY_WEIGHTS` or `VERIFIED_WEIGHTS`.

    Raises:
        ValueError: when a category is missing.
    """
    missing = [name for name in weights if name not in means]
    if missing:
        raise ValueError(f"WISE is scored over six categories. {', '.join(missing)} are missing. Score them, too.")
    return math.fsum(weight * means[name] for name, weight in weights.items())


class _Wise(PictureBenchmark):
    """
    Base of both variants. The prompts are JSON lists, one file or a folder of them.

    Args:
        prompts, limit: as in the base.
    """

    variant: ClassVar[str]
    weights: ClassVar[Mapping[str, float]]
    score_of: ClassVar[Callable[[Any], float]]
    """Of one picture, from what the judge said of it."""
    pattern = "*.json"
    judged_by = ("verdicts",)  # which come with the judge's name, and perhaps with categories

    def read_items(self, path):
        files = sorted(path.glob(self.pattern)) if path.is_dir() else [path]
        items = [_item(row, file) for file in files for row in _rows(file)]
        return sorted(items, key=lambda item: int(item.id))

    def write_layout(self, pictures, folder):
        for item in pictures.items:
            save_png(pictures.open(item), folder / f"{item.id}.png")

    def problems(self, folder):
        return flat_problems(folder, [f"{item.id}.png" for item in self.items])

    def score(self, pictures: Pictures, **judges: Any) -> list[Score]:
        """
        Args:
            pictures: as in the base.
            judges: `verdicts`, what a judge said of each picture, by prompt id: in the legacy variant three numbers
                of points, in the verified one 0 or 1; `judge`, the judge's name; and `categories`, names by prompt
                id, where the prompt file does not tell them. Without verdicts there is no score.
        """
        verdicts, judge = judges.get("verdicts"), judges.get("judge")
        if verdicts is None:
            return []
        if not isinstance(judge, str) or not judge:
            raise ValueError(f"A score of {self.title} names its judge. Got {judge!r:.40}. Give `judge`.")
        pictures.check_complete()
        return self._rows(self._values(verdicts, judges.get("categories") or {}), f"{self.title}, judge {judge}")

    def check_judges(self, **given: Any) -> None:
        if given.get("verdicts") is not None:
            self._values(given["verdicts"], given.get("categories") or {})

    def _values(self, verdicts: Mapping[str, Any], categories: Mapping[str, str]) -> dict[str, list[float]]:
        """Scores of all pictures by category."""
        missing = [item.id for item in self.items if item.id not in verdicts]
        if missing:
            raise ValueError(
                f"{self.title} needs a verdict on each picture. {len(missing)} are missing, the first is that of "
                f"{missing[0]}. Judge them, too."
            )
        values: dict[str, list[float]] = {}
        for item in self.items:
            category = categories[item.id] if item.id in categories else category_of(item)
            check_name("category of WISE", category, CATEGORIES)
            values.setdefault(category, []).append(type(self).score_of(verdicts[item.id]))
        return values

    def _rows(self, values: Mapping[str, Sequence[float]], label: str) -> list[Score]:
        means = {name: math.fsum(values[name]) / len(values[name]) for name in CATEGORIES if name in values}
        rows = [
            Score("text-to-image", f"{label}: {name}", Figure(mean), len(values[name]), metric="wiscore")
            for name, mean in means.items()
        ]
        if len(means) == len(CATEGORIES):
            total = sum(map(len, values.values()))
            figure = Figure(overall(means, self.weights))
            rows.append(Score("text-to-image", f"{label}: overall", figure, total, metric="wiscore"))
        return rows


class WiseLegacyBenchmark(_Wise):
    """WISE as published (Niu et al., 2025), judged by GPT-4o-2024-05-13 with points for three aspects."""

    name = "wise-legacy"
    variant = "legacy"
    title = "WISE (legacy)"
    about = (
        "One picture of each of 1000 prompts that need knowledge. A judge, officially GPT-4o-2024-05-13, gives 0 to 2 "
        "points for consistency, realism and aesthetic quality; WiScore is (0.7 C + 0.2 R + 0.1 A) / 2. This is the "
        "legacy variant, whose numbers must not be compared with those of WISE Verified."
    )
    weights = LEGACY_WEIGHTS
    score_of = staticmethod(wiscore)
    official = "The scripts in WISE_legacy/, on FOLDER."


class WiseVerifiedBenchmark(_Wise):
    """WISE Verified, whose prompts differ in part from those of the legacy variant; right or wrong alone."""

    name = "wise-verified"
    variant = "verified"
    title = "WISE (verified)"
    about = (
        "One picture of each of 1000 prompts that need knowledge. A judge says whether it is right. This is the "
        "verified variant, whose numbers must not be compared with those of the legacy one."
    )
    weights = VERIFIED_WEIGHTS
    score_of = staticmethod(verified_score)
    official = (
        "IMAGE_DIR=FOLDER VLLM_API_BASE=... VLLM_API_KEY=... JUDGE_MODEL=... MAX_WORKERS=... bash eval_qwen.sh, then "
        "calculate_verified.py ... --category all."
    )


def category_of(item: Item) -> str:
    """
    The category that a prompt's row names, in a field whose name holds "category".

    Raises:
        ValueError: when it names none, or several.
    """
    texts = [str(value).lower() for key, value in item.row.items() if "category" in key.lower()]
    found = {name for text in texts for word, name in _WORDS.items() if word in text}
    if len(found) != 1:
        raise ValueError(
            f"A prompt of WISE must have one of the categories {', '.join(CATEGORIES)}. The row of {item.id} names "
            f"{', '.join(sorted(found)) or 'none'}. Give `categories`, names by prompt id."
        )
    return found.pop()


def _rows(file) -> list[Any]:
    rows = read_json(file)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"A prompt file of WISE must be a JSON list of mappings. {file} is none. Check the path.")
    return rows


def _item(row: Mapping[str, Any], file) -> Item:
    number = field_of(row, "prompt_id", int, f"A prompt in {file}")
    return Item(str(number), field_of(row, "Prompt", str, f"Prompt {number} in {file}"), row)
