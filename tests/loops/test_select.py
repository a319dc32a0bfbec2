"""What is kept is good enough, at most the cap, at random, and the same in any order."""

from collections import Counter
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from selftrain.loops.sample import Sample
from selftrain.loops.select import select
from selftrain.tasks.base import Grade

FATES = ("failed", "truncated", "ungraded", "below", "dropped_by_key", "duplicates", "over_cap")


def sample(problem_id="a", index=0, score=1.0, **changes) -> Sample:
    fields = {
        "round": 0,
        "seed": index,
        "text": f"{index}",
        "token_ids": (index,),
        "finish_reason": "stop",
        "log_prob": None,
        "policy": "p",
        "sampling": "s",
        "grade": None if score == "none" else Grade(score, ""),
    }
    return Sample(problem_id=problem_id, index=index, **{**fields, **changes})


@st.composite
def many(draw) -> list[Sample]:
    """Samples of up to three problems, of any score, some cut off, many alike."""
    rows = draw(
        st.lists(
            st.tuples(
                st.sampled_from("abc"),
                st.integers(0, 2),
                st.sampled_from([0.0, 0.5, 1.0, 1.0, None, "none"]),
                st.sampled_from(["stop", "stop", "stop", "length", "error"]),
                st.sampled_from(["1+1=2", "1 + 1 =  2", "2+2=4", "2+2=5", "no"]),
            ),
            max_size=30,
        )
    )
    return [
        sample(p, i, score, round=r, finish_reason=reason, text=text, token_ids=(len(text),))
        for i, (p, r, score, reason, text) in enumerate(rows)
    ]


OPTIONS = st.fixed_dictionaries(
    {
        "cap": st.none() | st.integers(1, 4),
        "dedupe": st.sampled_from([None, "text", "tokens", "equations"]),
        "min_score": st.sampled_from([0.0, 0.5, 1.0]),
        "weighting": st.sampled_from(["sample", "problem"]),
        "keep_truncated": st.booleans(),
        "seed": st.integers(0, 3),
    }
)


@settings(deadline=None)
@given(samples=many(), options=OPTIONS, data=st.data())
def test_the_order_of_the_samples_makes_no_difference(samples, options, data):
    shuffled = data.draw(st.permutations(samples))
    assert select(shuffled, **options) == select(samples, **options)


@settings(deadline=None)
@given(samples=many(), options=OPTIONS)
def test_every_sample_has_one_fate(samples, options):
    counts = select(samples, **options).counts
    assert sum(counts[f"num_{f}"] for f in (*FATES, "kept")) == counts["num_samples"]
    assert counts["num_samples"] == len(samples)


@settings(deadline=None)
@given(samples=many(), options=OPTIONS)
def test_what_is_kept_is_good_enough_and_within_the_cap(samples, options):
    kept = select(samples, **options).samples
    assert set(kept) <= set(samples)
    assert [s.key for s in kept] == sorted(s.key for s in kept)
    assert all(s.score is not None and s.score >= options["min_score"] for s in kept)
    reasons = {"stop", "length"} if options["keep_truncated"] else {"stop"}
    assert {s.finish_reason for s in kept} <= reasons
    per_problem = Counter(s.problem_id for s in kept)
    assert max(per_problem.values(), default=0) <= (options["cap"] or 30)


@settings(deadline=None)
@given(samples=many(), options=OPTIONS)
def test_without_a_cap_multiplicities_count_all_that_have_a_key(samples, options):
    selection = select(samples, **{**options, "cap": None})
    counts = selection.counts
    assert sum(selection.multiplicity) == counts["num_kept"] + counts["num_duplicates"]


@settings(deadline=None)
@given(samples=many(), options=OPTIONS)
def test_a_larger_cap_keeps_what_a_smaller_one_does(samples, options):
    small = select(samples, **{**options, "cap": 2}).samples
    assert set(small) <= set(select(samples, **{**options, "cap": 3}).samples)


@settings(deadline=None)
@given(samples=many(), options=OPTIONS)
def test_weights_are_one_on_average_and_equal_by_sample_or_by_problem(samples, options):
    selection = select(samples, **options)
    totals: Counter[str] = Counter()
    for kept, weight in zip(selection.samples, selection.weights, strict=True):
        totals[kept.problem_id] += weight
    if options["weighting"] == "sample":
        assert set(selection.weights) <= {1.0}
    elif totals:
        share = len(selection.samples) / len(totals)
        assert list(totals.values()) == pytest.approx([share] * len(totals))


def test_the_cap_takes_every_subset_equally_often():
    """Chi-square over the 20 subsets of 3 of 6; a false alarm once in ten thousand seeds."""
    samples = [sample(index=i) for i in range(6)]
    found = Counter(
        tuple(s.index for s in select(samples, cap=3, seed=seed).samples) for seed in range(4000)
    )
    assert len(found) == comb(6, 3)
    assert stats.chisquare(list(found.values())).pvalue > 1e-4


@pytest.mark.parametrize("name", ["seed", "round"])
def test_seed_and_round_choose_anew(name):
    samples = [sample(index=i) for i in range(40)]
    assert len({select(samples, cap=5, **{name: value}).samples for value in range(5)}) == 5


def test_problems_are_chosen_from_independently():
    samples = [sample(p, i) for p in "ab" for i in range(40)]
    kept = select(samples, cap=10).samples
    assert {s.index for s in kept if s.problem_id == "a"} != {
        s.index for s in kept if s.problem_id == "b"
    }


def test_the_number_kept_is_the_mean_of_a_capped_binomial():
    """E min(Bin(N, p), K), within five standard errors."""
    num_problems, num_samples, success, cap = 2000, 8, 0.3, 3
    right = np.random.default_rng(0).random((num_problems, num_samples)) < success
    samples = [
        sample(f"{p}", i, float(right[p, i]))
        for p in range(num_problems)
        for i in range(num_samples)
    ]
    k = np.arange(num_samples + 1)
    law = stats.binom(num_samples, success).pmf(k)
    capped = np.minimum(k, cap)
    mean = (law * capped).sum()
    deviation = np.sqrt(((law * capped**2).sum() - mean**2) / num_problems)
    counts = select(samples, cap=cap).counts
    assert abs(counts["num_kept"] / num_problems - mean) < 5 * deviation
    solved = 1 - (1 - success) ** num_samples
    error = np.sqrt(solved * (1 - solved) / num_problems)
    assert abs(counts["num_problems_kept"] / num_problems - solved) < 5 * error


def test_what_could_not_be_judged_is_dropped_and_counted():
    samples = [sample(index=0, score=None), sample(index=1, score="none"), sample(index=2)]
    selection = select(samples, min_score=0.0)
    assert [s.index for s in selection.samples] == [2]
    assert selection.counts["num_ungraded"] == 2


def test_a_right_answer_that_was_cut_off_is_kept_on_request_only():
    cut, failed = (sample(index=i, finish_reason=r) for i, r in enumerate(("length", "error")))
    assert select([cut, failed]).samples == ()
    assert select([cut, failed], keep_truncated=True).samples == (cut,)


def test_duplicates_are_kept_unless_their_removal_is_asked_for():
    samples = [sample(index=i, text=t) for i, t in enumerate(["a b", "a  b", "\uff41 b", "c"])]
    assert select(samples).multiplicity == (1, 1, 1, 1)
    selection = select(samples, dedupe="text")
    assert [s.index for s in selection.samples] == [0, 3]
    assert selection.multiplicity == (3, 1)
    assert selection.counts["num_duplicates"] == 2


def test_the_same_text_under_two_problems_is_no_duplicate():
    samples = [sample("a", text="1"), sample("b", text="1")]
    assert len(select(samples, dedupe="text").samples) == 2


def test_rounds_are_joined_before_duplicates_are_removed():
    samples = [sample(text="1", round=r) for r in (0, 1)]
    assert [s.round for s in select(samples, dedupe="text").samples] == [0]


def test_a_key_of_the_users_own_may_drop_samples():
    samples = [sample(index=i) for i in range(6)]
    selection = select(samples, dedupe=lambda s: s.index % 2 or None)
    assert [s.index for s in selection.samples] == [1]
    assert (selection.counts["num_dropped_by_key"], selection.multiplicity) == (3, (3,))


def test_a_false_equation_drops_a_sample_and_the_furthest_wording_stays():
    texts = ["so 1+1=2", "well 1 + 1 = 2", "2+2=5", "so 2-1=1"]
    selection = select([sample(index=i, text=t) for i, t in enumerate(texts)], dedupe="equations")
    assert [s.text for s in selection.samples] == ["so 1+1=2", "so 2-1=1"]
    assert selection.counts["num_dropped_by_key"] == 1
    # The second wording comes before there is anything to be far from; later it would win.
    texts = [texts[3], *texts[:2]]
    selection = select([sample(index=i, text=t) for i, t in enumerate(texts)], dedupe="equations")
    assert [s.text for s in selection.samples] == ["so 2-1=1", "well 1 + 1 = 2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cap": 0}, "cap must satisfy"),
        ({"cap": 2.5}, "cap must be an integer"),
        ({"min_score": 1.5}, "min_score must satisfy"),
        ({"weighting": "problems"}, "weighting must be one of"),
        ({"dedupe": "words"}, "dedupe must be one of 'text', 'tokens', 'equations'"),
    ],
)
def test_a_bad_setting_is_named(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        select([sample()], **options)


def test_a_sample_that_is_there_twice_is_an_error():
    with pytest.raises(ValueError, match=r"\(0, 'a', 0\) .* occurs twice"):
        select([sample(), sample("b"), sample()])


def test_tokens_that_no_server_gave_are_no_key():
    with pytest.raises(ValueError, match='use dedupe="text"'):
        select([sample(token_ids=None)], dedupe="tokens")
