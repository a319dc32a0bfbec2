"""pass@k and best of k: closed forms, Fractions, and every subset counted."""

from fractions import Fraction
from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftrain import stats

FALLING = list(range(10, 0, -1))


def exact_pass(n, c, k):
    return 1 - Fraction(comb(n - c, k), comb(n, k))


def counted_best(scores, correct, k):
    """Return best of k as the mean over all subsets, ties shared."""
    total = Fraction(0)
    for subset in combinations(range(len(scores)), k):
        top = max(scores[i] for i in subset)
        tied = [correct[i] for i in subset if scores[i] == top]
        total += Fraction(sum(tied), len(tied))
    return total / comb(len(scores), k)


@st.composite
def graded_samples(draw):
    n = draw(st.integers(1, 8))
    scores = draw(st.lists(st.integers(-2, 2), min_size=n, max_size=n))
    correct = draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))
    return scores, correct


# pass@k -------------------------------------------------------------------------------------------


def test_pass_at_k_has_the_published_values():
    np.testing.assert_allclose(
        stats.pass_at_k([4], 10, [2, 4])[0], [2 / 3, 0.928571], atol=5e-7, rtol=0
    )


@pytest.mark.parametrize("n", [1, 2, 7, 40, 300])
def test_pass_at_k_agrees_with_fractions_for_every_count_and_k(n):
    ks = range(1, n + 1) if n <= 40 else [1, 2, 3, 64, 150, 299, 300]
    counts = range(n + 1) if n <= 40 else [0, 1, 2, 37, 150, 299, 300]
    exact = [[float(exact_pass(n, c, k)) for k in ks] for c in counts]
    np.testing.assert_allclose(stats.pass_at_k(list(counts), n, ks), exact, rtol=1e-13, atol=0)


def test_small_values_of_pass_at_k_keep_their_digits_where_binomials_overflow():
    values = stats.pass_at_k([1, 3], 100_000, [1, 2, 50_000])
    exact = [[float(exact_pass(100_000, c, k)) for k in (1, 2, 50_000)] for c in (1, 3)]
    np.testing.assert_allclose(values, exact, rtol=1e-11, atol=0)


def test_pass_at_k_is_one_where_the_wrong_samples_do_not_fill_k():
    full = stats.pass_at_k(range(1, 98), 97, range(1, 98))
    # Exactly one, not up to rounding, from k = n - c + 1 on.
    assert all((row[97 - c :] == 1).all() for c, row in enumerate(full, 1))
    assert stats.pass_at_k([0], 10, range(1, 11)).tolist() == [[0.0] * 10]


def test_problems_may_differ_in_their_numbers_of_samples():
    values = stats.pass_at_k([1, 2], [3, 5], [1, 3])
    exact = [[float(exact_pass(n, c, k)) for k in (1, 3)] for c, n in ((1, 3), (2, 5))]
    np.testing.assert_allclose(values, exact, rtol=1e-14)


def test_blocks_of_problems_change_nothing():
    counts = np.arange(2001) % 1001
    values = stats.pass_at_k(counts, 1000, [1, 1000])
    np.testing.assert_allclose(values[:, 0], counts / 1000, rtol=1e-14)
    assert values[:, 1].tolist() == (counts > 0).tolist()


def test_one_k_gives_a_vector_and_a_sequence_a_table():
    assert stats.pass_at_k([1, 2], 4, 2).shape == (2,)
    assert stats.pass_at_k([1, 2], 4, np.int64(2)).shape == (2,)
    assert stats.pass_at_k([1, 2], 4, [2]).shape == (2, 1)
    assert stats.pass_at_k([1, 2], 4, np.arange(1, 4)).shape == (2, 3)


@pytest.mark.parametrize(
    ("correct", "samples", "k", "error", "message"),
    [
        ([1, 1], [4, 2], 3, ValueError, "k = 3 exceeds the 2 samples of problem 1"),
        ([0, 0], [4, 0], 1, ValueError, "problem 1 has no sample"),
        ([0], [-1], 1, ValueError, "num_samples of problem 0 must not be negative, got -1"),
        ([5], 4, 1, ValueError, "problem 0 has 5 correct of 4 samples"),
        ([-1], 4, 1, ValueError, "num_correct of problem 0 must not be negative"),
        ([1], 4, 0, ValueError, "k must satisfy 1 <= k, got 0"),
        ([1], 4, [], ValueError, "k is empty"),
        ([1], 4, 1.5, TypeError, "k must be an integer"),
        ([1], 4, [1, True], TypeError, "k must be integers"),
        ([1.0], 4, 1, TypeError, "num_correct must be integers, got float64"),
        ([], 4, 1, ValueError, r"num_correct must have shape \[problems\], not empty"),
        ([[1]], 4, 1, ValueError, r"num_correct must have shape \[problems\]"),
        ([1, 1], [4], 1, ValueError, r"num_samples must be one number or one per problem \(2\)"),
    ],
)
def test_counts_that_give_no_pass_at_k_are_refused(correct, samples, k, error, message):
    with pytest.raises(error, match=message):
        stats.pass_at_k(correct, samples, k)


# Best of k ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("correct", "ks", "expected"),
    [
        ([1, 0, 1, 1, 0, 0, 1, 0, 0, 0], [1, 2, 4, 10], [2 / 5, 5 / 9, 2 / 3, 1]),
        ([0] * 6 + [1] * 4, [4], [1 / 210]),  # 0 if the sum stops a term early
    ],
)
def test_best_of_k_has_the_worked_values(correct, ks, expected):
    np.testing.assert_allclose(stats.best_of_k([FALLING], [correct], ks)[0], expected, rtol=1e-14)


@given(graded_samples())
def test_best_of_k_is_the_mean_over_all_subsets_with_ties_shared(sample):
    scores, correct = sample
    ks = range(1, len(scores) + 1)
    exact = [float(counted_best(scores, correct, k)) for k in ks]
    np.testing.assert_allclose(stats.best_of_k([scores], [correct], ks)[0], exact, atol=1e-14)


@given(graded_samples())
def test_best_of_one_is_the_mean_correctness(sample):
    scores, correct = sample
    np.testing.assert_allclose(stats.best_of_k([scores], [correct], 1), np.mean(correct))


@given(graded_samples())
def test_only_the_order_of_the_scores_counts(sample):
    scores, correct = sample
    ks = range(1, len(scores) + 1)
    steep = [float(np.exp(5.0 * s) - 1e6) for s in scores]
    np.testing.assert_array_equal(
        stats.best_of_k([steep], [correct], ks), stats.best_of_k([scores], [correct], ks)
    )


@given(graded_samples(), st.randoms(use_true_random=False))
def test_the_order_of_the_samples_does_not_count(sample, random):
    scores, correct = sample
    order = list(range(len(scores)))
    random.shuffle(order)
    shuffled = [[row[i] for i in order] for row in sample]
    ks = range(1, len(scores) + 1)
    np.testing.assert_array_equal(
        stats.best_of_k([shuffled[0]], [shuffled[1]], ks), stats.best_of_k([scores], [correct], ks)
    )


@pytest.mark.parametrize("num_correct", [0, 1, 4, 10])
def test_constant_scores_choose_blindly(num_correct):
    correct = [1] * num_correct + [0] * (10 - num_correct)
    values = stats.best_of_k([[0.5] * 10], [correct], range(1, 11))
    np.testing.assert_allclose(values, num_correct / 10, rtol=1e-14)


@pytest.mark.parametrize("num_correct", [0, 1, 4, 10])
def test_perfect_scores_reach_pass_at_k_and_inverted_ones_need_all_correct(num_correct):
    correct = np.array([[1] * num_correct + [0] * (10 - num_correct)])
    ks = range(1, 11)
    perfect = stats.best_of_k(correct, correct, ks)
    np.testing.assert_allclose(perfect, stats.pass_at_k([num_correct], 10, ks), rtol=1e-14)
    inverted = [comb(num_correct, k) / comb(10, k) for k in ks]
    np.testing.assert_allclose(stats.best_of_k(-correct, correct, ks)[0], inverted, rtol=1e-14)


def test_best_of_k_is_exact_where_binomials_overflow():
    n, ks = 1200, [1, 2, 600, 1199, 1200]
    correct = np.zeros((1, n))
    correct[0, ::3] = 1
    values = stats.best_of_k([list(range(n, 0, -1))], correct, ks)[0]
    exact = [
        float(Fraction(sum(comb(n - i - 1, k - 1) for i in range(0, n, 3)), comb(n, k))) for k in ks
    ]
    np.testing.assert_allclose(values, exact, rtol=1e-12)


def test_a_mask_leaves_samples_out_whatever_their_scores():
    nan = float("nan")
    scores = [[3, nan, 1, 2], [-np.inf, 5, 4, nan], [1, 2, 3, 4]]
    correct = [[0, nan, 1, 1], [1, 0, 1, 1], [1, 0, 0, 1]]
    mask = [[1, 0, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]]
    values = stats.best_of_k(scores, correct, [1, 2, 3], mask=mask)
    kept = [([3, 1, 2], [0, 1, 1]), ([-np.inf, 5, 4], [1, 0, 1]), (scores[2], correct[2])]
    exact = [[float(counted_best(*row, k)) for k in (1, 2, 3)] for row in kept]
    np.testing.assert_allclose(values, exact, atol=1e-14)


def test_partial_scores_count_in_part():
    np.testing.assert_allclose(stats.best_of_k([[2, 1]], [[0.25, 1.0]], [1, 2]), [[0.625, 0.25]])


@pytest.mark.parametrize(
    ("scores", "correct", "kwargs", "message"),
    [
        ([[1, 2], [3, np.nan]], [[0, 1], [1, 1]], {}, "scores is NaN at problem 1, column 1"),
        ([[1, 2]], [[0, np.nan]], {}, "correct is NaN at problem 0, column 1"),
        ([[1, 2]], [[0, 2]], {}, r"correct must lie in \[0, 1\], got 0.0 to 2.0"),
        ([[1, 2]], [[0, 1, 1]], {}, r"correct must have the shape of scores \(1, 2\)"),
        ([1, 2], [0, 1], {}, r"scores must have shape \[problems, samples\]"),
        ([[]], [[]], {}, r"scores must have shape \[problems, samples\], not empty"),
        ([[1, 2]], [[0, 1]], {"k": 3}, "k = 3 exceeds the 2 samples of problem 0"),
        ([[1, 2]], [[0, 1]], {"mask": [[1, 0]], "k": 2}, "k = 2 exceeds the 1 samples"),
        ([[1, 2]], [[0, 1]], {"mask": [[0, 0]]}, "problem 0 has no sample"),
        ([[1, 2]], [[0, 1]], {"mask": [[1]]}, "mask must have the shape of scores"),
    ],
)
def test_scores_that_rank_nothing_are_refused(scores, correct, kwargs, message):
    with pytest.raises(ValueError, match=message):
        stats.best_of_k(scores, correct, **{"k": 1, **kwargs})
