"""Distances on given features: closed forms, brute force, and what must not change them."""

import math

import numpy as np
import pytest

from blip3o_hf.evaluation.distances import FeatureStatistics, check_features, cmmd, frechet_distance, kernel_distance


@pytest.fixture
def draw():
    """`draw(count, dim, seed=0)`: features of a normal distribution."""
    return lambda count, dim, seed=0: np.random.default_rng(seed).normal(size=(count, dim))


def frechet(first, second):
    return frechet_distance(FeatureStatistics.of(first), FeatureStatistics.of(second))


def rotation(dim):
    return np.linalg.qr(np.random.default_rng(5).normal(size=(dim, dim)))[0]


# Frechet distance


def test_frechet_distance_of_two_gaussians_is_the_closed_form():
    means = np.array([1.0, -2.0, 0.5]), np.array([0.0, 1.0, 0.5])
    deviations = np.array([1.0, 2.0, 0.0]), np.array([3.0, 0.5, 1.0])
    statistics = [
        FeatureStatistics(11, mean, 10 * np.diag(deviation**2))
        for mean, deviation in zip(means, deviations, strict=True)
    ]
    expected = ((means[0] - means[1]) ** 2).sum() + ((deviations[0] - deviations[1]) ** 2).sum()
    assert frechet_distance(*statistics) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_of_singular_covariances_is_that_of_the_features(draw):
    first, second = draw(9, 40), draw(7, 40, seed=1) + 0.3
    centred = [features - features.mean(axis=0) for features in (first, second)]
    # tr((C1 C2)^(1/2)) from the features themselves, which never forms a covariance
    shared = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum() / math.sqrt(8 * 6)
    spread = sum((each**2).sum() / (len(each) - 1) for each in centred)
    offset = ((first.mean(axis=0) - second.mean(axis=0)) ** 2).sum()
    assert frechet(first, second) == pytest.approx(offset + spread - 2 * shared, rel=1e-10)


@pytest.mark.parametrize(("count", "dim"), [(200, 8), (10, 40)], ids=["full rank", "fewer pictures than dim"])
def test_identical_sets_have_no_distance(draw, count, dim):
    features = draw(count, dim) * np.geomspace(1e-3, 1e3, dim)
    scale = features.var(axis=0).sum()
    assert frechet(features, features) == pytest.approx(0, abs=1e-9 * scale)
    assert cmmd(features, features) == pytest.approx(0, abs=1e-9)


def test_order_and_rotation_change_nothing(draw):
    first, second, turn = draw(60, 12), draw(50, 12, seed=1) * 2 + 1, rotation(12)
    for distance in (frechet, cmmd):
        plain = distance(first, second)
        assert distance(first[::-1], second) == pytest.approx(plain, rel=1e-9)
        assert distance(first @ turn, second @ turn) == pytest.approx(plain, rel=1e-9)
        assert distance(second, first) == pytest.approx(plain, rel=1e-9)
    whole = kernel_distance(first, second, subsets=1, subset_size=50)
    turned = kernel_distance(first @ turn, second @ turn, subsets=1, subset_size=50)
    assert turned.mean == pytest.approx(whole.mean, rel=1e-9)


def test_two_equal_constant_sets_have_no_distance():
    assert frechet(np.ones((5, 3)), np.ones((4, 3))) == 0


# Statistics in batches


def test_batches_have_the_statistics_of_the_whole(draw):
    features = (draw(103, 6) * 3 + 1e4).astype(np.float32)  # a mean that float32 sums would lose
    whole = FeatureStatistics.of(features)
    parts = FeatureStatistics.of_batches(features[start : start + 10] for start in range(0, 103, 10))
    assert parts.count == 103
    np.testing.assert_allclose(parts.mean, features.astype(np.float64).mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(parts.covariance, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-9)
    np.testing.assert_allclose(parts.covariance, whole.covariance, rtol=1e-9)


def test_statistics_of_nothing_and_of_one_picture_are_refused(draw):
    with pytest.raises(ValueError, match=r"at least one batch of features. Got none"):
        FeatureStatistics.of_batches([])
    with pytest.raises(ValueError, match=r"A covariance needs at least 2 pictures. Got 1"):
        FeatureStatistics.of(draw(1, 3)).covariance


# Kernel distance


def brute_force_kid(first, second):
    dim = first.shape[1]
    kernel = lambda x, y: (float(x @ y) / dim + 1) ** 3  # noqa: E731
    within = [
        sum(kernel(x, y) for i, x in enumerate(each) for j, y in enumerate(each) if i != j)
        / (len(each) * (len(each) - 1))
        for each in (first, second)
    ]
    return sum(within) - 2 * np.mean([kernel(x, y) for x in first for y in second])


def test_kernel_distance_is_that_of_all_pairs(draw):
    first, second = draw(6, 4), draw(6, 4, seed=1) + 1
    whole = kernel_distance(first, second, subsets=3, subset_size=6)
    assert whole.mean == pytest.approx(brute_force_kid(first, second), rel=1e-12)
    assert whole.deviation == pytest.approx(0, abs=1e-12)


def test_kernel_distance_has_no_bias_where_the_frechet_distance_has_one(draw):
    halves = [draw(40, 8, seed) for seed in range(60)]
    kernel = [kernel_distance(a, b, subsets=1, subset_size=40).mean for a, b in zip(halves[::2], halves[1::2])]  # noqa: B905
    assert abs(np.mean(kernel)) < 3 * np.std(kernel) / math.sqrt(len(kernel))
    assert min(kernel) < 0
    assert min(frechet(a, b) for a, b in zip(halves[::2], halves[1::2], strict=True)) > 0.5


def test_kernel_distance_grows_with_a_shift_and_repeats_with_its_seed(draw):
    first, second = draw(80, 8), draw(90, 8, seed=1)
    values = [kernel_distance(first, second + shift, subsets=10).mean for shift in (0, 0.5, 1.0)]
    assert values == sorted(values)
    one, same, other = (kernel_distance(first, second, subsets=10, seed=seed) for seed in (0, 0, 1))
    assert one == same and one.mean != other.mean
    assert one.subset_size == 40


# CMMD


def test_cmmd_is_that_of_all_pairs(draw):
    first, second = draw(7, 5), draw(4, 5, seed=1) + 1
    units = [[x / np.linalg.norm(x) for x in each] for each in (first, second)]

    def mean(one, two):
        return np.mean([[math.exp(-((x - y) ** 2).sum() / (2 * 10.0**2)) for y in two] for x in one])

    expected = 1000 * (mean(units[0], units[0]) + mean(units[1], units[1]) - 2 * mean(*units))
    assert cmmd(first, second) == pytest.approx(expected, rel=1e-7)
    assert cmmd(first * 3, second) == pytest.approx(expected, rel=1e-7)


def test_cmmd_of_many_rows_is_that_of_a_few(draw, monkeypatch):
    first, second = draw(30, 5), draw(20, 5, seed=1)
    whole = cmmd(first, second)
    monkeypatch.setattr("blip3o_hf.evaluation.distances._ROWS", 7)
    assert cmmd(first, second) == pytest.approx(whole, rel=1e-9)


# Bad input


@pytest.mark.parametrize(
    ("features", "text"),
    [
        (np.zeros(3), r"shape \[pictures, dim\]. Got float64 \[3\]"),
        (np.zeros((2, 0)), r"Got float64 \[2, 0\]"),
        (np.array([["a", "b"]]), "Features must be numbers"),
        (np.zeros((0, 3)), "at least 1 pictures in each set. Got 0"),
        (np.array([[1.0, 2.0], [np.nan, 0.0]]), "Features must be finite. Picture 1 has others"),
    ],
)
def test_what_is_no_features_is_refused(features, text):
    with pytest.raises(ValueError, match=text):
        check_features(features)


def test_sets_that_do_not_fit_are_refused(draw):
    for distance in (frechet, kernel_distance, cmmd):
        with pytest.raises(ValueError, match=r"must have one dimension. Got 4 and 5. Use the same extractor"):
            distance(draw(6, 4), draw(6, 5))
    with pytest.raises(ValueError, match=r"A subset must fit into both sets. Got 7 of 6 pictures"):
        kernel_distance(draw(9, 4), draw(6, 4), subset_size=7)
    with pytest.raises(ValueError, match=r"`subset_size` must be a whole number of at least 2. Got 1"):
        kernel_distance(draw(9, 4), draw(6, 4), subset_size=1)
    with pytest.raises(ValueError, match=r"Those of picture 2 are all 0"):
        cmmd(np.array([[1.0, 0], [0, 1], [0, 0]]), draw(3, 2))
    with pytest.raises(ValueError, match=r"`sigma` must be a number above 0. Got 0"):
        cmmd(draw(3, 2), draw(3, 2), sigma=0)
