"""What k samples a problem are worth: to the lucky (pass@k), and to one who ranks (best of k)."""

import numpy as np
from numpy.typing import NDArray

from selftrain.stats._arguments import (
    BLOCK,
    Counts,
    Ks,
    Table,
    check_enough,
    check_no_nan,
    counts,
    list_ks,
    shaped,
    table,
)


def pass_at_k(num_correct: Counts, num_samples: Counts | int, k: Ks) -> np.ndarray:
    r"""Return the probability that k of a problem's samples hold a correct one.

    .. math:: \text{pass@}k = 1 - \binom{n-c}{k} \Big/ \binom{n}{k},

    the unbiased estimate from n samples of which c are correct (Chen et al. 2021, equation 1):
    the mean over all subsets of k. Summed as the chance that the i-th sample drawn is the first
    correct one, so that small values are as exact as large ones.

    Args:
        num_correct: Correct samples c, [problems].
        num_samples: Samples n, [problems], or one number for all.
        k: Samples in a subset; a sequence gives a column for each.

    Returns:
        [problems], or [problems, ks]. All k up to 1000 for 1000 problems take less than a
        second.

    Raises:
        TypeError: If a count or k is no integer.
        ValueError: If a problem has fewer than k samples, or none, or more correct ones than
            samples.

    Example:
        >>> pass_at_k([4, 0], 10, [2, 4]).round(6)
        array([[0.666667, 0.928571],
               [0.      , 0.      ]])
    """
    ks = list_ks(k)
    correct = counts("num_correct", num_correct)
    given = np.asarray(num_samples)
    samples = counts(
        "num_samples", np.broadcast_to(given, correct.shape) if given.ndim == 0 else given
    )
    if len(samples) != len(correct):
        raise ValueError(
            f"num_samples must be one number or one per problem ({len(correct)}), got "
            f"{len(samples)}."
        )
    check_enough(ks, samples)
    if (correct > samples).any():
        p = int((correct > samples).argmax())
        raise ValueError(
            f"problem {p} has {correct[p]} correct of {samples[p]} samples; num_correct must not "
            "exceed num_samples."
        )
    result = np.empty((len(correct), len(ks)))
    step = max(1, BLOCK // int(ks.max()))
    for start in range(0, len(correct), step):
        rows = slice(start, start + step)
        result[rows] = _passes(correct[rows, None], samples[rows, None], int(ks.max()))[:, ks - 1]
    return shaped(result, k)


def _passes(c: NDArray[np.int64], n: NDArray[np.int64], most: int) -> NDArray[np.float64]:
    """Return pass@1 to pass@most, [problems, most], of columns of counts."""
    drawn = np.arange(most)
    left = n - drawn
    failed = np.cumprod(np.maximum(left - c, 0) / left, axis=1)
    first = c / left
    first[:, 1:] *= failed[:, :-1]
    return np.where(c > left - 1, 1.0, np.minimum(np.cumsum(first, axis=1), 1.0))


def best_of_k(scores: Table, correct: Table, k: Ks, *, mask: Table | None = None) -> np.ndarray:
    r"""Return how correct the best-scored of k samples is, on average over all subsets of k.

    With the samples in falling order of score, equal scores sharing their places evenly,

    .. math:: \sum_{i=0}^{N-k} \binom{N-i-1}{k-1} \bar\alpha_i \Big/ \binom{N}{k},

    where :math:`\bar\alpha_i` is the mean correctness of the samples that tie with the i-th. This
    is Best-of-k or verifier@k of V-STaR (Hosseini et al. 2024); their sum ends one term too early
    in print. The scores may be any verifier's, an outcome reward model's as well; only their order
    counts. Infinite scores are allowed.

    Args:
        scores: What ranks the samples, [problems, samples].
        correct: Correctness, truth values or numbers in [0, 1], of the same shape.
        k: Samples in a subset; a sequence gives a column for each.
        mask: Which samples count, of the same shape; for problems with different numbers of
            samples. What it leaves out may be NaN.

    Returns:
        [problems], or [problems, ks]. All k up to 1000 for 1000 problems with 1000 samples take
        less than a second; problems with different numbers of samples cost one more table
        of weights [samples, ks] for every number that occurs.

    Raises:
        TypeError: If k is no integer.
        ValueError: If a score is NaN, correctness lies outside [0, 1], the shapes differ, or a
            problem has fewer than k samples.

    Example:
        >>> best_of_k([[4.0, 3.0, 2.0, 1.0]], [[1, 0, 1, 1]], [1, 2, 4]).round(4)
        array([[0.75  , 0.6667, 1.    ]])
        >>> best_of_k([[0.5, 0.5]], [[1, 0]], 2)  # the verifier cannot tell them apart
        array([0.5])
    """
    ks = list_ks(k)
    score = table("scores", scores)
    right = table("correct", correct, shape=score.shape)
    if mask is None:
        keep = np.ones(score.shape, dtype=bool)
    else:
        keep = table("mask", mask, shape=score.shape) != 0
    score, right = np.where(keep, score, -np.inf), np.where(keep, right, 0.0)
    check_no_nan("scores", score, "a sample without a score cannot be ranked; score it or mask it.")
    check_no_nan("correct", right, "leave out by mask what could not be judged.")
    if right.min() < 0 or right.max() > 1:
        raise ValueError(f"correct must lie in [0, 1], got {right.min()} to {right.max()}.")
    num_samples = keep.sum(1)
    check_enough(ks, num_samples)
    order = np.argsort(-score, axis=1) if mask is None else np.lexsort((-score, ~keep), axis=1)
    score, right = (np.take_along_axis(a, order, axis=1) for a in (score, right))
    result = np.empty((len(score), len(ks)))
    for number in np.unique(num_samples):
        rows = num_samples == number
        shares = _shared(score[rows, :number], right[rows, :number])
        step = max(1, BLOCK // int(number))
        for start in range(0, len(ks), step):
            block = slice(start, start + step)
            result[rows, block] = shares @ _best_place(int(number), ks[block])
    return shaped(np.minimum(result, 1.0), k)


def _shared(score: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Replace correctness, in order of score, by its mean over the samples of equal score."""
    new = np.ones(score.shape, dtype=bool)
    new[:, 1:] = score[:, 1:] != score[:, :-1]
    group = np.cumsum(new.ravel()) - 1
    mean = np.bincount(group, weights=right.ravel()) / np.bincount(group)
    return mean[group].reshape(score.shape)


def _best_place(num_samples: int, ks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the probability that the best of k samples is the i-th of all, [samples, ks]."""
    place = np.arange(num_samples - 1)[:, None]
    # Ratios of neighbours, all in [0, 1]: binomials themselves overflow beyond C(1030, 515).
    falls = np.maximum(num_samples - place - ks, 0) / (num_samples - place - 1)
    first = np.broadcast_to(ks / num_samples, (1, len(ks)))
    return np.cumprod(np.concatenate([first, falls]), axis=0, dtype=np.float64)
