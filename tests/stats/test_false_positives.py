"""The rate of false positives counts what both judges could judge."""

import pytest

from selftrain import stats


def test_only_samples_of_full_score_count():
    found = stats.false_positive_rate(
        [1.0, 1.0, 1.0, 0.5, 0.0, None, 1.0], [1.0, 0.0, 0.9, 0.0, 0.0, 0.0, None]
    )
    assert (found.num_false, found.num_passed, found.num_unjudged) == (2, 3, 1)
    assert found.rate == pytest.approx(2 / 3)


def test_without_a_sample_that_passed_there_is_no_rate():
    assert stats.false_positive_rate([0.0, None], [None, None]).rate is None


@pytest.mark.parametrize(
    ("scores", "strict", "message"),
    [
        ([1.0], [], r"strict_scores must have one value per score \(1\), got 0"),
        ([1.0, 2.0], [1.0, 1.0], r"scores\[1\] must satisfy"),
        ([1.0], [float("nan")], r"strict_scores\[0\] must satisfy"),
    ],
)
def test_scores_out_of_range_are_refused(scores, strict, message):
    with pytest.raises(ValueError, match=message):
        stats.false_positive_rate(scores, strict)
