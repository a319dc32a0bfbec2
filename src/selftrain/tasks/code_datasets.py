"""Published sets of programming problems as tasks: MBPP and HumanEval."""

import ast
import builtins
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selftrain._core.checks import check_int
from selftrain.tasks._loading import make_problems, make_task, read_split, take_text
from selftrain.tasks.base import Grader, Problem, Task
from selftrain.tasks.files import SourceRows, read_rows
from selftrain.tasks.prompts import choose_shots

_MBPP_PARTS = {
    "prompt": range(1, 11),
    "test": range(11, 511),
    "validation": range(511, 601),
    "train": range(601, 975),
}


def load_mbpp(
    source: str | Path = "google-research-datasets/mbpp:full",
    *,
    split: str = "train",
    num_shots: int = 0,
    prefix: str = "",
    max_problems: int | None = None,
    grader: Grader | None = None,
    hidden_grader: Grader | None = None,
) -> Task:
    """Load MBPP (Austin et al. 2021, arXiv 2108.07732), full or sanitized: short Python functions.

    The prompt is a docstring that holds the description and the tests. ``tests`` are the asserts
    of ``test_list``, ``hidden_tests`` the challenging ones, where there are any. ``meta["setup"]``
    is code to run before the program; set-up code that needs what the program defines (two
    problems build trees of its ``Node``) is in ``meta["setup_after"]``.

    Args:
        source: A file, a folder or a hub name, as for :func:`load_gsm8k`. A file holds all
            problems, and the published splits are made by number.
        split: "prompt" (problems 1 to 10), "test" (to 510), "validation" (to 600) or "train".
        num_shots: How many problems of the split "prompt" stand as worked examples before every
            prompt.
        prefix: Text before every prompt instead; see :func:`few_shot_prefix`.
        max_problems: Keep a fixed random choice of so many problems.
        grader: Runs the tests; by default a :class:`CodeGrader`, which needs a sandbox.
        hidden_grader: Runs the hidden tests, by default likewise if there are any.

    Raises:
        FileNotFoundError: If a path does not exist, or a folder has no such split.
        ValueError: If a row lacks a field or has no tests, or the arguments exclude each other.
    """
    if split not in _MBPP_PARTS:
        raise ValueError(f"split must be one of {', '.join(_MBPP_PARTS)}; got {split!r}.")
    check_int("num_shots", num_shots, low=0)
    problems = make_problems(_mbpp_rows(source, split), _mbpp_problem)
    shots: tuple[Problem, ...] = ()
    if num_shots:
        examples = make_problems(_mbpp_rows(source, "prompt"), _mbpp_problem)
        shots = choose_shots(examples, num_shots=num_shots)
    if grader is None:
        from selftrain.tasks.code import CodeGrader
        from selftrain.tasks.sandbox import Sandbox

        sandbox = Sandbox()
        grader = CodeGrader(sandbox=sandbox)
        if hidden_grader is None and any(problem.hidden_tests for problem in problems):
            hidden_grader = CodeGrader(sandbox=sandbox, hidden=True)
    return make_task(
        "mbpp",
        problems,
        grader,
        shots=shots,
        prefix=prefix,
        max_problems=max_problems,
        hidden_grader=hidden_grader,
    )


def load_humaneval(
    source: str | Path = "openai/openai_humaneval",
    *,
    split: str | None = None,
    max_problems: int | None = None,
    grader: Grader | None = None,
) -> Task:
    """Load HumanEval (Chen et al. 2021, arXiv 2107.03374): bodies of Python functions.

    The prompt is the head of a function, which a completion goes on with, so that the program is
    ``meta["code_prefix"]`` (the prompt again) and the completion. ``tests`` are the asserts of the
    data's ``check(candidate)``, with the function's name (``meta["entry_point"]``) in the place of
    ``candidate``. The seven problems whose check does more than assert have no ``tests``, but the
    source of ``check`` in ``meta["check"]``, to be called with the function.

    Args:
        source: A file, a folder or a hub name, as for :func:`load_gsm8k`.
        split: Of a folder or a hub name: "test" is all there is. A file is taken whole.
        max_problems: Keep a fixed random choice of so many problems.
        grader: Runs the tests; by default a :class:`CodeGrader`, which needs a sandbox.

    Raises:
        FileNotFoundError: If a path does not exist, or a folder has no such split.
        ValueError: If a row lacks a field or its tests have no ``check(candidate)``.
    """
    problems = make_problems(read_split(source, split, "test"), _humaneval_problem)
    if grader is None:
        from selftrain.tasks.code import CodeGrader

        grader = CodeGrader()
    return make_task("humaneval", problems, grader, shots=(), prefix="", max_problems=max_problems)


def _mbpp_rows(source: str | Path, split: str) -> SourceRows:
    found = read_rows(source, split=split)
    if not found.is_file:
        return found
    numbers = _MBPP_PARTS[split]
    rows = tuple(row for row in found.rows if row.get("task_id") in numbers)
    if not rows:
        raise ValueError(
            f"source: {source} has no problems of the split {split!r} (a 'task_id' from "
            f"{numbers.start} to {numbers.stop - 1})."
        )
    return SourceRows(rows, split, found.is_file)


def _mbpp_problem(row: Mapping[str, Any], place: str) -> Problem:
    if "task_id" not in row:
        raise ValueError(f"row {place} has no field 'task_id'; it has {', '.join(row)}.")
    place = f"mbpp/{row['task_id']}"
    tests = tuple(test.strip() for test in row.get("test_list") or ())
    if not tests:
        raise ValueError(f"row {place} has no tests (field 'test_list').")
    setup = "\n".join([*(row.get("test_imports") or ()), row.get("test_setup_code") or ""])
    setup = setup.replace("\r\n", "\n").strip()
    meta = {}
    if setup:
        meta["setup_after" if _unbound_names(setup) else "setup"] = setup
    description = take_text(row, place, "text", "prompt").strip()
    lines = "\n".join([description, "", *tests]).replace('"""', '\\"\\"\\"')
    return Problem(
        id=place,
        prompt=f'"""\n{lines}\n"""\n',
        solution=take_text(row, place, "code").strip(),
        tests=tests,
        hidden_tests=tuple(test.strip() for test in row.get("challenge_test_list") or ()),
        meta=meta,
    )


def _humaneval_problem(row: Mapping[str, Any], place: str) -> Problem:
    name = take_text(row, place, "task_id")
    prompt = take_text(row, name, "prompt")
    entry_point = take_text(row, name, "entry_point")
    check = take_text(row, name, "test")
    tests = _plain_asserts(check, entry_point, name)
    meta = {"entry_point": entry_point, "code_prefix": prompt}
    if not tests:
        meta["check"] = check.strip() + "\n"
    return Problem(
        id=name,
        prompt=prompt,
        solution=take_text(row, name, "canonical_solution").rstrip(),
        tests=tests,
        meta=meta,
    )


def _plain_asserts(check: str, entry_point: str, place: str) -> tuple[str, ...]:
    """Return the asserts of ``check(candidate)`` about ``entry_point``, or none if it does more."""
    module = ast.parse(check)
    functions = [node for node in module.body if isinstance(node, ast.FunctionDef)]
    if not any(node.name == "check" and len(node.args.args) == 1 for node in functions):
        raise ValueError(f"row {place}: its tests define no function check(candidate).")
    others = [node for node in module.body if not isinstance(node, (ast.Assign, ast.FunctionDef))]
    body = functions[-1].body
    if others or len(functions) > 1 or not all(isinstance(node, ast.Assert) for node in body):
        return ()
    argument = functions[0].args.args[0].arg
    for node in ast.walk(functions[0]):
        if isinstance(node, ast.Name) and node.id == argument:
            node.id = entry_point
    return tuple(ast.unparse(node) for node in body)


def _unbound_names(code: str) -> set[str]:
    """Return the names that code at the top level of a module uses and does not itself define."""
    tree = ast.parse(code)
    used, bound = set(), set(dir(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            bound |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
    return used - bound
