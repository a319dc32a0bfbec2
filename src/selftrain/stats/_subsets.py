"""The polynomials that count the subsets in which one class has the most members.

Letters: P problems, C classes, Q nodes of a quadrature, M degrees of a polynomial.
A polynomial stands for some samples; its coefficient at m is the probability, under Bin(1, tilt)
for each sample, that m of them are drawn and what it asks for holds.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# Numbers in the working array of one block of problems: what a core's cache holds.
_BLOCK = 1 << 16

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def shares_of_wins(right: Ints, others: Ints, empty: Ints, ks: Ints, tilt: float) -> Floats:
    """Return the share of all k-subsets in which the correct class wins, [problems, ks].

    Args:
        right: Sizes of the correct classes, [P], positive.
        others: Sizes of the other classes in falling order, padded with 0, [P, C].
        empty: Samples of no class, [P].
        ks: Sizes of the subsets.
        tilt: Probability with which the polynomials draw a sample.
    """
    most = int(ks.max())
    binomials = _Binomials(np.concatenate([right, others.ravel()]), most, tilt)
    wins_PM = np.zeros((len(right), most + 1))
    # From the largest number of votes down: classes smaller than the votes are free to be drawn,
    # and a factor that frees samples serves all the terms gathered so far.
    for votes in range(min(int(right.max()), most), 0, -1):
        _free(wins_PM, votes * (others == votes).sum(1), tilt)
        rows = np.flatnonzero(right >= votes)
        won = binomials.of(right[rows])[:, votes]
        rivals = (others[rows] >= votes).sum(1)
        alone = rows[rivals == 0]
        wins_PM[alone, votes] += won[rivals == 0]
        contested = rows[rivals > 0]
        if len(contested):
            held = _held_down(others[contested], rivals[rivals > 0], votes, most, binomials)
            wins_PM[contested, votes:] += won[rivals > 0, None] * held
    _free(wins_PM, empty, tilt)
    all_samples = _Binomials(right + others.sum(1) + empty, most, tilt)
    return wins_PM[:, ks] / all_samples.of(right + others.sum(1) + empty)[:, ks]


class _Binomials:
    """Probabilities of Bin(size, tilt) from 0 to ``most``, for the sizes that occur."""

    def __init__(self, sizes: Ints, most: int, tilt: float) -> None:
        self._sizes = np.unique(sizes)
        self._rows = np.empty((len(self._sizes), most + 1))
        row, size = np.zeros(most + 1), 0
        row[0] = 1.0
        for i, wanted in enumerate(self._sizes):
            while size < wanted:  # Pascal's rule: sums of positive numbers, exact to rounding
                row[1:] = (1 - tilt) * row[1:] + tilt * row[:-1]
                row[0] *= 1 - tilt
                size += 1
            self._rows[i] = row

    def of(self, sizes: Ints) -> Floats:
        """Return the rows of ``sizes``, which has any shape."""
        return self._rows[np.searchsorted(self._sizes, sizes)]


def _free(polynomials_PM: Floats, numbers: Ints, tilt: float) -> None:
    """Multiply each polynomial, in place, by that of ``numbers`` samples that may be drawn."""
    order = np.argsort(-numbers)[: int((numbers > 0).sum())]
    if not len(order):
        return
    part, number = polynomials_PM[order], numbers[order]
    for i in range(int(number[0])):
        rows = part[: int((number > i).sum())]
        rows[:, 1:] = (1 - tilt) * rows[:, 1:] + tilt * rows[:, :-1]
        rows[:, 0] *= 1 - tilt
    polynomials_PM[order] = part


def _held_down(others: Ints, rivals: Ints, votes: int, most: int, binomials: _Binomials) -> Floats:
    """Return the polynomials of the rivals that get no more than ``votes``, ties weighed.

    Args:
        others: Sizes of classes in falling order, [P, C].
        rivals: How many of them have ``votes`` members or more, [P], positive.
        votes: What the correct class has.
        most: The largest subset.
        binomials: Probabilities of the sizes.

    Returns:
        [P, most - votes + 1].
    """
    degree = most - votes
    result = np.zeros((len(rivals), degree + 1))
    order = np.argsort(-rivals, kind="stable")
    start = 0
    while start < len(order):
        num_rivals = int(rivals[order[start]])
        nodes, weights = _quadrature(num_rivals, votes, most)
        length = min(num_rivals * votes, degree) + 1
        rows = order[start : start + max(1, _BLOCK // (len(nodes) * length))]
        start += len(rows)
        poly = _product(others[rows, :num_rivals], rivals[rows], votes, degree, nodes, binomials)
        result[rows, : poly.shape[2]] = np.einsum("q,pqm->pm", weights, poly)
    if votes == 1:  # every rival drawn is a tie
        result /= 1 + np.arange(degree + 1)
    return result


def _quadrature(num_rivals: int, votes: int, most: int) -> tuple[Floats, Floats]:
    """Return nodes and weights exact for the number of ties that the rivals can reach."""
    if votes == 1:  # the degree in x tells the number of ties
        return np.ones(1), np.ones(1)
    return _legendre(min(num_rivals, most // votes - 1) // 2 + 1)


@lru_cache(maxsize=256)
def _legendre(num: int) -> tuple[Floats, Floats]:
    nodes, weights = np.polynomial.legendre.leggauss(num)
    return (nodes + 1) / 2, weights / 2


def _product(
    sizes: Ints, rivals: Ints, votes: int, degree: int, nodes: Floats, binomials: _Binomials
) -> Floats:
    """Multiply the factors of each problem's rivals at every node, [P, Q, M].

    The problems come in falling order of ``rivals``, so those not yet finished stand first.
    """
    length = min(int(rivals[0]) * votes, degree) + 1
    product_PQM = np.zeros((len(rivals), len(nodes), length))
    product_PQM[:, :, 0] = 1.0
    filled = 1
    for c in range(int(rivals[0])):
        active = int((rivals > c).sum())
        factor_PQM = np.repeat(
            binomials.of(sizes[:active, c])[:, None, : votes + 1], len(nodes), axis=1
        )
        if votes < factor_PQM.shape[2]:
            factor_PQM[:, :, votes] *= nodes
        short, long = sorted(
            (factor_PQM, product_PQM[:active, :, :filled].copy()), key=lambda a: a.shape[2]
        )
        filled = min(filled + votes, length)
        now_PQM = product_PQM[:active, :, :filled]
        now_PQM[:] = 0.0
        for i in range(min(short.shape[2], filled)):
            width = min(long.shape[2], filled - i)
            now_PQM[:, :, i : i + width] += short[:, :, i : i + 1] * long[:, :, :width]
    return product_PQM
