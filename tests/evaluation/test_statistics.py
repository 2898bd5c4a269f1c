"""Rates and their intervals."""

import math

import pytest

from blip3o_hf.evaluation.statistics import Rate


def test_wilson_interval_of_known_cases():
    low, high = Rate(8, 10).interval
    assert low == pytest.approx(0.4902, abs=1e-4) and high == pytest.approx(0.9433, abs=1e-4)
    assert Rate(0, 10).interval[0] == 0.0 and Rate(10, 10).interval[1] == pytest.approx(1.0)


def test_rates_add_up_and_an_empty_one_has_no_value():
    assert Rate(1, 2) + Rate(3, 4) == Rate(4, 6)
    assert math.isnan(Rate(0, 0).value)
    assert str(Rate(1, 2)).startswith("0.500 [")
