"""Statistics of learning runs, against numbers worked out by hand."""

import numpy as np
import pytest

from sim.benchmarks.learning_statistics import (
    interquartile_mean,
    interquartile_mean_ratio,
    probability_of_improvement,
    standard_error,
)


def strata(*tasks):
    return [np.array(scores, dtype=np.float64) for scores in tasks]


def test_the_interquartile_mean_is_that_of_the_middle_half_of_all_scores_together():
    # sorted: 0 1 | 2 3 4 5 | 6 100
    assert interquartile_mean(strata([0, 5, 2, 100], [4, 1, 6, 3])).value == pytest.approx(3.5)
    # of tasks with different numbers of runs, too: 1 | 2 3 | 9
    assert interquartile_mean(strata([2], [9, 1, 3])).value == pytest.approx(2.5)


def test_three_runs_are_too_few_to_leave_any_out():
    assert interquartile_mean(strata([1, 2, 9])).value == pytest.approx(4.0)


def test_runs_are_drawn_within_their_tasks():
    """With no spread within tasks there is nothing to draw; an interval over all runs together would be wide."""
    estimate = interquartile_mean(strata([0.1, 0.1, 0.1], [0.9, 0.9, 0.9]))
    assert estimate.low == estimate.value == estimate.high == pytest.approx(0.5)


def test_the_interval_is_that_of_the_statistic():
    """The trimmed mean of n normal scores has a standard error of 1.09 / sqrt(n) (from its asymptotic variance)."""
    scores = np.random.default_rng(0).normal(size=400)
    estimate = interquartile_mean([scores])
    assert estimate.low < estimate.value < estimate.high
    # the scores' own spread and the bootstrap's 10,000 repetitions leave about 6% of uncertainty in the width
    assert (estimate.high - estimate.low) / 2 == pytest.approx(1.96 * 1.09 / np.sqrt(400), rel=0.2)


def test_a_single_run_on_a_task_gives_no_interval():
    estimate = interquartile_mean(strata([1.0, 2.0], [3.0]))
    assert estimate.to_dict() == {"value": pytest.approx(2.0), "low": None, "high": None}


def test_the_probability_of_improvement_counts_wins_and_halves_ties_within_tasks():
    # first task: 3 beats 1 and 2, 2 beats 1 and ties with 2: 3.5 of 4; second task: never
    estimate = probability_of_improvement(strata([3, 2], [0, 0]), strata([1, 2], [5, 6]))
    assert estimate.value == pytest.approx((3.5 / 4 + 0) / 2)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 0.5


def test_an_algorithm_improves_on_itself_with_probability_one_half():
    same = strata([0.1, 0.5, 0.7], [0.2, 0.3, 0.4])
    assert probability_of_improvement(same, same).value == 0.5
    ratio = interquartile_mean_ratio(same, same)
    assert ratio.value == 1.0
    assert ratio.low < 1 < ratio.high


def test_the_ratio_is_that_of_the_interquartile_means():
    # 2.5 of 1 | 2 3 | 4 and 1.0 of 0 | 1 1 | 7
    assert interquartile_mean_ratio(strata([1, 2], [3, 4]), strata([0, 1], [1, 7])).value == pytest.approx(2.5)


def test_a_ratio_to_nothing_is_no_number():
    ratio = interquartile_mean_ratio(strata([1, 2]), strata([0, 0]))
    assert ratio.to_dict() == {"value": None, "low": None, "high": None}


def test_no_runs_are_refused():
    for tasks in ([], strata([])):
        with pytest.raises(ValueError, match="at least one"):
            interquartile_mean(tasks)


def test_the_standard_error_is_that_of_the_mean():
    assert standard_error([1.0, 3.0]) == pytest.approx(1.0)
    assert np.isnan(standard_error([1.0]))
