"""Checks that the metrics share: what k may be, and where a number is missing."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 20
"""Numbers held at once by a computation that goes through its input in blocks."""

# Plain types: how numpy spells its own ones in a signature changes between its versions.
Ks = int | Sequence[int] | np.ndarray
"""One number of samples, or several."""

Counts = Sequence[int] | np.ndarray
"""Counts, one a problem."""

Vector = Sequence[float] | np.ndarray
"""Numbers or truth values, one a problem."""

Table = Sequence[Sequence[float]] | np.ndarray
"""Numbers or truth values, [problems, samples]."""


def list_ks(k: Ks) -> NDArray[np.int64]:
    """Return the values of ``k`` as an array.

    Raises:
        TypeError: If one is no integer.
        ValueError: If there is none, or one is below 1.
    """
    if isinstance(k, Sequence) and not all(is_int(value) for value in k):
        raise TypeError(f"k must be integers, got {k!r}.")
    ks = np.atleast_1d(np.asarray(k))
    if ks.size == 0:
        raise ValueError("k is empty; at least one number of samples is needed.")
    if ks.dtype.kind not in "iu" or ks.ndim > 1:
        raise TypeError(f"k must be an integer or a sequence of integers, got {k!r}.")
    if ks.min() < 1:
        raise ValueError(f"k must satisfy 1 <= k, got {ks.min()}.")
    return ks.astype(np.int64)


def is_int(value: object) -> bool:
    """Return whether ``value`` is an integer, not a bool."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def shaped(values: NDArray[np.float64], k: Ks) -> NDArray[np.float64]:
    """Return ``values`` [problems, ks] as [problems] where ``k`` was one number."""
    return values[:, 0] if np.ndim(k) == 0 else values


def check_enough(ks: NDArray[np.int64], num_samples: NDArray[np.int64]) -> None:
    """Raise ``ValueError`` if a problem has no sample, or fewer than the largest k."""
    p = int(num_samples.argmin())
    if num_samples[p] < 1:
        raise ValueError(
            f"problem {p} has no sample (num_samples {num_samples[p]}); leave it out, and report "
            "how many were left out."
        )
    if ks.max() > num_samples[p]:
        raise ValueError(
            f"k = {ks.max()} exceeds the {num_samples[p]} samples of problem {p}; draw more "
            "samples, or ask for a smaller k. A clamped k would estimate something else."
        )


def counts(name: str, values: Counts, *, num: int | None = None) -> NDArray[np.int64]:
    """Return ``values`` as non-negative integers, one a problem.

    Raises:
        TypeError: If they are no integers.
        ValueError: If there is none, one is negative, or there are not ``num``.
    """
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must have shape [problems], not empty, got {array.shape}.")
    if num is not None and len(array) != num:
        raise ValueError(f"{name} must have one value per problem ({num}), got {len(array)}.")
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got {array.dtype}.")
    if array.min() < 0:
        p = int(array.argmin())
        raise ValueError(f"{name} of problem {p} must not be negative, got {array[p]}.")
    return array.astype(np.int64)


def table(name: str, values: Table, *, shape: tuple[int, ...] | None = None) -> NDArray[np.float64]:
    """Return ``values`` as floats of shape [problems, samples].

    Raises:
        ValueError: If they have another shape, or ``shape`` is given and differs.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(
            f"{name} must have shape [problems, samples], not empty, got {array.shape}."
        )
    if shape is not None and array.shape != shape:
        raise ValueError(f"{name} must have the shape of scores {shape}, got {array.shape}.")
    return array


def check_no_nan(name: str, values: NDArray[np.float64], remedy: str) -> None:
    """Raise ``ValueError`` with the place of the first NaN, if there is one."""
    missing = np.isnan(values)
    if missing.any():
        place = tuple(int(i) for i in np.argwhere(missing)[0])
        where = f"problem {place[0]}" + (f", column {place[1]}" if len(place) > 1 else "")
        raise ValueError(f"{name} is NaN at {where}; {remedy}")
