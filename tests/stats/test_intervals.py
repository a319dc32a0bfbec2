"""Bootstrap intervals: normal theory, coverage, exact resamples of two problems."""

import tracemalloc

import numpy as np
import pytest
from scipy import stats as scipy_stats

from selftrain import stats


def test_the_interval_is_that_of_normal_theory_for_many_problems():
    values = np.random.default_rng(0).normal(size=2000)
    interval = stats.bootstrap_interval(values)
    half = scipy_stats.norm.ppf(0.975) * values.std() / np.sqrt(2000)
    np.testing.assert_allclose(interval.mean, values.mean(), rtol=1e-12)
    np.testing.assert_allclose(interval.high - interval.mean, half, rtol=0.05)
    np.testing.assert_allclose(interval.mean - interval.low, half, rtol=0.05)


def test_the_interval_agrees_with_scipy():
    values = np.random.default_rng(1).random(80) < 0.2
    ours = stats.bootstrap_interval(values, confidence=0.9, num_resamples=20_000)
    theirs = scipy_stats.bootstrap(
        (values.astype(float),),
        np.mean,
        n_resamples=20_000,
        confidence_level=0.9,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    np.testing.assert_allclose([ours.low, ours.high], theirs, atol=1 / 80 + 1e-9)


def test_resamples_of_two_problems_have_known_quantiles():
    # The mean of (0, 1) resampled is 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4.
    narrow = stats.bootstrap_interval([0.0, 1.0], confidence=0.4)
    wide = stats.bootstrap_interval([0.0, 1.0], confidence=0.6)
    assert (narrow.low, narrow.mean, narrow.high) == (0.5, 0.5, 0.5)
    assert (wide.low, wide.mean, wide.high) == (0.0, 0.5, 1.0)


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    values = rng.random((100, 400))  # 400 experiments as columns; their mean is 1/2
    interval = stats.bootstrap_interval(values, num_resamples=1000)
    covered = (interval.low <= 0.5) & (interval.high >= 0.5)
    assert 0.91 < covered.mean() < 0.98


def test_a_paired_difference_is_sharper_than_two_intervals():
    rng = np.random.default_rng(0)
    hard = rng.random(200)
    one, other = hard + 0.02 + 0.01 * rng.normal(size=200), hard + 0.01 * rng.normal(size=200)
    apart = [stats.bootstrap_interval(values) for values in (one, other)]
    difference = stats.bootstrap_interval(one - other)
    assert apart[0].low < apart[1].high
    assert difference.low > 0


def test_columns_are_resampled_alike_and_as_if_alone():
    values = np.random.default_rng(0).random((30, 900))  # more than one block of columns
    interval = stats.bootstrap_interval(values)
    assert interval.low.shape == (900,)
    for column in (0, 450, 899):
        alone = stats.bootstrap_interval(values[:, column])
        got = [interval.mean[column], interval.low[column], interval.high[column]]
        np.testing.assert_allclose(got, [alone.mean, alone.low, alone.high], rtol=1e-12)


def test_numbers_come_back_as_numbers_and_the_seed_decides():
    values = np.random.default_rng(0).random(50)
    interval = stats.bootstrap_interval(values)
    assert all(isinstance(end, float) for end in (interval.mean, interval.low, interval.high))
    assert interval == stats.bootstrap_interval(values)
    assert interval != stats.bootstrap_interval(values, seed=1)


def test_equal_values_have_an_interval_of_no_width():
    interval = stats.bootstrap_interval([0.1] * 7)
    assert interval.low == interval.high == 0.1


def test_memory_does_not_grow_with_the_columns():
    values = np.random.default_rng(0).random((500, 2000))
    tracemalloc.start()
    stats.bootstrap_interval(values, num_resamples=2000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6


@pytest.mark.parametrize(
    ("values", "kwargs", "message"),
    [
        ([0.5], {}, "values has one problem"),
        ([], {}, r"values must have shape \[problems\] or \[problems, columns\], got \(0,\)"),
        ([0.5, np.nan], {}, "values is NaN at problem 1; leave out"),
        ([[0.5, 1], [1, np.nan]], {}, "values is NaN at problem 1, column 1"),
        ([0.5, np.inf], {}, "values must be finite"),
        ([0.5, 1], {"confidence": 1.0}, "confidence"),
        ([0.5, 1], {"num_resamples": 0}, "num_resamples"),
    ],
)
def test_values_without_an_interval_are_refused(values, kwargs, message):
    with pytest.raises(ValueError, match=message):
        stats.bootstrap_interval(values, **kwargs)
