"""Graders that compare a text's final answer with the problem's, exactly or within a tolerance."""

import time
from collections.abc import Callable, Sequence
from fractions import Fraction

from selftrain._core.checks import check_range
from selftrain.tasks.answers import canonical_answer, is_not_finite, parse_number
from selftrain.tasks.base import Grade, Problem
from selftrain.tasks.extraction import Extractor, extract_final_answer


class ExactGrader:
    """Scores 1 where the final answer equals the problem's, as a number or as text.

    Both are compared in the form of :func:`selftrain.tasks.canonical_answer`: exact rational
    numbers where both are numbers, text otherwise. A problem whose own answer is NaN or infinite
    is "ungradable", with no score.

    Args:
        extract: Finds the final answer in a text.

    Example:
        >>> problem = Problem(id="0", prompt="600 + 650 = ?", answer="1250")
        >>> [grade.status for grade in ExactGrader().grade([problem] * 2, ["#### 1,250", "1250"])]
        ['correct', 'no_answer']
    """

    def __init__(self, *, extract: Extractor = extract_final_answer) -> None:
        self._extract = extract

    def grade(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Grade]:
        """Return one grade for each problem and the text beside it.

        Raises:
            ValueError: If a problem has no answer, or the two sequences differ in length.
        """
        return compare_answers(problems, texts, self._extract, _equal_to)

    def final_answer(self, problem: Problem, text: str) -> str | None:
        """Return the final answer of a text in canonical form; None where it has none."""
        return votable(self._extract(text))


class NumericGrader:
    """Scores 1 where the final answer is a number close enough to the problem's.

    Close is ``|answer - reference| <= atol + rtol * |reference|``, in exact rational arithmetic;
    with both tolerances 0, equal. NaN and infinity are close to nothing. A problem whose own answer
    is no finite number is "ungradable", with no score.

    Args:
        rtol: Tolerance as a share of the reference.
        atol: Tolerance in the units of the answer.
        extract: Finds the final answer in a text.

    Raises:
        ValueError: If a tolerance is negative, infinite or NaN.

    Example:
        >>> problem = Problem(id="0", prompt="pi?", answer="3.14159")
        >>> NumericGrader(rtol=0.01).grade([problem], ["The answer is 22/7."])[0].score
        1.0
    """

    def __init__(
        self, *, rtol: float = 0.0, atol: float = 0.0, extract: Extractor = extract_final_answer
    ) -> None:
        for name, value in (("rtol", rtol), ("atol", atol)):
            check_range(name, value, low=0.0, high=float("inf"), high_open=True)
        self._rtol, self._atol = Fraction(rtol), Fraction(atol)
        self._extract = extract

    def grade(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Grade]:
        """Return one grade for each problem and the text beside it.

        Raises:
            ValueError: If a problem has no answer, or the two sequences differ in length.
        """
        return compare_answers(problems, texts, self._extract, self._close_to)

    def final_answer(self, problem: Problem, text: str) -> str | None:
        """Return the final answer of a text as an exact number; None where it has no number."""
        answer = self._extract(text)
        number = None if answer is None else parse_number(canonical_answer(answer))
        return None if number is None else str(number)

    def _close_to(self, reference: str) -> Callable[[str], bool] | None:
        wanted = parse_number(canonical_answer(reference))
        if wanted is None:
            return None
        tolerance = self._atol + self._rtol * abs(wanted)

        def close(answer: str) -> bool:
            number = parse_number(canonical_answer(answer))
            return number is not None and abs(number - wanted) <= tolerance

        return close


def votable(answer: str | None) -> str | None:
    """Return an answer in canonical form, or None where it could not win a vote."""
    canonical = canonical_answer(answer) if answer is not None else ""
    return canonical if canonical and not is_not_finite(canonical) else None


def reference_answer(problem: Problem) -> str:
    """Return the problem's answer.

    Raises:
        ValueError: If it has none.
    """
    if problem.answer is None:
        raise ValueError(
            f"problem {problem.id!r} has no answer to compare with; give it one, or judge it by "
            "its tests with a grader of programs."
        )
    return problem.answer


def check_pairs(problems: Sequence[Problem], texts: Sequence[str]) -> None:
    """Raise ``ValueError`` unless there is one text for each problem."""
    if len(problems) != len(texts):
        raise ValueError(
            f"texts must be one for each problem, got {len(texts)} texts for {len(problems)} "
            "problems; repeat a problem for each of its texts."
        )


def compare_answers(
    problems: Sequence[Problem],
    texts: Sequence[str],
    extract: Extractor,
    matcher: Callable[[str], Callable[[str], bool] | None],
) -> list[Grade]:
    """Grade texts by a comparison of answers.

    Args:
        problems: What was asked.
        texts: What was written, one for each problem.
        extract: Finds the final answer in a text.
        matcher: Given the reference, returns the test for answers, or None if the reference
            cannot be compared with.
    """
    check_pairs(problems, texts)
    references = [reference_answer(problem) for problem in problems]
    grades = []
    for reference, text in zip(references, texts, strict=True):
        start = time.perf_counter()
        matches = matcher(reference)
        answer = extract(text)
        if matches is None:
            score, status, detail = None, "ungradable", f"the reference is {reference[:80]!r}"
        elif answer is None:
            score, status, detail = 0.0, "no_answer", ""
        else:
            right = matches(answer)
            score, status = float(right), "correct" if right else "wrong"
            detail = answer[:200]
        grades.append(Grade(score, status, detail, 1e3 * (time.perf_counter() - start)))
    return grades


def _equal_to(reference: str) -> Callable[[str], bool] | None:
    wanted = votable(reference)
    return None if wanted is None else lambda answer: votable(answer) == wanted
