"""Chains of modular arithmetic: a task whose knowledge is a table of known size.

A problem is a start value and operations (+, -, *) with operands from 1 to m - 1, applied from left
to right modulo a prime m. Every number is one base-m digit: ``7+b*3-m=``. A solution repeats that
with the value after each step, and then gives the answer: ``7+bi*38-m9#9``.

There are 3 m (m - 1) *step facts*, such as ``7+b``. Who wrote the worked problems knows a part of
them, and guesses in some problems that go beyond it, so that a model that learns from them is sure
of some facts and at a loss for the others, which it can find by trial, because the answer tells.
For a prime m each operation is a bijection of the running value: one wrong step always leads to a
wrong answer, two or more to the right one with probability about 1 / m, a false positive that the
hidden grader sees.
"""

import itertools
import string
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from selftrain._core.checks import check_int, check_range
from selftrain._core.rng import derive
from selftrain.tasks.base import Grade, Problem, Task
from selftrain.tasks.parts import TaskParts, cut, draw_distinct

OPERATORS = "+-*"
_DIGITS = string.digits + string.ascii_lowercase


class Step(NamedTuple):
    """One operation on a running value."""

    value: int
    operator: str
    operand: int

    def result(self, modulus: int) -> int:
        """Return the value after the operation."""
        if self.operator == "+":
            return (self.value + self.operand) % modulus
        if self.operator == "-":
            return (self.value - self.operand) % modulus
        return self.value * self.operand % modulus


class ChainGrader:
    """Judges a solution by its answer, the digit after the last ``#``."""

    def grade(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Grade]:
        """Return the grades: "correct", "wrong" or "no_answer"."""
        return [_answer_grade(problem, text) for problem, text in zip(problems, texts, strict=True)]


class StepGrader:
    """Judges a solution by its answer and every step; what it rejects besides was right by luck."""

    def grade(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Grade]:
        """Return the grades; the detail of a wrong one names the first wrong step."""
        return [_step_grade(problem, text) for problem, text in zip(problems, texts, strict=True)]


def modular_chains(
    *,
    modulus: int = 23,
    num_steps: int = 3,
    known_fraction: float = 0.6,
    guessed_fraction: float = 0.3,
    num_sft: int = 16_000,
    num_train: int = 6000,
    num_validation: int = 250,
    num_test: int = 1000,
    seed: int = 0,
) -> TaskParts:
    """Draw the parts of the task.

    A random share ``known_fraction`` of the facts is known where problems are worked. A part of the
    worked problems needs no others and is worked rightly; in the rest the steps that are not known
    are guessed, each time anew. ``meta["num_unknown"]`` counts such steps in every problem, and
    ``meta["reference"]`` is the right solution.

    Args:
        modulus: A prime up to 31.
        num_steps: Operations in a chain.
        known_fraction: Share of the step facts that are known where problems are worked.
        guessed_fraction: Share of the worked problems drawn like all others, in [0, 1]; 0 makes a
            model confidently wrong where it knows nothing, so that trial finds little.
        num_sft: Number of worked problems.
        num_train: Number of problems to learn on by trial.
        num_validation: Number of problems for decisions.
        num_test: Number of problems for measurement.
        seed: Sets everything.

    Raises:
        ValueError: If the modulus is no prime up to 31, another argument is out of range, or there
            are not enough different problems.

    Example:
        >>> parts = modular_chains(num_sft=9, num_train=1, num_validation=1, num_test=1)
        >>> problem = next(p for p in parts.sft.problems if p.meta["num_unknown"] == 0)
        >>> parts.sft.grader.grade([problem], [problem.solution])[0].status
        'correct'
    """
    if modulus not in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31):
        raise ValueError(
            f"modulus must be a prime up to 31, got {modulus}: only then is every step a bijection."
        )
    check_int("num_steps", num_steps, low=1)
    check_range("known_fraction", known_fraction, low=0.0, low_open=True, high=1.0)
    check_range("guessed_fraction", guessed_fraction, low=0.0, high=1.0)
    known = _known_facts(modulus, known_fraction, seed)
    rng = np.random.default_rng(derive(seed, "modchain", "problems"))

    def draw() -> Problem:
        start = int(rng.integers(modulus))
        operators = [OPERATORS[i] for i in rng.integers(3, size=num_steps)]
        operands = [int(v) for v in rng.integers(1, modulus, size=num_steps)]
        guesses = [int(v) for v in rng.integers(modulus, size=num_steps)]
        return _problem(start, operators, operands, guesses, modulus, known)

    def draw_known() -> Problem | None:
        problem = draw()
        return problem if problem.meta["num_unknown"] == 0 else None

    sizes = {"sft": num_sft, "train": num_train, "validation": num_validation, "test": num_test}
    num_known, seen = round((1 - guessed_fraction) * num_sft), set[object]()
    sure = draw_distinct(num_known, draw_known, seen=seen)
    parts = cut(sure + draw_distinct(sum(sizes.values()) - num_known, draw, seen=seen), sizes)
    grader, hidden = ChainGrader(), StepGrader()
    return TaskParts(
        **{
            name: Task(f"modchain-{name}", problems, grader, hidden, final_answer)
            for name, problems in parts.items()
        }
    )


def final_answer(problem: Problem, text: str) -> str | None:
    """Return the digit after the last ``#``, or None where there is none."""
    _, mark, answer = text.rpartition("#")
    answer = answer.strip()
    digits = _DIGITS[: problem.meta["modulus"]]
    return answer if mark and len(answer) == 1 and answer in digits else None


def parse_steps(problem: Problem) -> list[Step]:
    """Return the true steps of a problem, read from its prompt."""
    assert isinstance(problem.prompt, str)  # noqa: S101
    value, steps = _DIGITS.index(problem.prompt[0]), []
    for i in range(1, len(problem.prompt) - 1, 2):
        step = Step(value, problem.prompt[i], _DIGITS.index(problem.prompt[i + 1]))
        steps.append(step)
        value = step.result(problem.meta["modulus"])
    return steps


def _known_facts(modulus: int, fraction: float, seed: int) -> set[Step]:
    facts = [Step(*f) for f in itertools.product(range(modulus), OPERATORS, range(1, modulus))]
    rng = np.random.default_rng(derive(seed, "modchain", "facts"))
    chosen = rng.permutation(len(facts))[: round(fraction * len(facts))]
    return {facts[i] for i in chosen}


def _problem(
    start: int,
    operators: Sequence[str],
    operands: Sequence[int],
    guesses: Sequence[int],
    modulus: int,
    known: set[Step],
) -> Problem:
    """Return a problem, worked by somebody who guesses what is not known."""
    steps, shown, value, worked_value = [], [_DIGITS[start]], start, start
    for operator, operand, guess in zip(operators, operands, guesses, strict=True):
        steps.append(Step(value, operator, operand))
        value = steps[-1].result(modulus)
        worked = Step(worked_value, operator, operand)
        worked_value = worked.result(modulus) if worked in known else guess
        shown.append(operator + _DIGITS[operand] + _DIGITS[worked_value])
    return Problem(
        id="new",
        prompt=shown[0] + "".join(part[:2] for part in shown[1:]) + "=",
        answer=_DIGITS[value],
        solution=f"{''.join(shown)}#{_DIGITS[worked_value]}",
        meta={
            "modulus": modulus,
            "num_unknown": sum(step not in known for step in steps),
            "reference": f"{_worked(steps, modulus)}#{_DIGITS[value]}",
        },
    )


def _worked(steps: Sequence[Step], modulus: int) -> str:
    shown = (f"{s.operator}{_DIGITS[s.operand]}{_DIGITS[s.result(modulus)]}" for s in steps)
    return _DIGITS[steps[0].value] + "".join(shown)


def _answer_grade(problem: Problem, text: str) -> Grade:
    answer = final_answer(problem, text)
    if answer is None:
        return Grade(0.0, "no_answer")
    right = answer == problem.answer
    return Grade(float(right), "correct" if right else "wrong")


def _step_grade(problem: Problem, text: str) -> Grade:
    grade = _answer_grade(problem, text)
    if grade.status != "correct":
        return grade
    modulus = problem.meta["modulus"]
    shown = text.partition("#")[0].strip()
    truth = _worked(parse_steps(problem), modulus)
    if shown == truth:
        return grade
    same = list(
        itertools.takewhile(lambda pair: pair[0] == pair[1], zip(shown, truth, strict=False))
    )
    return Grade(0.0, "wrong", f"wrong from step {max(0, len(same) - 1) // 3 + 1} on")
