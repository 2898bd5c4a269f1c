"""A hypothesis is decided where the interval of the difference leaves out 0, and in its own direction."""

import numpy as np
import pytest

from blip3o_hf.study.studies import Comparison
from blip3o_hf.study.verdicts import REFUTED, SUPPORTED, UNDECIDED, decided


def comparison(direction="higher"):
    return Comparison("asked", "measure.value", "one", "other", direction, "One differs.")


def items(rate, seed, num_seeds=3, num_items=200):
    return (np.random.default_rng(seed).random((num_seeds, num_items)) < rate).astype(float).tolist()


HIGH, LOW = items(0.8, 0), items(0.4, 1)


@pytest.mark.parametrize(
    ("direction", "of", "against", "word"),
    [
        ("higher", HIGH, LOW, SUPPORTED),
        ("higher", LOW, HIGH, REFUTED),
        ("lower", HIGH, LOW, REFUTED),
        ("lower", LOW, HIGH, SUPPORTED),
        ("higher", HIGH, items(0.8, 2), UNDECIDED),
        ("lower", HIGH, items(0.8, 2), UNDECIDED),
        ("higher", HIGH, HIGH, UNDECIDED),
        ("higher", [[0.0, 1.0]] * 3, [[2.0, 3.0]] * 3, REFUTED),
        ("higher", [[1.0, 2.0] * 50], [[0.0, 1.5] * 50], SUPPORTED),
        ("higher", [[2.0], [3.0]], [[0.0], [1.0]], SUPPORTED),
        ("lower", [[2.0], [3.0]], [[0.0], [1.0]], REFUTED),
        ("higher", [[1.0], [1.0]], [[1.0], [1.0]], UNDECIDED),
    ],
)
def test_a_verdict_follows_the_interval(direction, of, against, word):
    verdict = decided(comparison(direction), of, against)
    assert verdict.word == word
    low, high = verdict.change.interval
    assert (word == UNDECIDED) == (low <= 0 <= high)
    assert verdict.change.value == pytest.approx(np.mean(of) - np.mean(against))
    assert (verdict.num_seeds, verdict.num_items) == np.shape(of)


def test_identical_values_have_no_interval():
    for values in (HIGH, [[0.5], [0.25]]):
        assert decided(comparison(), values, values).change.interval == (0.0, 0.0)


@pytest.mark.parametrize(
    ("differences", "middle", "half"),
    [
        ((1, 2, 3), 2, 2.484),
        ((0, 4), 2, 25.412),
        ((1, 2, 3, 4, 5), 3, 1.963),
        (tuple(range(10)), 4.5, 2.165),
        (tuple(range(11)), 5, 2.228),
        (tuple(range(31)), 15, 3.335),
    ],
)
def test_values_of_whole_runs_have_the_interval_of_student(differences, middle, half):
    """Tables of Student's t: 4.303, 12.706, 2.776, 2.262, 2.228 and 2.042 standard errors."""
    against = [[10.0 * seed] for seed in range(len(differences))]
    of = [[base + difference] for (base,), difference in zip(against, differences, strict=True)]
    low, high = decided(comparison(), of, against).change.interval
    assert ((low + high) / 2, (high - low) / 2) == pytest.approx((middle, half), abs=2e-3)


def test_many_equal_items_tell_no_more_of_other_seeds_than_one():
    """Two of three seeds that agree by chance are no evidence, however many items were measured of each."""
    differences = (0.1, 0.2, 0.6)
    once = decided(comparison(), [[value] for value in differences], [[0.0]] * 3)
    often = decided(comparison(), [[value] * 100 for value in differences], [[0.0] * 100] * 3)
    assert once.word == often.word == UNDECIDED
    assert often.change.interval == pytest.approx(once.change.interval)


def test_equal_seeds_tell_no_more_of_other_items_than_one():
    of, against = items(0.5, 0, num_seeds=1, num_items=20), items(0.45, 3, num_seeds=1, num_items=20)
    once, often = decided(comparison(), of, against), decided(comparison(), of * 4, against * 4)
    assert once.word == often.word == UNDECIDED
    assert often.change.interval == pytest.approx(once.change.interval, abs=0.051)


def test_seeds_and_items_are_paired():
    """A difference that all items of all seeds share is told apart from much larger ones between them."""
    base = np.random.default_rng(0).normal(size=(3, 50)) * 10
    verdict = decided(comparison(), (base + 0.1).tolist(), base.tolist())
    assert verdict.word == SUPPORTED and verdict.change.interval == pytest.approx((0.1, 0.1))


@pytest.mark.parametrize(
    ("of", "against", "message"),
    [
        (
            [[1.0, 2.0]],
            [[1.0]],
            r"same items and seeds\. `asked` has 1 seeds of one and 1 of other, with \[2\] and \[1\]",
        ),
        ([[1.0]] * 3, [[1.0]] * 2, r"`asked` has 3 seeds of one and 2 of other"),
        ([[1.0, 2.0], [1.0]], [[1.0, 2.0], [1.0, 2.0]], r"with \[1, 2\] and \[2\] items\. Correct the measure"),
        ([[1.0]], [[2.0]], r"compared over at least 2 seeds\. `asked` has 1\. Add seeds to the study\."),
    ],
)
def test_what_cannot_be_compared_is_refused(of, against, message):
    with pytest.raises(ValueError, match=message):
        decided(comparison(), of, against)
