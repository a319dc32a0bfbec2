"""The numbers game: problems against exhaustive search, the grader against hand-made answers."""

import itertools
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selftrain.tasks.base import Problem
from selftrain.tasks.characters import character_tokenizer
from selftrain.tasks.countdown import CountdownGrader, countdown, final_answer

SIZES = {"num_sft": 100, "num_train": 200, "num_validation": 20, "num_test": 50}
PROBLEM = Problem(
    id="0", prompt="3 7 12:60=", answer="60", meta={"numbers": [3, 7, 12], "target": 60}
)


@pytest.fixture(scope="module")
def parts():
    return countdown(**SIZES)


def reachable(numbers: list[Fraction]) -> set[Fraction]:
    """Return every value that the numbers can make, each used once."""
    if len(numbers) == 1:
        return set(numbers)
    found = set()
    for i, j in itertools.permutations(range(len(numbers)), 2):
        a, b = numbers[i], numbers[j]
        rest = [n for k, n in enumerate(numbers) if k not in (i, j)]
        for value in (a + b, a - b, a * b, *([a / b] if b else [])):
            found |= reachable([*rest, value])
    return found


def test_every_problem_has_a_solution(parts):
    for part in (parts.sft, parts.train, parts.validation, parts.test):
        for problem in part.problems:
            numbers = [Fraction(n) for n in problem.meta["numbers"]]
            assert Fraction(problem.meta["target"]) in reachable(numbers)


@pytest.mark.parametrize("num_numbers", [2, 3, 4])
def test_worked_solutions_are_right(num_numbers):
    parts = countdown(num_numbers=num_numbers, **{k: v // 10 for k, v in SIZES.items()})
    texts = [problem.solution for problem in parts.sft.problems]
    assert {g.status for g in parts.sft.grader.grade(parts.sft.problems, texts)} == {"correct"}
    for problem, text in zip(parts.sft.problems, texts, strict=True):
        assert final_answer(problem, text) == problem.answer


def test_no_two_problems_have_the_same_numbers_and_target(parts):
    every = [*parts.sft.problems, *parts.train.problems, *parts.test.problems]
    assert len({(*p.meta["numbers"], p.meta["target"]) for p in every}) == len(every)
    assert all(p.meta["numbers"] == sorted(p.meta["numbers"]) for p in every)


def test_the_parts_are_equally_hard():
    """All parts are one draw, mixed: else the last would hold the problems that are found late."""
    parts = countdown(num_sft=1000, num_train=2000, num_validation=100, num_test=1000)

    def share_of_few_ways(problems) -> float:
        return sum(p.meta["target"] > 60 for p in problems) / len(problems)

    train, test = (share_of_few_ways(p.problems) for p in (parts.train, parts.test))
    assert abs(train - test) < 0.06  # three standard errors of the difference


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("(12-7)*12", "wrong"),  # 12 twice
        ("12*(7-3+1)", "wrong"),  # a number that was not given
        ("12*3+7", "wrong"),
        ("(7-3)*12+12", "wrong"),
        ("3*7*12/1", "wrong"),
        ("(12+3)*7-45", "wrong"),
        ("60", "wrong"),
        ("", "no_answer"),
        ("12*", "no_answer"),
        ("3/(7-7)", "no_answer"),
        ("12**3", "no_answer"),
        ("3.7*12", "no_answer"),
        ("__import__('os')", "no_answer"),
    ],
)
def test_wrong_answers(text, status):
    assert CountdownGrader().grade([PROBLEM], [text])[0].status == status


@pytest.mark.parametrize("text", ["12*7-3*8", "(7-3)*15"])
def test_the_target_from_other_numbers_is_wrong(text):
    assert final_answer(PROBLEM, text) == "60 (other numbers)"
    assert CountdownGrader().grade([PROBLEM], [text])[0].detail == "not the numbers given"


@pytest.mark.parametrize(("text", "target"), [("2**3", 8), ("2.5*3", Fraction(15, 2))])
def test_decimals_and_powers_do_not_stretch_the_numbers(text, target):
    numbers = [2, 3] if "*" * 2 in text else [2, 3, 5]
    problem = Problem(id="0", prompt="2 3:8=", meta={"numbers": numbers, "target": target})
    assert CountdownGrader().grade([problem], [text])[0].score == 0


def test_right_answers_in_any_form():
    problem = Problem(id="0", prompt="3 7 12:48=", meta={"numbers": [3, 7, 12], "target": 48})
    for text in ("12*(7-3)", " (7 - 3) * 12\n", "((7-3))*12", "12*7-12*3"):
        right = text != "12*7-12*3"
        assert CountdownGrader().grade([problem], [text])[0].score == float(right)


def test_arithmetic_is_exact():
    problem = Problem(id="0", prompt="1 3 3:1=", meta={"numbers": [1, 3, 3], "target": 1})
    assert CountdownGrader().grade([problem], ["1/3*3"])[0].score == 1
    assert final_answer(problem, "1/3+3") == "10/3"


@settings(max_examples=30)
@given(text=st.text(alphabet="0123456789+-*/() .x", max_size=20))
def test_no_text_breaks_the_grader(text):
    grade = CountdownGrader().grade([PROBLEM], [text])[0]
    assert grade.score in (0.0, 1.0)
    assert (final_answer(PROBLEM, text) is None) == (grade.status == "no_answer")


def test_the_same_seed_gives_the_same_parts(parts):
    assert countdown(**SIZES).test.problems == parts.test.problems
    assert countdown(**SIZES, seed=1).test.problems != parts.test.problems


def test_texts_fit_the_character_tokenizer(parts):
    tokenizer = character_tokenizer()
    for problem in parts.sft.problems:
        assert (
            tokenizer.unk_token_id not in tokenizer(problem.prompt + problem.solution)["input_ids"]
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_numbers": 1}, "num_numbers"),
        ({"max_number": 0}, "max_number"),
        ({"max_target": 0}, "max_target"),
        ({"num_train": 0}, "num_train"),
        ({"num_numbers": 2, "max_number": 2}, "different problems"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        countdown(**{**SIZES, **arguments})
