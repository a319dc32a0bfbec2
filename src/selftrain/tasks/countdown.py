"""The numbers game: reach a target with an arithmetic expression that uses every number once.

``3 7 12:24=`` asks for an expression such as ``(12-4)*3`` from all the numbers given. An expression
is right whichever it is, as long as it is made of the numbers and has the target for its value, in
exact rational arithmetic; most problems have many solutions.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from selftrain._core.checks import check_int
from selftrain._core.rng import derive
from selftrain.tasks.base import Grade, Problem, Task
from selftrain.tasks.expressions import ExpressionError, evaluate_expression
from selftrain.tasks.parts import TaskParts, cut, draw_distinct

_NUMBER = re.compile(r"\d+")


class CountdownGrader:
    """Judges an expression: the numbers of the problem, each once, and the target for its value."""

    def grade(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Grade]:
        """Return the grades: "correct", "wrong", or "no_answer" where there is no expression."""
        return [_grade(problem, text) for problem, text in zip(problems, texts, strict=True)]


def countdown(
    *,
    num_numbers: int = 3,
    max_number: int = 13,
    max_target: int = 99,
    num_sft: int = 1000,
    num_train: int = 3000,
    num_validation: int = 250,
    num_test: int = 1000,
    seed: int = 0,
) -> TaskParts:
    """Draw the parts of the task.

    A problem comes from a random expression, so that it has a solution; the worked problems show
    it. Two problems with the same target and the same numbers, in whatever order, are one.

    Args:
        num_numbers: Numbers in a problem, 2 to 6.
        max_number: The largest of them; the smallest is 1.
        max_target: The largest target; the smallest is 1.
        num_sft: Number of worked problems.
        num_train: Number of problems to learn on by trial.
        num_validation: Number of problems for decisions.
        num_test: Number of problems for measurement.
        seed: Sets everything.

    Raises:
        ValueError: If an argument is out of range, or there are not enough different problems.

    Example:
        >>> parts = countdown(num_sft=2, num_train=2, num_validation=1, num_test=1)
        >>> problem = parts.sft.problems[0]
        >>> parts.sft.grader.grade([problem], [problem.solution])[0].status
        'correct'
    """
    check_int("num_numbers", num_numbers, low=2, high=6)
    check_int("max_number", max_number, low=1, high=100)
    check_int("max_target", max_target, low=1, high=9999)
    rng = np.random.default_rng(derive(seed, "countdown"))

    def make() -> Problem | None:
        numbers = [int(n) for n in rng.integers(1, max_number + 1, size=num_numbers)]
        expression = _random_expression(numbers, rng)
        if expression is None or not 1 <= expression.value <= max_target:
            return None
        target, shown = int(expression.value), sorted(numbers)
        return Problem(
            id="new",
            prompt=f"{' '.join(map(str, shown))}:{target}=",
            answer=str(target),
            solution=expression.text,
            meta={"numbers": shown, "target": target, "reference": expression.text},
        )

    sizes = {"sft": num_sft, "train": num_train, "validation": num_validation, "test": num_test}
    problems = draw_distinct(sum(sizes.values()), make)
    # Those found late have few solutions: no part may get more of them than another.
    mixed = [problems[i] for i in rng.permutation(len(problems))]
    grader = CountdownGrader()
    return TaskParts(
        **{
            name: Task(f"countdown-{name}", part, grader, final_answer=final_answer)
            for name, part in cut(mixed, sizes).items()
        }
    )


def final_answer(problem: Problem, text: str) -> str | None:
    """Return the value of the expression as a fraction, or None where it has none.

    An expression of other numbers is an answer too, a wrong one: it is marked as such, so that it
    is not counted with right ones.
    """
    try:
        value = _evaluate(text)
    except ExpressionError:
        return None
    return str(value) if _numbers(text) == problem.meta["numbers"] else f"{value} (other numbers)"


class _Expression(NamedTuple):
    """A text, its value, and how strongly its outermost operation binds: 1 for +-, 2 for */."""

    text: str
    value: Fraction
    binding: int


def _random_expression(numbers: Sequence[int], rng: np.random.Generator) -> _Expression | None:
    """Join random pairs by random operations until one expression is left; None if one fails."""
    parts = [_Expression(str(n), Fraction(n), 3) for n in numbers]
    while len(parts) > 1:
        left, right = (parts.pop(int(rng.integers(len(parts)))) for _ in range(2))
        operator = "+-*/"[int(rng.integers(4))]
        joined = _join(left, operator, right)
        if joined is None:
            return None
        parts.append(joined)
    return parts[0]


def _join(left: _Expression, operator: str, right: _Expression) -> _Expression | None:
    """Return ``left operator right`` with no more brackets than it needs.

    None where a part would be negative or no integer: expressions as people play the game.
    """
    a, b = left.value, right.value
    if (operator == "-" and a <= b) or (operator == "/" and a % b):
        return None
    value = {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[operator]
    binding = 1 if operator in "+-" else 2
    # a - (b + c) and a / (b * c) need their brackets, a + (b + c) does not.
    strict = binding if operator in "-/" else binding - 1
    first = left.text if left.binding >= binding else f"({left.text})"
    second = right.text if right.binding > strict else f"({right.text})"
    return _Expression(f"{first}{operator}{second}", value, binding)


def _evaluate(text: str) -> Fraction:
    # A point or a power would make more of the numbers than the four operations do.
    if "." in text or "**" in text:
        raise ExpressionError("only + - * / and brackets are allowed")
    return evaluate_expression(text)


def _numbers(text: str) -> list[int]:
    return sorted(int(number) for number in _NUMBER.findall(text))


def _grade(problem: Problem, text: str) -> Grade:
    try:
        value = _evaluate(text)
    except ExpressionError as error:
        return Grade(0.0, "no_answer", str(error))
    if _numbers(text) != problem.meta["numbers"]:
        return Grade(0.0, "wrong", "not the numbers given")
    if value != problem.meta["target"]:
        return Grade(0.0, "wrong", f"the value is {value}")
    return Grade(1.0, "correct")
