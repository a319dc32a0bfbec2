"""Graders that compare final answers."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftrain.tasks import ExactGrader, Grade, NumericGrader, Problem, extract_boxed

problem = Problem(id="0", prompt="q", answer="1,250")


def graded(grader, answer, text) -> tuple[float | None, str]:
    (grade,) = grader.grade([Problem(id="0", prompt="q", answer=answer)], [text])
    assert isinstance(grade, Grade)
    assert grade.milliseconds >= 0
    return grade.score, grade.status


@pytest.mark.parametrize("grader", [ExactGrader(), NumericGrader()])
def test_each_status_has_its_score(grader):
    assert graded(grader, "1,250", "#### $1250.00") == (1.0, "correct")
    assert graded(grader, "1,250", "#### 1251") == (0.0, "wrong")
    assert graded(grader, "1,250", "1250") == (0.0, "no_answer")
    assert graded(grader, "nan", "#### nan") == (None, "ungradable")
    assert graded(grader, "1250", "#### nan") == (0.0, "wrong")
    assert graded(grader, "inf", "1250") == (None, "ungradable")


def test_text_answers_suit_the_exact_grader_only():
    assert graded(ExactGrader(), "Tuesday", "The answer is Tuesday.") == (1.0, "correct")
    assert graded(NumericGrader(), "Tuesday", "The answer is Tuesday.") == (None, "ungradable")


def test_the_way_to_extract_can_be_chosen():
    grader = ExactGrader(extract=extract_boxed)
    assert graded(grader, "5", r"#### 4, $\boxed{5}$") == (1.0, "correct")


numbers = st.fractions(min_value=-1000, max_value=1000, max_denominator=1000)
tolerances = st.sampled_from([0.0, 0.125, 0.5, 1.0])  # exact in binary


@given(numbers, numbers, tolerances, tolerances)
def test_the_tolerance_is_exact_to_its_border(reference, answer, rtol, atol):
    close = abs(answer - reference) <= Fraction(atol) + Fraction(rtol) * abs(reference)
    grader = NumericGrader(rtol=rtol, atol=atol)
    assert graded(grader, str(reference), f"#### {answer}") == (
        float(close),
        "correct" if close else "wrong",
    )


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["rtol", "atol"])
def test_a_tolerance_that_is_none_is_refused(name, value):
    with pytest.raises(ValueError, match=name):
        NumericGrader(**{name: value})


@pytest.mark.parametrize("grader", [ExactGrader(), NumericGrader()])
def test_final_answers_are_canonical_or_none(grader):
    assert grader.final_answer(problem, "#### 1,250.0") == "1250"
    assert grader.final_answer(problem, "#### nan") is None
    assert grader.final_answer(problem, "none") is None


def test_a_problem_without_an_answer_is_named():
    with pytest.raises(ValueError, match="problem 'p7' has no answer"):
        ExactGrader().grade([Problem(id="p7", prompt="q", tests=("assert True",))], ["#### 1"])


def test_problems_and_texts_of_different_number_are_refused():
    with pytest.raises(ValueError, match="2 texts for 1 problems"):
        ExactGrader().grade([problem], ["a", "b"])


def test_nothing_to_grade_gives_no_grades():
    assert ExactGrader().grade([], []) == []
