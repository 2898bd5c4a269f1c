"""Rates with their intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


def wilson(share: float, number: int) -> tuple[float, float]:
    """
    Wilson score interval at 95 %.

    Args:
        share: in [0, 1].
        number: of what it is a share.
    """
    if not number:
        return (math.nan, math.nan)
    z, n, p = 1.959964, number, share
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return (max(0.0, centre - half), min(1.0, centre + half))


@dataclass(frozen=True)
class Rate:
    """`passed` of `total`, with a 95 % interval."""

    passed: int
    total: int

    @property
    def value(self) -> float:
        return self.passed / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson score interval at 95 %."""
        return wilson(self.value, self.total)

    def __add__(self, other: "Rate") -> "Rate":
        return Rate(self.passed + other.passed, self.total + other.total)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3f} [{low:.3f}, {high:.3f}]"


@dataclass(frozen=True)
class Change:
    """
    How much a rate changed, with a 95 % interval.

    Attributes:
        before, after: means in [0, 1].
        interval: of `after - before`.
    """

    before: float
    after: float
    interval: tuple[float, float]

    @property
    def value(self) -> float:
        return self.after - self.before

    @property
    def is_significant(self) -> bool:
        """Whether the interval leaves out 0."""
        low, high = self.interval
        return low > 0 or high < 0

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.before:.3f} -> {self.after:.3f} ({self.value:+.3f} [{low:+.3f}, {high:+.3f}])"


def paired_change(
    before: Sequence[float] | Sequence[Sequence[float]], after: Sequence[Sequence[float]], num_samples: int = 10_000
) -> Change:
    """
    The same items measured before and after, the latter by runs of several seeds: the interval is that of the
    bootstrap over seeds and items at once, so that it tells of other seeds and other items.

    Args:
        before (`[N]`): a value for each item, or one row of them for each seed, `[S, N]`.
        after (`[S, N]`): the same for each seed.
        num_samples: of the bootstrap, whose random numbers are always the same.

    Raises:
        ValueError: when the numbers of items or seeds differ, or there are none.
    """
    import numpy as np

    early, late = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if not late.size or late.ndim != 2 or early.shape not in (late.shape, late.shape[1:]):
        raise ValueError(
            f"A change is between values of the same items. Got arrays of the shapes {early.shape} and {late.shape}. "
            f"Give one row of them for each seed."
        )
    differences = late - early
    rng = np.random.default_rng(0)
    num_seeds, num_items = differences.shape
    means = np.empty(num_samples)
    for index in range(num_samples):
        seeds = rng.integers(num_seeds, size=num_seeds)
        items = rng.integers(num_items, size=num_items)
        means[index] = differences[np.ix_(seeds, items)].mean()
    low, high = np.quantile(means, (0.025, 0.975))
    return Change(float(early.mean()), float(late.mean()), (float(low), float(high)))
