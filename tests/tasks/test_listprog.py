"""List programs: problems and graders against the programs run by the sandbox."""

import ast

import pytest

from selftrain.tasks.characters import character_tokenizer
from selftrain.tasks.listprog import final_answer, list_programs
from selftrain.tasks.sandbox import Sandbox

SIZES = {"num_sft": 40, "num_train": 20, "num_validation": 5, "num_test": 10}
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(allow_code_execution=True, num_workers=1) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def parts(sandbox):
    return list_programs(**SIZES, sandbox=sandbox)


def test_worked_solutions_pass_the_tests_shown_and_the_hidden_ones(parts):
    texts = [problem.solution for problem in parts.sft.problems]
    for grader in (parts.sft.grader, parts.sft.hidden_grader):
        grades = grader.grade(parts.sft.problems, texts)
        assert {(grade.status, grade.score) for grade in grades} == {("passed", 1.0)}


def test_a_problem_shows_three_pairs_and_hides_ten(parts):
    for problem in parts.test.problems:
        assert (len(problem.tests), len(problem.hidden_tests)) == (3, 10)
        inputs = {test.partition(" ==")[0] for test in (*problem.tests, *problem.hidden_tests)}
        assert len(inputs) == 13


def test_the_prompt_says_what_the_tests_say(parts):
    for problem in parts.train.problems:
        pairs = problem.prompt.removesuffix(";").split(";")
        for pair, test in zip(pairs, problem.tests, strict=True):
            call, expected = test.removeprefix("assert f(").split(") == ")
            given, output = pair.split(">")
            assert [DIGITS.index(c) for c in given] == ast.literal_eval(call)
            value = [DIGITS.index(c) for c in output.removeprefix("=")]
            assert (value[0] if output.startswith("=") else value) == ast.literal_eval(expected)


def test_what_fits_the_pairs_shown_alone_is_caught_by_the_hidden_ones(parts):
    problem = parts.test.problems[0]
    table = {
        test.removeprefix("assert f(").split(") == ")[0]: test.split(" == ")[1]
        for test in problem.tests
    }
    cases = ", ".join(f"{key!r}: {value}" for key, value in table.items())
    cheat = f"{{{cases}}}.get(str(x), 0)"
    assert parts.test.grader.grade([problem], [cheat])[0].score == 1
    assert parts.test.hidden_grader.grade([problem], [cheat])[0].score == 0


@pytest.mark.parametrize(
    "text", ["x[", "", "y", "x[9]", "1/0", "print(x)", "exit(0)", "x if x else"]
)
def test_broken_expressions_score_nothing(parts, text):
    assert parts.test.grader.grade(parts.test.problems[:1], [text])[0].score == 0


def test_the_final_answer_does_not_depend_on_spaces_and_brackets(parts):
    problem = parts.test.problems[0]
    assert final_answer(problem, " [ v+1 for v in (x) ]\n") == final_answer(
        problem, "[v+1 for v in x]"
    )
    assert final_answer(problem, "sorted(x)[::-1]") != final_answer(problem, "sorted(x)")
    assert final_answer(problem, "sorted(x") is None


def test_texts_fit_the_tokenizer_and_its_context(parts):
    tokenizer = character_tokenizer()
    for problem in parts.sft.problems:
        ids = tokenizer(problem.prompt + problem.solution)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert len(ids) < 128


def test_the_same_seed_gives_the_same_problems(parts, sandbox):
    again = list_programs(**SIZES, sandbox=sandbox)
    assert again.test.problems == parts.test.problems
    assert list_programs(**SIZES, seed=1, sandbox=sandbox).test.problems != again.test.problems


@pytest.mark.parametrize(
    ("name", "value"), [("max_length", 2), ("max_length", 10), ("num_test", 0)]
)
def test_bad_arguments_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        list_programs(**{**SIZES, name: value})
