"""Intervals over runs and images: values by hand, and how often they hold the truth."""

import numpy as np
import pytest
from scipy import stats

from kdnb.evaluation import crossed


def test_one_run_gives_the_interval_of_students_t():
    values = np.random.default_rng(0).normal(size=40)
    found = crossed.difference(values[:, None])
    low, high = stats.t.interval(0.95, 39, values.mean(), stats.sem(values))
    assert [found.value, found.low, found.high] == pytest.approx([values.mean(), low, high])
    assert found.p_value == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert (found.groups, found.runs) == (40, 1)


def test_the_variance_is_that_of_the_mean_squares_by_hand():
    table = np.array([[3.0, 1.0], [0.0, 2.0], [5.0, 7.0]])
    rows, columns = table.mean(1) - 3, table.mean(0) - 3
    of_groups, of_runs = 2 * (rows**2).sum() / 2, 3 * (columns**2).sum() / 1
    of_rest = ((table - 3 - rows[:, None] - columns) ** 2).sum() / 2
    found = crossed.difference(table)
    # the runs differ by less than the rest: the mean square of the groups stays alone
    assert of_runs < of_rest
    half = stats.t.ppf(0.975, 2) * np.sqrt(of_groups / 6)
    assert found.high - found.value == pytest.approx(half) and found.value == 3


def test_images_of_a_group_are_drawn_together():
    values = np.random.default_rng(1).normal(size=(30, 3))
    copies, groups = np.repeat(values, 4, axis=0), np.repeat(np.arange(30), 4)
    assert crossed.difference(copies, groups) == crossed.difference(values)
    alone = crossed.difference(copies)
    grouped = crossed.difference(copies, groups)
    assert grouped.high - grouped.low > 1.5 * (alone.high - alone.low)


def test_a_group_counts_by_its_images():
    values, groups = np.array([[1.0], [1.0], [1.0], [-1.0]]), np.array([0, 0, 0, 1])
    assert crossed.difference(values, groups).value == pytest.approx(0.5)


def test_equal_runs_have_an_empty_interval_and_one_group_has_none():
    found = crossed.difference(np.zeros((5, 3)))
    assert (found.low, found.high, found.p_value) == (0, 0, 1)
    with pytest.raises(ValueError, match="two groups"):
        crossed.difference(np.ones((3, 2)), np.zeros(3, int))


def test_weights_make_accuracy_balanced_accuracy():
    labels, right = np.array([0, 0, 0, 1]), np.array([1.0, 1.0, 0.0, 0.0])
    assert (right * crossed.balanced(labels)).mean() == pytest.approx((2 / 3 + 0) / 2)


@pytest.mark.parametrize("seed_effect", [0.0, 0.005, 0.01, 0.02])
def test_with_five_seeds_the_interval_holds_the_truth_as_often_as_it_says(seed_effect):
    """Two students of equal quality: right or wrong by image and run, runs better and worse."""
    rng, held, repeats = np.random.default_rng(7), 0, 400
    for _ in range(repeats):
        hard = rng.normal(size=(400, 1))  # images are easy or hard for both
        right = [
            (hard + rng.normal(size=(400, 5)) + 4 * seed_effect * rng.normal(size=5)) < 1
            for _ in range(2)
        ]
        found = crossed.difference(right[0].astype(float) - right[1])
        held += found.low <= 0 <= found.high
    assert 0.94 <= held / repeats <= 0.995
