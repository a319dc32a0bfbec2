"""Majority votes among k samples, exactly, over all subsets of k at once."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from selftrain.stats._arguments import Ks, check_enough, counts, is_int, list_ks, shaped
from selftrain.stats._subsets import shares_of_wins

# Up to here no product of binomial probabilities at 1/2 leaves the range of float64.
_UNTILTED = 1000


def majority_at_k(
    answers: Sequence[Sequence[str | None]], correct: Sequence[str], k: Ks
) -> np.ndarray:
    """Return how often the correct answer wins the vote among k samples, over all subsets of k.

    The most frequent answer of a subset wins; where several are equally frequent each wins an
    equal share. An answer of None (nothing could be read) fills a place in the subset and never
    wins; a subset of nothing else has no winner. Maj@k or maj1@k of self-consistency (Wang et al.
    2022), without drawing subsets by chance.

    Answers count as the same if their strings are equal: bring them to one form first, or unite
    those that mean the same with :func:`unite_answers`.

    Args:
        answers: For each problem the final answers of its samples.
        correct: For each problem its correct answer, in the same form.
        k: Samples in a subset; a sequence gives a column for each.

    Returns:
        [problems], or [problems, ks]. For the cost see :func:`majority_at_k_counts`.

    Raises:
        TypeError: If k or a correct answer is of another kind.
        ValueError: If the numbers of problems differ, there is none, or a problem has fewer than k
            samples.

    Example:
        >>> majority_at_k([["3", "3", "3", "4", "4", None]], ["3"], [1, 3, 6]).round(4)
        array([[0.5 , 0.65, 1.  ]])
    """
    if len(correct) != len(answers):
        raise ValueError(f"correct must have one per problem ({len(answers)}), got {len(correct)}.")
    sizes, places, empty = [], [], []
    for p, (given, right) in enumerate(zip(answers, correct, strict=True)):
        if not isinstance(right, str):
            raise TypeError(
                f"correct[{p}] must be text, got {right!r}; a problem without a correct answer "
                "has no majority metric."
            )
        classes = Counter(given)
        empty.append(classes.pop(None, 0))
        places.append(list(classes).index(right) if right in classes else None)
        sizes.append(list(classes.values()))
    return majority_at_k_counts(sizes, places, empty, k)


def majority_at_k_counts(
    class_counts: Sequence[Sequence[int]],
    correct_index: Sequence[int | None],
    num_unparsable: Sequence[int],
    k: Ks,
) -> np.ndarray:
    r"""Return :func:`majority_at_k` from the sizes of the classes of equal answers.

    With :math:`n_c` samples of the correct class, the subsets in which it wins with j votes are
    counted, ties shared, by

    .. math:: \binom{n_c}{j}\,[x^{k-j}] \int_0^1 \prod_{a \ne c}
        \Big( \sum_{i<j} \binom{n_a}{i} x^i + z \binom{n_a}{j} x^j \Big)\,
        (1+x)^{n_\varnothing}\,dz,

    because :math:`\int z^d dz = 1/(1+d)`; Gauss-Legendre quadrature of enough nodes is exact
    there. Every term is positive and scaled to a probability, so the result has the relative
    accuracy of some n roundings, for any n.

    Cost of one problem with n samples, all k at once: at most about :math:`n^3/4 \cdot \ln n`
    multiplications, far less where few classes are as large as the correct one. 1000 problems of
    128 samples in 50 classes take less than a second. Smaller k cost less.

    Args:
        class_counts: For each problem the numbers of samples that gave each answer.
        correct_index: For each problem which of them is correct; None if it was never given.
        num_unparsable: For each problem the number of samples without an answer.
        k: Samples in a subset; a sequence gives a column for each.

    Returns:
        [problems], or [problems, ks].

    Raises:
        TypeError: If a count or k is no integer.
        ValueError: If a count is negative, an index has no class, the numbers of problems differ,
            or a problem has fewer than k samples.

    Example:
        >>> majority_at_k_counts([[1, 1]], [0], [0], [1, 2])  # always a tie
        array([[0.5, 0.5]])
    """
    ks = list_ks(k)
    empty = counts("num_unparsable", num_unparsable, num=len(class_counts))
    right, others = _split(class_counts, correct_index)
    num_samples = right + others.sum(1) + empty
    check_enough(ks, num_samples)
    result = np.zeros((len(right), len(ks)))
    for rows, columns, tilt in _groups(num_samples, ks):
        rows = rows[right[rows] > 0]
        if len(rows):
            shares = shares_of_wins(right[rows], others[rows], empty[rows], ks[columns], tilt)
            result[np.ix_(rows, columns)] = shares
    return shaped(np.minimum(result, 1.0), k)


def _split(
    class_counts: Sequence[Sequence[int]], correct_index: Sequence[int | None]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the sizes of the correct classes and, padded with 0, the others in falling order."""
    if len(correct_index) != len(class_counts):
        raise ValueError(
            f"correct_index must have one entry per problem ({len(class_counts)}), got "
            f"{len(correct_index)}."
        )
    right = np.zeros(len(class_counts), dtype=np.int64)
    others = np.zeros((len(right), max(map(len, class_counts), default=0)), dtype=np.int64)
    for p, (sizes, index) in enumerate(zip(class_counts, correct_index, strict=True)):
        if not len(sizes):
            rest: list[int] = []
        else:
            rest = counts(f"class_counts[{p}]", sizes).tolist()
        if index is not None:
            if not is_int(index) or not 0 <= index < len(rest):
                raise ValueError(
                    f"correct_index of problem {p} must be None or from 0 to {len(rest) - 1}, "
                    f"got {index!r}."
                )
            right[p] = rest.pop(index)
        others[p, : len(rest)] = sorted(rest, reverse=True)
    return right, others


def _groups(
    num_samples: NDArray[np.int64], ks: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp], float]]:
    """Yield problems and places in ``ks`` that one weight of x serves, and that weight.

    The polynomials hold probabilities of Bin(n, tilt), which vanish far from k = tilt * n. On the
    scale of arcsin sqrt(k / n) their spread is the same everywhere.
    """
    small = np.flatnonzero(num_samples <= _UNTILTED)
    if len(small):
        yield small, np.arange(len(ks)), 0.5
    for n in np.unique(num_samples[num_samples > _UNTILTED]):
        number = math.ceil(math.sqrt(n / 450))
        width = math.pi / 2 / number
        cell = np.minimum(np.arcsin(np.sqrt(ks / n)) / width, number - 1).astype(np.int64)
        for i in np.unique(cell):
            tilt = math.sin((i + 0.5) * width) ** 2
            yield np.flatnonzero(num_samples == n), np.flatnonzero(cell == i), tilt


def unite_answers(
    answers: Sequence[str | None], equal: Callable[[str, str], bool]
) -> list[str | None]:
    """Replace answers that mean the same by one of them, for votes among them.

    Equality of mathematical expressions as checked by a program is neither symmetric nor
    transitive. Here a chain of equal answers becomes one class, whichever way round they were
    found equal.

    Args:
        answers: The final answers of one problem's samples; None where there is none. Let the
            correct answer be the first, to know its class afterwards.
        equal: Whether two different strings mean the same. Called for no pair already united.

    Returns:
        One answer for each, the first of its class to occur; None stays None.

    Example:
        >>> unite_answers(["1/2", "0.5", None, "2"], lambda a, b: {a, b} == {"1/2", "0.5"})
        ['1/2', '1/2', None, '2']
    """
    first: dict[str, str] = {}
    for answer in answers:
        if answer is None or answer in first:
            continue
        first[answer] = answer
        for other in [a for a in first if a != answer]:
            mine, theirs = first[answer], first[other]
            if mine != theirs and (equal(other, answer) or equal(answer, other)):
                kept, gone = (theirs, mine) if _before(first, theirs, mine) else (mine, theirs)
                first = {a: kept if root == gone else root for a, root in first.items()}
    return [None if answer is None else first[answer] for answer in answers]


def _before(order: dict[str, str], one: str, other: str) -> bool:
    return next(key for key in order if key in (one, other)) == one
