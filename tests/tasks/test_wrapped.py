"""Graders around graders."""

import pytest

from selftrain.tasks.base import Grade, Problem
from selftrain.tasks.wrapped import GradeOnce, PermutedGrader, RandomGrader

PROBLEMS = [Problem(id=str(i // 10), prompt="p", answer=str(i // 10)) for i in range(1000)]
TEXTS = [str(i % 100) for i in range(1000)]


class Exact:
    """Right if the text is the answer; counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def grade(self, problems, texts):
        self.asked += [(p.id, t) for p, t in zip(problems, texts, strict=True)]
        return [Grade(float(p.answer == t), t) for p, t in zip(problems, texts, strict=True)]


def test_equal_texts_of_a_problem_are_judged_once_and_the_grades_are_the_same():
    inner = Exact()
    problems, texts = PROBLEMS[:10] * 3, ["0"] * 15 + ["1"] * 15
    assert GradeOnce(inner).grade(problems, texts) == Exact().grade(problems, texts)
    assert inner.asked == [("0", "0"), ("0", "1")]


def test_equal_texts_of_two_problems_are_judged_apart():
    grades = GradeOnce(Exact()).grade([PROBLEMS[0], PROBLEMS[10]], ["1", "1"])
    assert [grade.score for grade in grades] == [0, 1]


def test_no_text_is_no_work():
    assert GradeOnce(Exact()).grade([], []) == []


def test_permuted_grades_are_as_many_and_say_nothing():
    true = [g.score for g in Exact().grade(PROBLEMS, TEXTS)]
    dealt = [g.score for g in PermutedGrader(Exact()).grade(PROBLEMS, TEXTS)]
    assert sum(dealt) == sum(true) > 0
    # each of the 10 right texts stays right with probability 1/100
    assert sum(a * b for a, b in zip(true, dealt, strict=True)) <= 2


@pytest.mark.parametrize(
    "make", [lambda s: PermutedGrader(Exact(), seed=s), lambda s: RandomGrader(0.3, seed=s)]
)
def test_controls_are_functions_of_their_seed(make):
    first, same, other = (
        [g.score for g in make(seed).grade(PROBLEMS, TEXTS)] for seed in (0, 0, 1)
    )
    assert first == same != other


def test_random_scores_have_their_probability():
    scores = [g.score for g in RandomGrader(0.3).grade(PROBLEMS, TEXTS)]
    assert sum(scores) / 1000 == pytest.approx(0.3, abs=0.06)  # four standard errors


def test_a_probability_lies_in_the_unit_interval():
    with pytest.raises(ValueError, match="probability"):
        RandomGrader(1.5)
