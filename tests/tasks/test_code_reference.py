"""Every reference solution of HumanEval and MBPP passes its tests, and nobody else's do."""

import ast
import gzip
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from selftrain.tasks.base import Grade, Problem
from selftrain.tasks.code import CodeGrader
from selftrain.tasks.sandbox import Sandbox

DATA = Path(__file__).parents[3] / "shared/data"
pytestmark = [
    pytest.mark.shared_data,
    pytest.mark.skipif(not DATA.exists(), reason=f"the shared data folder is absent: {DATA}"),
]
Solved = tuple[Problem, str]


@pytest.fixture(scope="module")
def grader() -> Iterator[CodeGrader]:
    with CodeGrader(sandbox=Sandbox(allow_code_execution=True, timeout=60.0)) as made:
        yield made


def rows(name: str) -> list[dict]:
    with gzip.open(DATA / name, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def humaneval() -> list[Solved]:
    return [humaneval_problem(row) for row in rows("humaneval/HumanEval.jsonl.gz")]


def humaneval_problem(row: dict) -> Solved:
    """Return the plain asserts of ``check`` as tests, and ``check`` itself where it does more."""
    entry_point, check = row["entry_point"], ast.parse(row["test"])
    function = next(node for node in check.body if isinstance(node, ast.FunctionDef))
    meta = {"entry_point": entry_point, "code_prefix": row["prompt"]}
    tests: tuple[str, ...] = ()
    if all(isinstance(node, ast.Assert) for node in function.body):
        for node in ast.walk(function):
            if isinstance(node, ast.Name) and node.id == "candidate":
                node.id = entry_point
        tests = tuple(map(ast.unparse, function.body))
    else:
        meta["check"] = row["test"]
    problem = Problem(id=row["task_id"], prompt=row["prompt"], tests=tests, meta=meta)
    return problem, row["canonical_solution"]


def mbpp(*, all_before: bool = False) -> list[Solved]:
    """Return MBPP; two set-ups use a class that the program defines, and so come after it."""
    found = []
    for row in rows("mbpp/mbpp.jsonl.gz"):
        after = row["task_id"] in (367, 927) and not all_before
        problem = Problem(
            id=str(row["task_id"]),
            prompt=row["text"],
            tests=tuple(row["test_list"] + row["challenge_test_list"]),
            meta={"setup_after" if after else "setup": row["test_setup_code"]},
        )
        found.append((problem, row["code"]))
    return found


def graded(grader: CodeGrader, solved: list[Solved]) -> list[Grade]:
    return grader.grade([problem for problem, _ in solved], [code for _, code in solved])


def by_outputs(grades: list[Grade]) -> tuple[int, int]:
    """Return how many tests were judged by outputs, and how many there were."""
    shares = [grade.detail.split(";")[0].removeprefix("outputs ").split("/") for grade in grades]
    return sum(int(a) for a, _ in shares), sum(int(b) for _, b in shares)


def test_all_164_solutions_of_humaneval_pass(grader):
    grades = graded(grader, humaneval())
    assert Counter(grade.status for grade in grades) == {"passed": 164}
    outputs, tests = by_outputs(grades)
    assert outputs / tests > 0.98


def test_all_974_solutions_of_mbpp_pass(grader):
    grades = graded(grader, mbpp())
    assert Counter(grade.status for grade in grades) == {"passed": 974}
    outputs, tests = by_outputs(grades)
    assert outputs / tests > 0.99


def test_with_every_set_up_in_front_two_of_mbpp_cannot_be_graded(grader):
    chosen = [pair for pair in mbpp(all_before=True) if pair[0].meta["setup"]]
    assert Counter(grade.status for grade in graded(grader, chosen)) == {"ungradable": 2}


def test_no_solution_of_humaneval_passes_for_the_next_problem(grader):
    solved = humaneval()
    codes = [problem.meta["code_prefix"] + code for problem, code in solved]
    shifted = [
        (problem, f"\n    pass\n{code}\n")
        for (problem, _), code in zip(solved, codes[1:] + codes[:1], strict=True)
    ]
    assert [grade for grade in graded(grader, shifted) if grade.score != 0.0] == []
