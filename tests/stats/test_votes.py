"""Majority votes: worked values, closed forms, and every subset counted."""

from collections import Counter
from fractions import Fraction
from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftrain import stats


def counted(answers, correct, k):
    """Return Maj@k as the mean over all subsets, ties shared; None never wins."""
    total = Fraction(0)
    for subset in combinations(answers, k):
        votes = Counter(answer for answer in subset if answer is not None)
        most = max(votes.values(), default=0)
        winners = [answer for answer, number in votes.items() if number == most]
        total += Fraction(correct in winners, max(1, len(winners)))
    return total / comb(len(answers), k)


def by_polynomials(right, others, empty, k):
    """Return Maj@k from the polynomials of the specification, in integers."""
    total = Fraction(0)
    for j in range(1, min(right, k) + 1):
        poly = {(0, 0): 1}  # {(degree in x, ties): coefficient}
        for size in others:
            after: dict[tuple[int, int], int] = {}
            for (x, ties), value in poly.items():
                for i in range(min(size, j) + 1):
                    key = (x + i, ties + (i == j))
                    after[key] = after.get(key, 0) + value * comb(size, i)
            poly = after
        total += comb(right, j) * sum(
            Fraction(value * comb(empty, k - j - x), 1 + ties)
            for (x, ties), value in poly.items()
            if 0 <= k - j - x <= empty
        )
    return float(total / comb(right + sum(others) + empty, k))


def test_the_worked_example():
    values = stats.majority_at_k([list("gggaab")], ["g"], range(1, 7))
    np.testing.assert_allclose(values[0], [0.5, 0.5, 0.6, 0.7, 0.75, 1], rtol=1e-14)


@given(st.lists(st.sampled_from(["g", "a", "b", "c", None]), min_size=1, max_size=9))
def test_majority_is_the_mean_over_all_subsets_with_ties_shared(answers):
    ks = range(1, len(answers) + 1)
    exact = [float(counted(answers, "g", k)) for k in ks]
    np.testing.assert_allclose(stats.majority_at_k([answers], ["g"], ks)[0], exact, atol=1e-14)


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(any),
    st.integers(0, 3),
)
def test_the_shares_of_all_answers_and_of_no_answer_sum_to_one(sizes, empty):
    n = sum(sizes) + empty
    ks = range(1, n + 1)
    shares = sum(stats.majority_at_k_counts([sizes], [i], [empty], ks) for i in range(len(sizes)))
    nobody = [comb(empty, k) / comb(n, k) for k in ks]
    np.testing.assert_allclose(shares[0] + nobody, 1.0, rtol=1e-13)


@pytest.mark.parametrize(
    ("right", "others", "empty"),
    [
        (3, [5, 4, 3, 3, 2, 1, 1], 2),
        (10, [9, 9, 9, 2], 0),
        (1, [1] * 20, 3),
        (6, [6] * 5, 1),
        (20, [3, 2, 1], 10),
    ],
)
def test_majority_agrees_with_integer_polynomials(right, others, empty):
    n = right + sum(others) + empty
    values = stats.majority_at_k_counts([[*others, right]], [len(others)], [empty], range(1, n + 1))
    exact = [by_polynomials(right, others, empty, k) for k in range(1, n + 1)]
    np.testing.assert_allclose(values[0], exact, rtol=1e-12)


@pytest.mark.parametrize("num_classes", [2, 3, 64])
@pytest.mark.parametrize("n", [128, 960])
def test_equal_classes_win_equally_often(n, num_classes):
    sizes = [n // num_classes] * num_classes
    total = sum(sizes)
    ks = sorted({1, 2, 3, total // 2, total - 1, total})
    values = stats.majority_at_k_counts([sizes], [0], [0], ks)
    np.testing.assert_allclose(values[0], 1 / num_classes, rtol=1e-12)


@pytest.mark.parametrize("n", [1000, 1001, 2500])
def test_two_answers_beyond_the_range_of_binomials(n):
    right, ks = n // 3, [1, 2, 7, n // 10, n // 2, n - 5, n]
    values = stats.majority_at_k_counts([[right, n - right]], [0], [0], ks)[0]
    exact = []
    for k in ks:
        hits = [comb(right, j) * comb(n - right, k - j) for j in range(k + 1)]
        won = sum(hits[k // 2 + 1 :]) + Fraction(hits[k // 2], 2) * (k % 2 == 0)
        exact.append(float(won / comb(n, k)))
    np.testing.assert_allclose(values, exact, rtol=1e-11, atol=1e-200)


def test_a_single_answer_always_wins_and_one_never_given_never():
    ks = range(1, 6)
    assert stats.majority_at_k([["g"] * 5], ["g"], ks).tolist() == [[1.0] * 5]
    assert stats.majority_at_k([["a", "b", None, None, "a"]], ["g"], ks).tolist() == [[0.0] * 5]
    assert stats.majority_at_k([[None] * 5], ["g"], ks).tolist() == [[0.0] * 5]


def test_one_vote_is_the_share_of_correct_answers_unparsable_ones_included():
    answers = [["g", None, None, "a"], ["g", "g", "g", None]]
    np.testing.assert_allclose(stats.majority_at_k(answers, ["g", "g"], 1), [0.25, 0.75])


def test_problems_of_all_kinds_do_not_disturb_each_other():
    rng = np.random.default_rng(0)
    sizes, places, empty = [], [], []
    for _ in range(60):
        sizes.append(rng.integers(0, 9, size=rng.integers(1, 8)).tolist())
        places.append(None if rng.random() < 0.1 else int(rng.integers(len(sizes[-1]))))
        empty.append(int(rng.integers(1, 4)))
    sizes[7], places[7], empty[7] = [], None, 3  # nothing could be read
    ks = [1]
    together = stats.majority_at_k_counts(sizes, places, empty, ks)
    for row, *problem in zip(together, sizes, places, empty, strict=True):
        alone = stats.majority_at_k_counts(*[[part] for part in problem], ks)
        np.testing.assert_allclose(row, alone[0], rtol=1e-14)


def test_only_the_ks_asked_for_are_needed():
    sizes, n = [[9, 7, 5, 5, 2]], 28
    full = stats.majority_at_k_counts(sizes, [1], [0], range(1, n + 1))[0]
    np.testing.assert_allclose(stats.majority_at_k_counts(sizes, [1], [0], 6), full[5], rtol=1e-13)
    some = stats.majority_at_k_counts(sizes, [1], [0], [20, 3])[0]
    np.testing.assert_allclose(some, full[[19, 2]], rtol=1e-13)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([["a"]], ["a"], 2), ValueError, "k = 2 exceeds the 1 samples of problem 0"),
        (([[]], ["a"], 1), ValueError, "problem 0 has no sample"),
        (([["a"]], ["a"], 0), ValueError, "k must satisfy 1 <= k, got 0"),
        (([["a"]], ["a", "b"], 1), ValueError, r"correct must have one per problem \(1\), got 2"),
        (([["a"]], [None], 1), TypeError, r"correct\[0\] must be text, got None"),
        (([], [], 1), ValueError, "not empty"),
    ],
)
def test_answers_without_a_vote_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        stats.majority_at_k(*arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            ([[1, 2]], [2], [0]),
            ValueError,
            "correct_index of problem 0 must be None or from 0 to 1",
        ),
        (([[1, 2]], [-1], [0]), ValueError, "correct_index of problem 0"),
        (([[1, -2]], [0], [0]), ValueError, r"class_counts\[0\].* must not be negative, got -2"),
        (([[1.5]], [0], [0]), TypeError, r"class_counts\[0\] must be integers"),
        (([[1]], [0, 0], [0]), ValueError, r"correct_index must have one entry per problem \(1\)"),
        (([[1]], [0], [0, 1]), ValueError, "num_unparsable must have one value per problem"),
        (([[1]], [0], [-1]), ValueError, "num_unparsable of problem 0 must not be negative"),
    ],
)
def test_counts_that_are_none_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        stats.majority_at_k_counts(*arguments, 1)


# Classes ------------------------------------------------------------------------------------------


def test_a_chain_of_equal_answers_is_one_class():
    pairs = [("a", "b"), ("c", "b"), ("d", "e")]
    united = stats.unite_answers([*"acbxed", None], lambda x, y: (x, y) in pairs)
    assert united == ["a", "a", "a", "x", "e", "e", None]


@given(st.lists(st.sampled_from([*"abcdef", None]), max_size=12), st.sets(st.integers(0, 35)))
def test_uniting_gives_the_connected_components(answers, edges):
    pairs = {("abcdef"[e // 6], "abcdef"[e % 6]) for e in edges}
    united = stats.unite_answers(answers, lambda x, y: (x, y) in pairs)
    present = list(dict.fromkeys(a for a in answers if a is not None))
    component = {a: {a} for a in present}
    for _ in present:
        for one, other in pairs:
            if one in component and other in component:
                joined = component[one] | component[other]
                component.update(dict.fromkeys(joined, joined))
    first = {a: min(component[a], key=present.index) for a in present}
    assert united == [None if a is None else first[a] for a in answers]
