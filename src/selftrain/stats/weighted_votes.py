"""Votes in which a sample counts by its score, among k samples drawn by chance."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from selftrain._core.checks import check_choice, check_int
from selftrain.stats._arguments import Ks, Vector, check_enough, check_no_nan, list_ks, shaped

# Sums of the same weights in another order differ by roundings; that is still a tie.
_TIE = 1e-12


@dataclass(frozen=True, slots=True)
class VoteEstimate:
    """Shares of votes won, estimated from random subsets."""

    values: np.ndarray
    """Share of subsets in which the correct answer wins, [problems] or [problems, ks]."""
    standard_errors: np.ndarray
    """Standard error of each value from the random subsets alone, of the same shape. That of the
    mean over problems is ``sqrt((standard_errors**2).sum(0)) / num_problems``."""
    num_trials: int
    """Subsets drawn for each problem and k."""


def weighted_majority_at_k(
    answers: Sequence[Sequence[str | None]],
    scores: Sequence[Vector] | np.ndarray,
    correct: Sequence[str],
    k: Ks,
    *,
    weighting: Literal["softmax", "score"] = "softmax",
    num_trials: int = 256,
    seed: int = 0,
) -> VoteEstimate:
    """Estimate how often the correct answer wins a vote among k samples weighted by their scores.

    The answer of the largest summed weight wins, ties shared; None never wins. There is no closed
    form, so subsets are drawn: ``num_trials`` for each problem, those of a smaller k being the
    first samples of a larger one's. The draws depend on the seed and the problem's place only.
    A subset in which no answer has a weight above 0 has no winner.
    The cost grows with trials times samples, and trials times classes times the number of ks.

    Args:
        answers: For each problem the final answers of its samples; None where there is none.
        scores: For each problem one finite score a sample.
        correct: For each problem its correct answer, in the same form.
        k: Samples in a subset; a sequence gives a column for each.
        weighting: ``"softmax"`` of the scores in the subset, for log-probabilities and logits;
            ``"score"`` for probabilities of being correct, which must not be negative.
        num_trials: Subsets for each problem, at least 2.
        seed: Seed of the subsets.

    Raises:
        TypeError: If k is no integer.
        ValueError: If a score is NaN, infinite, or negative where it is the weight, the numbers
            differ, or a problem has fewer than k samples.

    Example:
        >>> weighted_majority_at_k([["a", "b", "b"]], [[3.0, 0.0, 0.0]], ["a"], 3).values
        array([1.])
    """
    ks = list_ks(k)
    check_choice("weighting", weighting, ("softmax", "score"))
    check_int("num_trials", num_trials, low=2)
    for name, values in (("scores", scores), ("correct", correct)):
        if len(values) != len(answers):
            raise ValueError(
                f"{name} must have one per problem ({len(answers)}), got {len(values)}."
            )
    if not len(answers):
        raise ValueError("answers is empty; at least one problem is needed.")
    check_enough(ks, np.array([len(given) for given in answers]))
    shares = np.empty((len(answers), len(ks), num_trials))
    order = np.argsort(ks, kind="stable")
    for p, given in enumerate(answers):
        log_weights = _log_weights(p, scores[p], len(given), weighting)
        voted = dict.fromkeys([correct[p], *(a for a in given if a is not None)])
        number: dict[str | None, int] = {a: i for i, a in enumerate([None, *voted])}
        labels = np.array([number[a] for a in given])
        rng = np.random.default_rng([seed, p])
        drawn = rng.permuted(np.tile(np.arange(len(given)), (num_trials, 1)), axis=1)
        shares[p, order] = _wins(labels[drawn], log_weights[drawn], len(number), ks[order])
    errors = shares.std(axis=2, ddof=1) / np.sqrt(num_trials)
    return VoteEstimate(shaped(shares.mean(axis=2), k), shaped(errors, k), num_trials)


def _log_weights(p: int, scores: Vector, num_samples: int, weighting: str) -> NDArray[np.float64]:
    values = np.asarray(scores, dtype=np.float64)
    if values.shape != (num_samples,):
        raise ValueError(
            f"scores[{p}] must have one value per sample ({num_samples}), got {values.shape}."
        )
    check_no_nan(f"scores[{p}]", values[None], "a sample without a score cannot be weighted.")
    if not np.isfinite(values).all():
        raise ValueError(f"scores[{p}] must be finite to serve as weights.")
    if weighting == "softmax":
        return values
    if values.min() < 0:
        raise ValueError(
            f"scores[{p}] must not be negative as weights, got {values.min()}; for "
            'log-probabilities use weighting="softmax".'
        )
    with np.errstate(divide="ignore"):
        return np.log(values)


def _wins(
    labels: NDArray[np.int64],
    log_weights: NDArray[np.float64],
    num_classes: int,
    ks: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return the share of class 1 in the first k samples of each trial, [ks, trials].

    Args:
        labels: Class of each sample, 0 where it has no answer, [trials, samples].
        log_weights: Log of its weight.
        num_classes: How many classes there are, class 0 included.
        ks: Numbers of samples, rising.
    """
    num_trials = len(labels)
    log_weights = np.where(labels == 0, -np.inf, log_weights)
    cell = labels + num_classes * np.arange(num_trials)[:, None]
    totals = np.zeros((num_trials, num_classes))
    peak, result, start = np.full(num_trials, -np.inf), np.zeros((len(ks), num_trials)), 0
    for i, k in enumerate(ks):
        part = slice(start, int(k))
        start = int(k)
        # Relative to the largest so far: a subset of poor samples must not vanish altogether.
        new_peak = np.maximum(peak, log_weights[:, part].max(axis=1, initial=-np.inf))
        base = np.where(np.isfinite(new_peak), new_peak, 0.0)
        weights = np.exp(log_weights[:, part] - base[:, None])
        added = np.bincount(cell[:, part].ravel(), weights.ravel(), totals.size)
        totals = totals * np.exp(peak - base)[:, None] + added.reshape(totals.shape)
        peak = new_peak
        top = totals[:, 1:].max(axis=1)
        tied = totals[:, 1:] >= (top * (1 - _TIE))[:, None]
        result[i] = np.where(top > 0, tied[:, 0] / tied.sum(axis=1), 0.0)
    return result
