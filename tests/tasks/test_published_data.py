"""Loaders and graders against the published data: reference solutions and labels of others."""

import ast
import gzip
import json
import operator
import warnings
from fractions import Fraction
from pathlib import Path

import pytest

from selftrain.tasks import (
    ExactGrader,
    MathGrader,
    NumericGrader,
    Problem,
    extract_after,
    leading_number,
    load_gsm8k,
    load_humaneval,
    load_math,
    load_mbpp,
    load_svamp,
    same_answer,
)

DATA = Path(__file__).parents[3] / "shared/data"
pytestmark = [
    pytest.mark.shared_data,
    pytest.mark.skipif(not DATA.exists(), reason=f"the shared data folder is absent: {DATA}"),
]


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in gzip.open(DATA / name, "rt", encoding="utf-8")]


def statuses(grader, problems, texts) -> set[str]:
    return {grade.status for grade in grader.grade(problems, texts)}


@pytest.mark.parametrize(("part", "number"), [("train", 7473), ("test", 1319)])
def test_every_gsm8k_solution_is_correct_and_another_problems_only_by_chance(part, number):
    task = load_gsm8k(DATA / f"gsm8k/{part}.jsonl.gz")
    solutions = [problem.solution for problem in task.problems]
    assert len(task) == number
    assert statuses(task.grader, task.problems, solutions) == {"correct"}
    shifted = solutions[1:] + solutions[:1]
    plain = [float(problem.answer.replace(",", "")) for problem in task.problems]
    expected = [float(a == b) for a, b in zip(plain, plain[1:] + plain[:1], strict=True)]
    assert [g.score for g in task.grader.grade(task.problems, shifted)] == expected


def test_gsm8k_model_solutions_are_judged_as_the_data_says():
    # 5276 texts of four models, labelled by the authors' own program.
    grader = ExactGrader(extract=leading_number(extract_after("A:")))
    differ = []
    for number, row in enumerate(rows("gsm8k/example_model_solutions.jsonl.gz")):
        problem = Problem(id="0", prompt="q", answer=extract_after("A:")(row["ground_truth"]))
        for model, found in row.items():
            if isinstance(found, dict):
                (grade,) = grader.grade([problem], [found["solution"]])
                if grade.score != float(found["is_correct"]):
                    differ.append((number, model, problem.answer, found))
    assert differ == []


def test_math500_answers_are_what_the_solutions_end_in_and_parse():
    pytest.importorskip("math_verify", reason="the extra `math` is not installed")
    task = load_math(DATA / "math500/test.jsonl.gz", grader=ExactGrader())
    solutions = [problem.solution for problem in task.problems]
    with MathGrader() as grader, MathGrader(strict=True) as strict:
        assert statuses(grader, task.problems, solutions) == {"correct"}
        several = [p for p in task.problems if "," in p.answer or r"\pm" in p.answer]
        assert len(several) >= 30
        assert statuses(strict, several, [p.solution for p in several]) == {"correct"}
        some, others = task.problems[:150], solutions[1:151]
        for problem, grade in zip(some, grader.grade(some, others), strict=True):
            assert grade.score == float(plainly_equal(problem.answer, grade.detail)), problem


def plainly_equal(reference: str, answer: str) -> bool:
    """The few neighbours in the data with the same answer; each a plain number."""
    return same_answer(reference.removeprefix("x="), answer.removeprefix("x="))


def test_gsm_hard_targets_are_compared_exactly_in_every_spelling():
    exact, near = NumericGrader(), NumericGrader(rtol=1e-6)
    for row in rows("gsm_hard/test.jsonl.gz"):
        target = row["target"]
        spelled = repr(target)
        problem = Problem(id="0", prompt=row["input"], answer=spelled)
        fraction = Fraction(spelled)  # the decimal that is written, not the binary number
        texts = [f"#### {fraction}", f"#### {float(spelled):,.20f}", f"The answer is ${spelled}."]
        assert exact.grade([problem], texts[:1])[0].status == "correct"
        assert exact.grade([problem], texts[2:])[0].status == "correct"
        off = fraction + Fraction(1, 10**12)
        assert exact.grade([problem], [f"#### {off}"])[0].status == "wrong"
        assert near.grade([problem], [f"#### {float(target):.6e}"])[0].status == "correct"


OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def value(node: ast.AST) -> Fraction:
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](value(node.left), value(node.right))
    return Fraction(str(node.value))


def test_every_svamp_solution_is_correct_and_its_equation_true_but_for_one():
    task = load_svamp(DATA / "svamp/SVAMP.json.gz")
    assert len(task) == 1000
    assert statuses(task.grader, task.problems, [p.solution for p in task.problems]) == {"correct"}
    untrue = []
    for problem in task.problems:
        equation, _, answer = problem.solution.partition("\n")[0].partition(" = ")
        if value(ast.parse(equation, mode="eval").body) != Fraction(answer):
            untrue.append(problem.id)
    assert untrue == ["svamp/chal-680"]  # 4 - 2 + 3, and the data says 1


SLOW = "mbpp/123"  # its solution runs for seconds


def test_mbpp_has_two_problems_whose_setup_comes_after_the_program():
    after, hidden, number = [], 0, 0
    for split in ("prompt", "test", "validation", "train"):
        task = load_mbpp(DATA / "mbpp/mbpp.jsonl.gz", split=split, grader=ExactGrader())
        number += len(task)
        for problem in task.problems:
            after += [problem.id] if "setup_after" in problem.meta else []
            hidden += bool(problem.hidden_tests)
            assert "setup" not in problem.meta
            assert all(isinstance(ast.parse(t).body[0], ast.Assert) for t in problem.tests)
            assert problem.id == SLOW or passes(problem), problem.id
    assert (number, after) == (974, ["mbpp/367", "mbpp/927"])
    assert hidden > 0


def test_humaneval_has_157_problems_of_plain_asserts_and_all_solutions_pass():
    task = load_humaneval(DATA / "humaneval/HumanEval.jsonl.gz", grader=ExactGrader())
    assert len(task) == 164
    assert sum(bool(problem.tests) for problem in task.problems) == 157
    assert [problem.id for problem in task.problems if not passes(problem)] == []


def passes(problem: Problem) -> bool:
    """Run a reference solution, which is trusted; what models write goes to a sandbox."""
    meta = problem.meta
    program = [meta.get("setup", ""), meta.get("code_prefix", "") + problem.solution]
    program += [meta.get("setup_after", ""), *problem.tests, *problem.hidden_tests]
    if "check" in meta:
        program += [meta["check"], f"check({meta['entry_point']})"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in the data's strings
        try:
            exec("\n".join(program), {"__name__": "program"})
        except AssertionError:
            return False
    return True
