"""What a comparison of two arms decides: an effect, its interval, and one of three words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..evaluation.statistics import Change, paired_change
from .studies import Comparison

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
    leaves out 0, and else not decided. The interval is the wider of two: that of the bootstrap over seeds and items,
    which alone is too narrow for few seeds, and Student's over the means of the seeds, which does not know the items.

    Args:
        comparison: the question.
        of, against (`[S, N]`): values of each seed and item; one item for a value of whole runs. With one seed, the
            interval tells of other items only.

    Raises:
        ValueError: when the items or seeds of both differ, or one seed has one item.
    """
    counts = [sorted({len(row) for row in rows}) for rows in (of, against)]
    if len(of) != len(against) or counts[0] != counts[1] or len(counts[0]) != 1:
        raise ValueError(
            f"Arms are compared on the same items and seeds. `{comparison.name}` has {len(of)} seeds of "
            f"{comparison.of} and {len(against)} of {comparison.against}, with {counts[0]} and {counts[1]} items. "
            f"Correct the measure of {comparison.value}."
        )
    num_seeds, num_items = len(of), counts[0][0]
    if num_seeds == num_items == 1:
        raise ValueError(
            f"A value of whole runs is compared over at least 2 seeds. `{comparison.name}` has 1. Add seeds to the "
            f"study."
        )
    intervals = [_student(np.subtract(of, against).mean(axis=1))] if num_seeds > 1 else []
    if num_items > 1:
        intervals.append(paired_change(against, of).interval)
    interval = min(low for low, _ in intervals), max(high for _, high in intervals)
    change = Change(float(np.mean(against)), float(np.mean(of)), interval)
    sign = 1 if comparison.direction == "higher" else -1
    low, high = sorted(sign * bound for bound in change.interval)
    word = SUPPORTED if low > 0 else REFUTED if high < 0 else UNDECIDED
    return Verdict(comparison, change, num_items, num_seeds, word)


def _student(differences: np.ndarray) -> tuple[float, float]:
    """Student's 95 % interval of the mean of differences `[S]`, one for each seed."""
    freedom = len(differences) - 1
    series = 1.95996 + 2.37227 / freedom + 2.8225 / freedom**2 + 2.556 / freedom**3  # right to three places from 10 on
    quantile = _STUDENT[freedom] if freedom < len(_STUDENT) else series
    half = quantile * float(differences.std(ddof=1)) / math.sqrt(len(differences))
    middle = float(differences.mean())
    return middle - half, middle + half


__all__ = ["REFUTED", "SUPPORTED", "UNDECIDED", "Verdict", "decided"]
