"""What a comparison of two arms decides: an effect, its interval, and one of three words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..evaluation.statistics import Change, paired_change
from .study_file import Comparison

SUPPORTED, REFUTED, UNDECIDED = "supported", "refuted", "not decided at this budget"
# Quantiles of Student's t for 95 %, by the number of seeds less one.
_STUDENT = (math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Verdict:
    """
    Attributes:
        comparison: that was asked.
        change: from `against` to `of`, with its interval.
        num_items: that were paired; 1 where a value is of a whole run.
        num_seeds: of both arms.
        word: `supported`, `refuted`, or `not decided at this budget`.
    """

    comparison: Comparison
    change: Change
    num_items: int
    num_seeds: int
    word: str


def decided(comparison: Comparison, of: Sequence[Sequence[float]], against: Sequence[Sequence[float]]) -> Verdict:
    """
    The verdict of a comparison: a hypothesis is supported or refuted where the 95 % interval of the paired difference
    leaves out 0, and else not decided.

    Args:
        comparison: the question.
        of, against (`[S, N]`): values of each seed and item; with one item, the interval is Student's over seeds.

    Raises:
        ValueError: when the items or seeds of both differ.
    """
    counts = [sorted({len(row) for row in rows}) for rows in (of, against)]
    if len(of) != len(against) or counts[0] != counts[1] or len(counts[0]) != 1:
        raise ValueError(
            f"Arms are compared on the same items and seeds. `{comparison.name}` has {len(of)} seeds of "
            f"{comparison.of} and {len(against)} of {comparison.against}, with {counts[0]} and {counts[1]} items. "
            f"Correct the measure of {comparison.value}."
        )
    one, other = np.asarray(of, dtype=np.float64), np.asarray(against, dtype=np.float64)
    change = paired_change(against, of) if one.shape[1:] != (1,) else _student(comparison, one, other)
    sign = 1 if comparison.direction == "higher" else -1
    low, high = sorted(sign * bound for bound in change.interval)
    word = SUPPORTED if low > 0 else REFUTED if high < 0 else UNDECIDED
    return Verdict(comparison, change, one.shape[1], len(one), word)


def _student(comparison: Comparison, of: np.ndarray, against: np.ndarray) -> Change:
    """Of values of whole runs, paired by seeds."""
    if not 2 <= len(of) <= len(_STUDENT):
        raise ValueError(
            f"A value of whole runs is compared over 2 to {len(_STUDENT)} seeds. `{comparison.name}` has {len(of)}. "
            f"Change the seeds of the study."
        )
    differences = (of - against).ravel()
    half = _STUDENT[len(differences) - 1] * differences.std(ddof=1) / math.sqrt(len(differences))
    middle = float(differences.mean())
    return Change(float(against.mean()), float(of.mean()), (middle - half, middle + half))


__all__ = ["REFUTED", "SUPPORTED", "UNDECIDED", "Verdict", "decided"]
