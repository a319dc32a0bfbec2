"""Weighted votes: limits in which they are known exactly."""

from itertools import combinations

import numpy as np
import pytest

from selftrain import stats

ANSWERS = [["g", "a", "g", "b", None, "a"], ["a", "g", "g", "a", "a", "g"]]
KS = [1, 2, 3, 6]


def deviation(estimate, exact):
    """Return the distance from ``exact`` in standard errors, where there is any spread."""
    spread = estimate.standard_errors
    np.testing.assert_allclose(estimate.values[spread == 0], exact[spread == 0], atol=1e-12)
    return np.abs(estimate.values - exact)[spread > 0] / spread[spread > 0]


@pytest.mark.parametrize("weighting", ["softmax", "score"])
def test_equal_weights_are_a_plain_majority(weighting):
    exact = stats.majority_at_k(ANSWERS, ["g", "g"], KS)
    estimate = stats.weighted_majority_at_k(
        ANSWERS, [[0.3] * 6] * 2, ["g", "g"], KS, weighting=weighting, num_trials=4000
    )
    assert estimate.values.shape == estimate.standard_errors.shape == (2, 4)
    assert deviation(estimate, exact).max() < 4


@pytest.mark.parametrize("base", [0.0, -5000.0])
def test_weights_far_apart_follow_the_best_sample(base):
    scores = [[base - 900.0 * i for i in (3, 1, 0, 2, 4, 5)]] * 2
    correct = [[a == "g" for a in row] for row in ANSWERS]
    ranked = np.where([[a is None for a in row] for row in ANSWERS], -1e9, scores)
    exact = stats.best_of_k(ranked, correct, KS)
    estimate = stats.weighted_majority_at_k(ANSWERS, scores, ["g", "g"], KS, num_trials=4000)
    assert deviation(estimate, exact).max() < 4


def test_scores_as_weights_agree_with_every_subset():
    answers, weights = ["g", "a", "b", "a", "g"], [0.3, 0.1, 0.35, 0.2, 0.05]
    exact = []
    for k in (2, 3, 4):
        shares = []
        for subset in combinations(range(5), k):
            sums = {c: sum(weights[i] for i in subset if answers[i] == c) for c in "gab"}
            tied = [c for c in sums if sums[c] >= max(sums.values()) - 1e-9]
            shares.append(("g" in tied) / len(tied))
        exact.append(np.mean(shares))
    estimate = stats.weighted_majority_at_k(
        [answers], [weights], ["g"], [2, 3, 4], weighting="score", num_trials=6000
    )
    assert deviation(estimate, np.array([exact])).max() < 4


def test_all_samples_leave_nothing_to_chance_and_sums_in_another_order_still_tie():
    estimate = stats.weighted_majority_at_k(
        [["g", "a", "g"]], [[0.1, 0.3, 0.2]], ["g"], 3, weighting="score"
    )
    assert (estimate.values.tolist(), estimate.standard_errors.tolist()) == ([0.5], [0.0])


def test_shifting_all_scores_changes_nothing_and_the_seed_decides():
    scores = np.random.default_rng(0).normal(size=(2, 6))

    def run(shift=0.0, seed=0):
        given = list(scores + shift)
        return stats.weighted_majority_at_k(ANSWERS, given, ["g", "g"], KS, seed=seed).values

    np.testing.assert_array_equal(run(), run(shift=64.0))
    assert (run() != run(seed=1)).any()


def test_the_standard_error_is_the_spread_between_seeds():
    scores = np.random.default_rng(0).normal(size=(2, 6))
    runs = [
        stats.weighted_majority_at_k(
            ANSWERS, list(scores), ["g", "g"], 3, num_trials=100, seed=seed
        )
        for seed in range(200)
    ]
    between = np.std([run.values for run in runs], axis=0)
    within = np.mean([run.standard_errors for run in runs], axis=0)
    np.testing.assert_allclose(between, within, rtol=0.2)  # of 200 runs: 5 % a standard error


def test_the_order_of_ks_and_the_other_problems_do_not_matter():
    scores = list(np.random.default_rng(0).normal(size=(2, 6)))
    both = stats.weighted_majority_at_k(ANSWERS, scores, ["g", "g"], [1, 3, 6]).values
    back = stats.weighted_majority_at_k(ANSWERS, scores, ["g", "g"], [6, 3, 1]).values
    first = stats.weighted_majority_at_k(ANSWERS[:1], scores[:1], ["g"], 3).values
    np.testing.assert_array_equal(both, back[:, ::-1])
    np.testing.assert_array_equal(both[:1, 1], first)


def test_without_an_answer_or_a_weight_nobody_wins():
    def value(answers, weights):
        return stats.weighted_majority_at_k(
            [answers], [weights], ["g"], 2, weighting="score"
        ).values.tolist()

    assert value([None, None], [0.5, 0.5]) == [0.0]
    assert value(["g", "g"], [0.0, 0.0]) == [0.0]
    assert value(["g", None], [0.1, 0.9]) == [1.0]


@pytest.mark.parametrize(
    ("scores", "kwargs", "message"),
    [
        ([[0.1, np.nan]], {}, r"scores\[0\] is NaN at problem 0, column 1"),
        ([[0.1, np.inf]], {}, r"scores\[0\] must be finite"),
        ([[0.1, -0.1]], {"weighting": "score"}, r"scores\[0\] must not be negative as weights"),
        ([[0.1]], {}, r"scores\[0\] must have one value per sample \(2\)"),
        ([], {}, r"scores must have one per problem \(1\), got 0"),
        ([[0.1, 0.2]], {"k": 3}, "k = 3 exceeds the 2 samples of problem 0"),
        ([[0.1, 0.2]], {"num_trials": 1}, "num_trials must satisfy 2 <= num_trials"),
        ([[0.1, 0.2]], {"weighting": "sum"}, "weighting must be one of 'softmax', 'score'"),
    ],
)
def test_scores_that_weigh_nothing_are_refused(scores, kwargs, message):
    with pytest.raises(ValueError, match=message):
        stats.weighted_majority_at_k([["g", "a"]], scores, ["g"], **{"k": 1, **kwargs})
