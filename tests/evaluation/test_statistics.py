"""Rates and their intervals."""

import math

import numpy as np
import pytest

from blip3o_hf.evaluation.statistics import Rate, paired_change


def test_wilson_interval_of_known_cases():
    low, high = Rate(8, 10).interval
    assert low == pytest.approx(0.4902, abs=1e-4) and high == pytest.approx(0.9433, abs=1e-4)
    assert Rate(0, 10).interval[0] == 0.0 and Rate(10, 10).interval[1] == pytest.approx(1.0)


def test_rates_add_up_and_an_empty_one_has_no_value():
    assert Rate(1, 2) + Rate(3, 4) == Rate(4, 6)
    assert math.isnan(Rate(0, 0).value)
    assert str(Rate(1, 2)).startswith("0.500 [")


def test_a_change_is_told_with_an_interval_over_seeds_and_items():
    before = [0.0] * 60 + [1.0] * 40
    change = paired_change(before, [[1.0] * 30 + [0.0] * 30 + [1.0] * 40] * 3)
    assert change.before == pytest.approx(0.4) and change.after == pytest.approx(0.7)
    low, high = change.interval
    assert low == pytest.approx(0.3 - 1.96 * math.sqrt(0.3 * 0.7 / 100), abs=0.02)  # seeds that agree add nothing
    assert low < change.value < high and change.is_significant
    assert str(change).startswith("0.400 -> 0.700 (+0.300 [+0.2")


def test_seeds_that_disagree_make_the_interval_wide():
    rng = np.random.default_rng(1)
    before = rng.integers(2, size=400).astype(float)
    same = paired_change(before, [before] * 3)
    assert same.interval == (0.0, 0.0) and not same.is_significant
    apart = paired_change(before, [np.ones(400), np.zeros(400), before])
    assert apart.interval[0] < -0.3 and apart.interval[1] > 0.3


def test_a_change_needs_the_same_items():
    with pytest.raises(ValueError, match=r"values of the same items\. Got arrays of the shapes \(3,\) and \(3,\)"):
        paired_change([0, 1, 1], [0, 1, 1])
    with pytest.raises(ValueError, match="same items"):
        paired_change([0, 1], [[0, 1, 1]])
