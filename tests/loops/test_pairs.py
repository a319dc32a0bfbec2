"""From graded samples to preferences: counts, duplicates, caps, order."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftrain.loops import answer_groups, load_groups, outcome_rows, save_groups, with_reference
from selftrain.loops.rows import RowWriter
from selftrain.loops.sample import Sample
from selftrain.tasks.base import Grade
from selftrain.training import TokenRow, sequence_log_probs


def sample(problem=0, text="1", score=1.0, index=0, round=0, **fields):
    grade = None if score == "none" else Grade(score, "")
    fields = {"finish_reason": "stop", "token_ids": None, **fields}
    return Sample(
        round=round,
        problem_id=f"p{problem}",
        index=index,
        seed=0,
        text=text,
        log_prob=None,
        policy="",
        sampling="",
        grade=grade,
        **fields,
    )


@pytest.fixture(scope="module")
def writer(digit_task, make_llama, char_tokenizer):
    return RowWriter(digit_task, make_llama(), char_tokenizer)


def texts(rows, char_tokenizer):
    return [char_tokenizer.decode(row.completion_ids, skip_special_tokens=True) for row in rows]


def test_every_problem_with_both_classes_becomes_a_group(writer, char_tokenizer):
    samples = [
        sample(0, "1", 1.0, 0),
        sample(0, "2", 0.0, 1),
        sample(0, "3", 0.0, 2),
        sample(1, "1", 1.0, 0),
        sample(2, "2", 0.0, 0),
        sample(3, "2", None, 0),
        sample(3, "2", "none", 1),
        sample(4, "", 0.0, 0, finish_reason="error"),
    ]
    found = answer_groups(samples, writer)
    (group,) = found.groups
    assert group.problem_id == "p0"
    assert texts(group.correct, char_tokenizer) == ["1"]
    assert texts(group.wrong, char_tokenizer) == ["2", "3"]
    assert found.counts == {
        "num_samples": 8,
        "num_ungraded": 3,
        "num_truncated": 0,
        "num_duplicates": 0,
        "num_over_cap": 0,
        "num_problems": 3,
        "num_without_correct": 1,
        "num_without_wrong": 1,
        "num_pairs": 2,
    }


def test_prompts_are_the_tasks_and_completions_end(writer, char_tokenizer):
    found = answer_groups([sample(0, "1"), sample(0, "2", 0.0, 1)], writer)
    row = found.groups[0].correct[0]
    assert char_tokenizer.decode(row.prompt_ids) == "aa="
    assert row.completion_ids[-1] == char_tokenizer.eos_token_id


def test_sampled_ids_are_taken_where_there_are_some(writer):
    samples = [sample(0, "1", token_ids=(30, 31, 1)), sample(0, "2", 0.0, 1)]
    assert answer_groups(samples, writer).groups[0].correct[0].completion_ids == (30, 31, 1)


def test_equal_texts_count_once(writer):
    samples = [
        *(sample(0, "1", 1.0, i, round=i) for i in range(4)),
        *(sample(0, "2", 0.0, 9, round=i) for i in range(3)),
    ]
    found = answer_groups(samples, writer)
    assert (len(found.groups[0].correct), len(found.groups[0].wrong)) == (1, 1)
    assert found.counts["num_duplicates"] == 5


def test_a_text_graded_both_ways_is_an_error_that_names_it(writer):
    samples = [sample(0, "1", 1.0, 0), sample(0, "1", 0.0, 1)]
    with pytest.raises(ValueError, match="'p0': one text is graded both correct and wrong: '1'"):
        answer_groups(samples, writer)


def test_an_answer_that_never_ended_is_never_a_correct_one(writer):
    samples = [
        sample(0, "1", 1.0, 0),
        sample(0, "11", 1.0, 1, finish_reason="length", token_ids=(30, 30)),
        sample(0, "22", 0.0, 2, finish_reason="length", token_ids=(31, 31)),
    ]
    found = answer_groups(samples, writer)
    assert len(found.groups[0].correct) == 1
    assert found.groups[0].wrong[0].completion_ids == (31, 31)
    assert found.counts["num_truncated"] == 1


def test_solutions_are_correct_answers(writer):
    samples = [sample(i, "7", 0.0) for i in range(3)]
    found = answer_groups(samples, writer, solutions=writer.of_solutions())
    assert [group.problem_id for group in found.groups] == ["p0", "p1", "p2"]
    assert found.counts["num_without_wrong"] == 5
    assert found.counts["num_samples"] == 3 + 8


def test_a_score_in_between_is_correct_from_min_score(writer):
    samples = [sample(0, "1", 0.8, 0), sample(0, "2", 0.4, 1)]
    with pytest.raises(ValueError, match="have no correct"):
        answer_groups(samples, writer)
    assert answer_groups(samples, writer, min_score=0.5).counts["num_pairs"] == 1


@given(st.randoms(use_true_random=False), st.integers(0, 5))
def test_the_choice_does_not_depend_on_the_order(writer, shuffler, seed):
    samples = [sample(p, str(i), float(i < 5), i) for p in range(2) for i in range(10)]
    expected = answer_groups(samples, writer, max_per_class=3, seed=seed)
    mixed = list(samples)
    shuffler.shuffle(mixed)
    assert answer_groups(mixed, writer, max_per_class=3, seed=seed) == expected
    assert all(len(g.correct) == len(g.wrong) == 3 for g in expected.groups)
    assert expected.counts["num_over_cap"] == 2 * (10 - 6)


def test_the_cap_chooses_every_answer_about_equally_often(writer):
    samples = [sample(0, str(i), float(i < 4), i) for i in range(8)]
    counts = dict.fromkeys(range(4), 0)
    for seed in range(400):
        rows = answer_groups(samples, writer, max_per_class=1, seed=seed).groups[0].correct
        counts[rows[0].completion_ids[0] - answer_id(writer, "0")] += 1
    # 100 expected each, standard deviation 8.7
    assert all(60 < count < 140 for count in counts.values()), counts


def answer_id(writer, text):
    samples = [sample(0, text, 1.0, 0), sample(0, "9", 0.0, 1)]
    return answer_groups(samples, writer).groups[0].correct[0].completion_ids[0]


def test_no_pair_at_all_is_an_error_that_counts(writer):
    samples = [sample(0, "1"), sample(1, "2", 0.0), sample(2, "2", 0.0)]
    with pytest.raises(ValueError, match="2 have no correct and 1 no wrong"):
        answer_groups(samples, writer)
    with pytest.raises(ValueError, match="give no pair"):
        answer_groups([], writer)


@pytest.mark.parametrize("fields", [{"max_per_class": 0}, {"min_score": 0.0}, {"min_score": 1.5}])
def test_settings_out_of_range_are_errors(writer, fields):
    with pytest.raises(ValueError, match=f"{next(iter(fields))} must satisfy"):
        answer_groups([sample(0, "1"), sample(0, "2", 0.0, 1)], writer, **fields)


def test_reference_log_probabilities_belong_to_their_answers(writer, make_llama, tmp_path):
    draw = random.Random(0)
    samples = [
        sample(p, "".join(draw.choices("0123456789+", k=draw.randint(1, 9))), float(i % 2), i)
        for p in range(4)
        for i in range(6)
    ]
    model = make_llama(sharpness=3.0)
    groups = with_reference(answer_groups(samples, writer).groups, model, max_tokens=40)
    for group in groups:
        alone = [sequence_log_probs(model, [row]).item() for row in group.rows]
        assert list(group.reference) == pytest.approx(alone, abs=1e-4)
    assert [group.name for group in groups] == ["p0", "p1", "p2", "p3"]
    save_groups(groups, tmp_path / "groups.jsonl")
    assert load_groups(tmp_path / "groups.jsonl") == groups


def test_rows_of_an_outcome_model_carry_their_label(writer):
    groups = answer_groups([sample(0, "1"), sample(0, "2", 0.0, 1)], writer).groups
    assert [row.label for row in outcome_rows(groups)] == [1.0, 0.0]
    with pytest.raises(ValueError, match="label must satisfy"):
        TokenRow(completion_ids=(3,), label=2.0)
