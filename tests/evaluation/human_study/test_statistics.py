"""Tests and intervals against closed forms, enumeration, and simulated raters whose truth is known."""

import itertools
import math

import numpy as np
import pytest

from blip3o_hf.evaluation.human_study.statistics import (
    binomial_p,
    bradley_terry,
    cluster_interval,
    holm,
    krippendorff_alpha,
    sign_flip_p,
)
from blip3o_hf.evaluation.statistics import wilson


def simulated(seed, share, prompts=1000, raters=3, spread=0.3):
    """Judgments for the first system by prompt and rater; each prompt has a share of its own, as pictures do."""
    generator = np.random.default_rng(seed)
    shares = np.clip(share + spread * generator.uniform(-1, 1, prompts), 0, 1)
    return generator.random((prompts, raters)) < shares[:, None]


def p_of(wins):
    return sign_flip_p(2 * wins.sum(axis=1) - wins.shape[1])


@pytest.mark.parametrize("total", [1, 2, 9, 40])
def test_binomial_is_the_sum_of_its_terms(total):
    for k in range(total + 1):
        extreme = max(k, total - k)
        tail = sum(math.comb(total, i) for i in range(extreme, total + 1)) / 2**total
        assert binomial_p(k, total) == pytest.approx(min(1.0, 2 * tail), rel=1e-9)


def test_binomial_of_the_papers_shares():
    """54.2 % and 54.0 % of 3,000 judgments come near the p-values that the paper reports without naming a test."""
    assert binomial_p(1625, 3000) == pytest.approx(5.4e-06, rel=0.01)
    assert binomial_p(1621, 3000) == pytest.approx(1.07e-05, rel=0.01)
    assert binomial_p(0, 0) == 1.0


def test_sign_flips_are_all_of_them():
    for values in ([3, -1, 2, 0, 2], [1, 1, 1], [-4], [], [2, -2, 5, 5, 1, 3]):
        signs = itertools.product((-1, 1), repeat=len(values))
        sums = [abs(sum(s * v for s, v in zip(sign, values, strict=True))) for sign in signs]
        assert sign_flip_p(values) == pytest.approx(np.mean([total >= abs(sum(values)) for total in sums]))


def test_sign_flips_of_single_judgments_are_the_binomial_test():
    values = [1] * 70 + [-1] * 50
    assert sign_flip_p(values) == pytest.approx(binomial_p(70, 120), rel=1e-9)
    assert sign_flip_p(reversed(values)) == sign_flip_p(values)


def test_a_real_preference_is_found_and_clusters_cost_confidence():
    wins = simulated(seed=2, share=0.541)
    k, total = int(wins.sum()), wins.size
    low, high = cluster_interval(wins.sum(axis=1), [3] * len(wins))
    assert low < 0.541 < high and low > 0.5
    assert binomial_p(k, total) < p_of(wins) < 0.01
    wilson_width = 2 * 1.96 * math.sqrt(k / total * (1 - k / total) / total)
    assert high - low > 1.05 * wilson_width


def test_without_a_preference_p_is_uniform_where_the_binomial_is_not():
    """Judgments of one prompt agree here: the binomial test finds a preference too often."""
    null = [simulated(seed, 0.5, prompts=100, raters=5, spread=0.5) for seed in range(400)]
    clustered = np.array([p_of(wins) for wins in null])
    naive = np.array([binomial_p(int(wins.sum()), wins.size) for wins in null])
    assert 0.02 < np.mean(clustered < 0.05) < 0.085
    assert 0.4 < np.mean(clustered < 0.5) < 0.6
    assert np.mean(naive < 0.05) > 0.12


def test_the_bootstrap_covers_the_truth():
    covered = []
    for seed in range(200):
        wins = simulated(seed, 0.55, prompts=100, raters=4, spread=0.4)
        low, high = cluster_interval(wins.sum(axis=1), [4] * 100, samples=500)
        covered.append(low <= 0.55 <= high)
    assert 0.90 < np.mean(covered) < 0.985


def test_the_bootstrap_repeats_and_knows_its_borders():
    sums, counts = [number % 3 for number in range(30)], [2] * 30
    assert cluster_interval(sums, counts, seed=4) == cluster_interval(sums, counts, seed=4)
    low, high = cluster_interval(sums, counts)
    assert 0.3 < low < 0.5 < high < 0.7
    assert all(map(math.isnan, cluster_interval([], [])))


def test_of_few_prompts_and_of_prompts_that_agree_the_interval_is_no_point():
    assert cluster_interval([2] * 40, [2] * 40) == wilson(1.0, 40) != (1.0, 1.0)
    assert cluster_interval([1, 0, 2], [2, 2, 2]) == wilson(0.5, 3)


def test_holm_keeps_the_order_and_never_lowers():
    assert holm([0.04, 0.01, 0.03]) == [0.06, 0.03, 0.06]
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_alpha_of_known_cases():
    assert krippendorff_alpha([["a", "a"], ["b", "b"]]) == 1.0
    assert math.isnan(krippendorff_alpha([["a", "a"], ["a", "a"]])) and math.isnan(krippendorff_alpha([["a"], ["b"]]))
    # Krippendorff 2011, section C: four observers, 12 units, missing values; alpha nominal 0.743
    rows = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
    units = [[row[i] for row in rows if row[i] != "."] for i in range(12)]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)


def test_alpha_is_small_where_pictures_are_alike():
    wins = simulated(seed=5, share=0.54)
    assert 0.05 < krippendorff_alpha(wins.tolist()) < 0.2


def test_strengths_give_back_their_shares():
    truth = {"a": 2.0, "b": 1.0, "c": 0.5}
    wins = {(x, y): 1000 * truth[x] / (truth[x] + truth[y]) for x in truth for y in truth if x != y}
    assert bradley_terry(wins, list(truth)) == pytest.approx(truth, rel=1e-6)
    two = bradley_terry({("a", "b"): 3, ("b", "a"): 1}, ["a", "b"])
    assert two["a"] / two["b"] == pytest.approx(3)


def test_strengths_that_are_not_finite_are_none():
    assert bradley_terry({("a", "b"): 5, ("b", "c"): 2, ("c", "b"): 1}, ["a", "b", "c"]) is None
