"""Rates with their intervals."""

import math
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
