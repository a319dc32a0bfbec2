"""Small programs on lists: find the expression that turns inputs into outputs.

``312>123;9051>0159;77>77;`` asks for a Python expression in ``x`` such as ``sorted(x)``. Numbers
are single base-36 digits, lists are written without separators, and an output that is a number
follows ``=``: ``312>=6;``. What the model writes is executed in a sandbox, never in this process:
the score is decided by the pairs shown, and ten further pairs tell whether the expression means the
same beyond them.
"""

import ast
import string
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from selftrain._core.checks import check_int
from selftrain._core.rng import derive
from selftrain.tasks.base import Problem, Task
from selftrain.tasks.code import CodeGrader
from selftrain.tasks.parts import TaskParts, cut, draw_distinct
from selftrain.tasks.sandbox import Sandbox
from selftrain.tasks.wrapped import GradeOnce

PROGRAM = "def f(x):\n    return {code}"
"""What an expression is put into."""
_DIGITS = string.digits + string.ascii_lowercase
_NUM_SHOWN, _NUM_HIDDEN = 3, 10
_MAX_PACKED = 32

Value = int | list[int]


class _Part(NamedTuple):
    """A piece of the grammar: its text around an expression ``e`` and its meaning."""

    text: str
    apply: Callable[[list[int]], Value]


_OPERATIONS = [
    _Part("{e}[::-1]", lambda x: x[::-1]),
    _Part("[v+1 for v in {e}]", lambda x: [v + 1 for v in x]),
    _Part("sorted({e})", sorted),
    _Part("[v*2 for v in {e}]", lambda x: [v * 2 for v in x]),
    _Part("{e}[1:]", lambda x: x[1:]),
    _Part("[v for v in {e} if v>4]", lambda x: [v for v in x if v > 4]),
    _Part("{e}[:-1]", lambda x: x[:-1]),
    _Part("[9-v for v in {e}]", lambda x: [9 - v for v in x]),
    _Part("{e}[:2]", lambda x: x[:2]),
    _Part("[v%2 for v in {e}]", lambda x: [v % 2 for v in x]),
    _Part("{e}[::2]", lambda x: x[::2]),
    _Part("[v for v in {e} if v%2]", lambda x: [v for v in x if v % 2]),
    _Part("{e}[2:]", lambda x: x[2:]),
    _Part("[v+2 for v in {e}]", lambda x: [v + 2 for v in x]),
    _Part("{e}[1::2]", lambda x: x[1::2]),
]
_REDUCERS = [
    _Part("sum({e})", sum),
    _Part("max({e})", max),
    _Part("min({e})", min),
    _Part("len({e})", len),
    _Part("{e}[0]", lambda x: x[0]),
    _Part("{e}[-1]", lambda x: x[-1]),
]


def list_programs(
    *,
    max_length: int = 5,
    num_operations: int = 15,
    num_sft: int = 1000,
    num_train: int = 3000,
    num_validation: int = 200,
    num_test: int = 500,
    seed: int = 0,
    sandbox: Sandbox | None = None,
) -> TaskParts:
    """Draw the parts of the task.

    A problem comes from a random program, which ``meta["reference"]`` has: one or two of up to
    fifteen list operations (slices, sorted, comprehensions), and perhaps one of six that reduce a
    list to a number. Inputs are lists of numbers from 0 to 9.

    Args:
        max_length: Longest input; the shortest has 3 elements.
        num_operations: How many of the list operations there are; with all there are 336 programs,
            with 8 there are 126.
        num_sft: Number of worked problems.
        num_train: Number of problems to learn on by trial.
        num_validation: Number of problems for decisions.
        num_test: Number of problems for measurement.
        seed: Sets everything.
        sandbox: Where expressions are executed; None: one with the defaults, which refuses where
            there are no namespaces.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> parts = list_programs(num_sft=1, num_train=1, num_validation=1, num_test=1)
        >>> len(parts.test.problems[0].tests), len(parts.test.problems[0].hidden_tests)
        (3, 10)
    """
    check_int("max_length", max_length, low=3, high=9)
    check_int("num_operations", num_operations, low=1, high=len(_OPERATIONS))
    rng = np.random.default_rng(derive(seed, "listprog"))
    sizes = {"sft": num_sft, "train": num_train, "validation": num_validation, "test": num_test}
    operations = _OPERATIONS[:num_operations]
    problems = draw_distinct(sum(sizes.values()), lambda: _draw(rng, operations, max_length))
    sandbox = Sandbox() if sandbox is None else sandbox
    grader, hidden = (
        GradeOnce(CodeGrader(sandbox=sandbox, template=PROGRAM, hidden=h, max_packed=_MAX_PACKED))
        for h in (False, True)
    )
    return TaskParts(
        **{
            name: Task(f"listprog-{name}", part, grader, hidden, final_answer)
            for name, part in cut(problems, sizes).items()
        }
    )


def final_answer(problem: Problem, text: str) -> str | None:
    """Return the expression in a normal form (spaces, brackets), or None if it is none."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of what Python may refuse one day
            return ast.unparse(ast.parse(text.strip(), mode="eval"))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _draw(rng: np.random.Generator, operations: Sequence[_Part], max_length: int) -> Problem | None:
    parts = _draw_program(rng, operations)
    inputs: list[list[int]] = []
    while len(inputs) < _NUM_SHOWN + _NUM_HIDDEN:
        length = int(rng.integers(3, max_length + 1))
        drawn = [int(v) for v in rng.integers(0, 10, size=length)]
        if drawn not in inputs:
            inputs.append(drawn)
    try:
        outputs = [_run(parts, x) for x in inputs]
    except (IndexError, ValueError):  # the first or largest element of nothing
        return None
    shown = [_show(y) for y in outputs[:_NUM_SHOWN]]
    if None in shown or len(set(shown)) == 1:
        return None
    expression = "x"
    for part in parts:
        expression = part.text.format(e=expression)
    tests = tuple(f"assert f({x}) == {y}" for x, y in zip(inputs, outputs, strict=True))
    pairs = (f"{_show(x)}>{y};" for x, y in zip(inputs, shown, strict=False))
    return Problem(
        id="new",
        prompt="".join(pairs),
        solution=expression,
        tests=tests[:_NUM_SHOWN],
        hidden_tests=tests[_NUM_SHOWN:],
        meta={"depth": len(parts), "reference": expression},
    )


def _draw_program(rng: np.random.Generator, operations: Sequence[_Part]) -> list[_Part]:
    """Return one or two list operations, or none or one and a reducer, in order."""
    reduces = rng.random() < 0.4
    num_lists = int(rng.integers(0, 2)) if reduces else int(rng.integers(1, 3))
    parts = [operations[int(rng.integers(len(operations)))] for _ in range(num_lists)]
    return parts + [_REDUCERS[int(rng.integers(len(_REDUCERS)))]] * reduces


def _run(parts: Sequence[_Part], x: list[int]) -> Value:
    value: Value = x
    for part in parts:
        assert isinstance(value, list)  # noqa: S101
        value = part.apply(value)
    return value


def _show(value: Value) -> str | None:
    """Write a value in the prompt's form; None where a number is no base-36 digit."""
    numbers = value if isinstance(value, list) else [value]
    if not all(0 <= n < len(_DIGITS) for n in numbers):
        return None
    digits = "".join(_DIGITS[n] for n in numbers)
    return digits if isinstance(value, list) else f"={digits}"
