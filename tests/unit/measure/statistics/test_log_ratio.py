"""The t distribution, errors of ratios, and what of them repeats cannot lower."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from draftrank.measure.statistics.log_ratio import (
    LogRatio,
    difference,
    jackknife,
    mean_of,
    spread_of_prompts,
    t_cdf,
    t_quantile,
)

freedoms = st.floats(0.5, 1e5)


@given(st.floats(-200, 200), freedoms)
def test_the_t_distribution_is_that_of_scipy(t, freedom):
    assert t_cdf(t, freedom) == pytest.approx(scipy.stats.t.cdf(t, freedom), abs=1e-9, rel=1e-6)


@given(st.floats(0.0005, 0.9995), freedoms)
def test_a_quantile_is_where_the_distribution_has_its_probability(probability, freedom):
    assert t_cdf(t_quantile(probability, freedom), freedom) == pytest.approx(probability, abs=1e-8)


def test_two_prompts_need_more_than_twelve_standard_errors():
    assert t_quantile(0.975, 1) == pytest.approx(12.706, abs=1e-3)
    assert t_quantile(0.975, 1e6) == pytest.approx(1.960, abs=1e-3)
    assert t_cdf(math.inf, 3) == 1.0


def test_the_jackknife_of_equal_prompts_is_the_error_of_a_mean():
    # With equal tokens and baseline seconds the log ratio of sums is −log of a mean of seconds.
    seconds = np.array([0.999, 1.001, 1.0005])
    ones = np.ones(3)
    found = jackknife(np.column_stack([ones, ones, seconds, ones]))
    assert found.value == pytest.approx(-math.log(seconds.mean()))
    assert found.standard_error == pytest.approx(seconds.std(ddof=1) / math.sqrt(3), rel=0.01)
    assert found.freedom == 2


def test_prompts_in_which_nothing_was_decoded_do_not_count():
    found = jackknife(np.array([[1.0, 9, 1, 9], [1, 9, 2, 9], [0, 0, 0, 0]]))
    assert found.freedom == 1
    assert jackknife(np.array([[1.0, 9, 1, 9], [0, 0, 0, 0]])) is None


def test_a_sum_over_tasks_has_the_freedom_of_the_widest():
    sure, vague = LogRatio(0.1, 1e-9, 20), LogRatio(0.3, 0.2, 2)
    mean = mean_of([sure, vague])
    assert mean.value == pytest.approx(0.2)
    assert mean.standard_error == pytest.approx(0.1)
    assert mean.freedom == pytest.approx(2)
    assert mean_of([vague] * 4).freedom == pytest.approx(8)


@given(st.floats(-3, 3), st.floats(0, 2), st.floats(1, 50))
def test_the_probability_agrees_with_the_interval(value, error, freedom):
    ratio = LogRatio(value, error, freedom)
    mirrored = LogRatio(-value, error, freedom)
    assert ratio.above_one + mirrored.above_one == pytest.approx(1.0)
    low, _ = ratio.ends()
    if low > 1 + 1e-6:
        assert ratio.above_one > 0.975
    if low < 1 - 1e-6 and value > 0:
        assert ratio.above_one < 0.975 + 1e-6


def test_a_difference_adds_both_errors():
    found = difference(LogRatio(0.5, 0.03, 5), LogRatio(0.1, 0.04, 5))
    assert (found.value, found.standard_error) == (pytest.approx(0.4), pytest.approx(0.05))


def logs_of(spread, noise, prompts=6, repeats=5, tasks=4, seed=0):
    rng = np.random.default_rng(seed)
    return [
        (
            spread * rng.standard_normal((prompts, 1)) + noise * rng.standard_normal((prompts, repeats))
        ).tolist()
        for _ in range(tasks)
    ]


def test_what_prompts_leave_is_found_under_noise_and_noise_is_not_taken_for_it():
    error = spread_of_prompts(logs_of(0.3, 0.02)).standard_error
    assert error == pytest.approx(0.3 / math.sqrt(24), rel=0.35)
    for seed in range(10):
        assert spread_of_prompts(logs_of(0.0, 0.2, seed=seed)).standard_error < 0.01


def test_what_prompts_leave_is_unknown_without_repeats_or_with_a_single_prompt():
    assert spread_of_prompts(logs_of(0.3, 0.02, repeats=1)) is None
    assert spread_of_prompts(logs_of(0.3, 0.02, prompts=1)) is None
    assert spread_of_prompts([]) is None
