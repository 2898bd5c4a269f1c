"""Statistics of preferences in which several judgments belong to one prompt: shares, tests, agreement, strengths."""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np

from ..statistics import wilson

BOOTSTRAP_SAMPLES = 10_000
FEW_PROMPTS = 20
_CHUNK = 500
_MAX_STEPS = 10_000


def binomial_p(successes: int, total: int) -> float:
    """
    Two-sided p-value of the exact binomial test at one half; 1 of no trials.

    Example:
        >>> round(binomial_p(9, 10), 6)
        0.021484
    """
    extreme = max(successes, total - successes)
    if 2 * extreme == total:
        return 1.0
    logs = [
        math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) - total * math.log(2)
        for k in range(extreme, total + 1)
    ]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def sign_flip_p(differences: Iterable[int]) -> float:
    """
    Two-sided p-value of the sign-flip permutation test on the sum, over all 2**n flips and not a sample of them.

    If two systems are equally good, the sum of a prompt is as likely with the other sign, however much its judgments
    depend on each other. So signs are flipped by prompt, and the distribution of the sum is a convolution.

    Args:
        differences: for each prompt, judgments for one system less those for the other.

    Example:
        >>> sign_flip_p([1, 1, 1, 1])  # 2 of 16 flips are as far from 0
        0.125
    """
    values = [int(difference) for difference in differences]
    observed = abs(sum(values))
    chances = np.ones(1)  # of the sums -reach, -reach + 2, ..., reach
    for size in filter(None, map(abs, values)):
        wider = np.zeros(len(chances) + size)
        wider[: len(chances)] += chances / 2
        wider[size:] += chances / 2
        chances = wider
    reach = len(chances) - 1
    sums = np.arange(-reach, reach + 1, 2)
    return min(1.0, float(chances[np.abs(sums) >= observed].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """
    P-values adjusted for their number by Holm's method, in their order.

    Example:
        >>> holm([0.01, 0.04])
        [0.02, 0.04]
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def cluster_interval(
    sums: Sequence[float], counts: Sequence[int], seed: int = 0, samples: int = BOOTSTRAP_SAMPLES
) -> tuple[float, float]:
    """
    95 % percentile interval of `sum(sums) / sum(counts)`, by a bootstrap that draws whole prompts. Of fewer than
    `FEW_PROMPTS`, or where all agree, a bootstrap knows too little: then Wilson's, with as many judgments as prompts.

    Args:
        sums: points of a system for each prompt, 1 for a judgment in its favour and one half for a tie.
        counts: judgments of each prompt.
        seed: of the bootstrap.
        samples: how many are drawn.
    """
    if not len(sums):
        return (math.nan, math.nan)
    points, numbers = np.asarray(sums, float), np.asarray(counts, float)
    if len(points) < FEW_PROMPTS or len(set((points / numbers).tolist())) == 1:
        return wilson(float(points.sum() / numbers.sum()), len(points))
    generator, shares = np.random.default_rng(seed), []
    for first in range(0, samples, _CHUNK):
        size = (min(_CHUNK, samples - first), len(points))
        drawn = generator.integers(len(points), size=size)
        shares.append(points[drawn].sum(axis=1) / numbers[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(shares), [0.025, 0.975])
    return float(low), float(high)


def krippendorff_alpha(units: Iterable[Sequence[Hashable]]) -> float:
    """
    Krippendorff's alpha for nominal values: 1 is agreement, 0 that of chance; NaN where it is not defined.

    Args:
        units: the values that raters gave to each unit; units with fewer than two do not count.

    Source: Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011, section C.

    Example:
        >>> krippendorff_alpha([["a", "a"], ["b", "b"], ["a", "b"]])
        0.4444444444444444
    """
    coincidences: defaultdict[tuple[Hashable, Hashable], float] = defaultdict(float)
    for unit in units:
        values, number = Counter(unit), len(unit)
        if number < 2:
            continue
        for first, times in values.items():
            for second, others in values.items():
                pairs = times * (others - (first == second))
                coincidences[first, second] += pairs / (number - 1)
    totals: defaultdict[Hashable, float] = defaultdict(float)
    for (first, _), weight in coincidences.items():
        totals[first] += weight
    whole = sum(totals.values())
    expected = whole**2 - sum(total**2 for total in totals.values())
    if expected <= 0:
        return math.nan
    observed = sum(weight for (first, second), weight in coincidences.items() if first != second)
    return 1 - (whole - 1) * observed / expected


def bradley_terry(wins: Mapping[tuple[str, str], float], names: Sequence[str]) -> dict[str, float] | None:
    """
    Strengths of the Bradley-Terry model, whose product is 1: `a` beats `b` in `s_a / (s_a + s_b)` of judgments.

    Args:
        wins: how often the first beat the second; a tie is one half for each.
        names: of all systems.

    Returns:
        strengths by name, or `None` if there are none that are finite: then some systems never lost to the others.

    Source: Hunter, MM algorithms for generalized Bradley-Terry models, 2004, equation 3.
    """
    number = len(names)
    won = np.array([[wins.get((a, b), 0.0) if a != b else 0.0 for b in names] for a in names])
    reached = np.linalg.matrix_power((won > 0) + np.eye(number), number) > 0
    if not reached.all():
        return None
    met, strengths = won + won.T, np.ones(number)
    for _ in range(_MAX_STEPS):
        before = strengths
        strengths = won.sum(axis=1) / (met / (strengths[:, None] + strengths[None, :])).sum(axis=1)
        strengths /= np.exp(np.log(strengths).mean())
        if np.abs(np.log(strengths / before)).max() < 1e-12:
            break
    return dict(zip(names, map(float, strengths), strict=True))
