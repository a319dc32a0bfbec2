"""Confidence intervals over problems."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from selftrain._core.checks import check_int, check_range
from selftrain.stats._arguments import BLOCK, Table, Vector, check_no_nan


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the interval around it: numbers, or arrays with one entry a column."""

    mean: float | np.ndarray
    """The mean over problems."""
    low: float | np.ndarray
    """Lower end."""
    high: float | np.ndarray
    """Upper end."""


def bootstrap_interval(
    values: Vector | Table, *, confidence: float = 0.95, num_resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Return the mean over problems with its percentile bootstrap interval.

    Problems are drawn with replacement, never samples: the samples of one problem depend on each
    other, and their number does not make up for few problems. All columns see the same resamples.
    To compare two systems on the same problems give the differences ``a - b``: the interval of a
    paired difference excludes 0 far sooner than two intervals part. With few problems, or means
    near 0 or 1, a percentile interval is too narrow; where all values are equal its width is 0.

    Args:
        values: One number a problem, [problems], or several, [problems, columns].
        confidence: Probability between the ends, in (0, 1).
        num_resamples: How often to resample. The memory needed grows with it and with nothing
            else: columns are taken in blocks.
        seed: Seed of the resampling.

    Returns:
        Numbers for [problems], arrays [columns] for [problems, columns].

    Raises:
        ValueError: If there are fewer than two problems, a value is NaN or infinite, or a setting
            is out of range.

    Example:
        >>> interval = bootstrap_interval([0.0, 1.0] * 50)
        >>> interval.mean, 0.39 < interval.low < 0.42, 0.58 < interval.high < 0.61
        (0.5, True, True)
    """
    check_range("confidence", confidence, low=0.0, high=1.0, low_open=True, high_open=True)
    check_int("num_resamples", num_resamples, low=1)
    table = np.asarray(values, dtype=np.float64)
    if table.ndim not in (1, 2) or 0 in table.shape:
        raise ValueError(
            f"values must have shape [problems] or [problems, columns], got {table.shape}."
        )
    if len(table) < 2:
        raise ValueError("values has one problem; an interval over problems needs two or more.")
    check_no_nan("values", table, "leave out problems without a value, and report how many.")
    if not np.isfinite(table).all():
        raise ValueError("values must be finite; an infinite value has no mean.")
    columns = table.reshape(len(table), -1)
    ends = np.empty((2, columns.shape[1]))
    tail = (1 - confidence) / 2
    step = max(1, 4 * BLOCK // num_resamples)
    for start in range(0, columns.shape[1], step):
        block = slice(start, start + step)
        means = [w @ columns[:, block] for w in _resamples(len(table), num_resamples, seed)]
        ends[:, block] = np.quantile(np.concatenate(means), [tail, 1 - tail], axis=0)
    # Weights that sum to one only up to rounding must not push an end past a constant's value.
    lowest, highest = columns.min(0), columns.max(0)
    low, high = (np.clip(end, lowest, highest) for end in ends)
    if table.ndim == 1:
        return Interval(float(table.mean()), float(low[0]), float(high[0]))
    return Interval(table.mean(0), low, high)


def _resamples(num: int, num_resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Yield weights of problems, [resamples, problems], a block of resamples at a time."""
    rng = np.random.default_rng(seed)
    step = max(1, BLOCK // num)
    for start in range(0, num_resamples, step):
        rows = min(step, num_resamples - start)
        drawn = rng.integers(num, size=(rows, num)) + num * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * num).reshape(rows, num) / num
