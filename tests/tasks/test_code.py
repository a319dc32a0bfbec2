"""Programs are scored by their tests alone, and the grade says how."""

import pytest

from selftrain.errors import GradingError
from selftrain.tasks.base import Problem
from selftrain.tasks.code import CodeGrader, extract_code
from selftrain.tasks.sandbox import Outcome, Program, Result, Sandbox

ADD = Problem(id="add", prompt="Add 1.", tests=("assert f(1) == 2", "assert f(-1) == 0"))
GOOD = "def f(x): return x + 1"


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(allow_code_execution=True, timeout=20.0) as made:
        yield made


def status(grader: CodeGrader, problem: Problem, text: str) -> tuple[str, float | None]:
    grade = grader.grade([problem], [text])[0]
    return grade.status, grade.score


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x = 1", "x = 1"),
        ("    return x\n", "    return x"),
        ("Sure:\n```python\nx = 1\n```\nDone.", "x = 1"),
        ("```\na\n```\nBetter:\n```py\nb\nc\n```", "b\nc"),
        ("```python\nx = 1\n", "x = 1"),
        ("```python\nx = '''\n\n'''\n  ```", "x = '''\n\n'''"),
        ("```python\n```", None),
        (" \n", None),
        ("", None),
    ],
)
def test_the_program_is_the_last_block_or_all_of_the_text(text, code):
    assert extract_code(text) == code


@pytest.mark.parametrize("mode", ["auto", "outputs", "asserts"])
def test_a_program_passes_only_if_all_tests_do(sandbox, mode):
    grader = CodeGrader(sandbox=sandbox, mode=mode)
    assert status(grader, ADD, f"```python\n{GOOD}\n```") == ("passed", 1.0)
    assert status(grader, ADD, "def f(x): return 2") == ("failed", 0.0)
    assert status(grader, ADD, "def f(x): return [][0]") == ("error", 0.0)
    assert status(grader, ADD, "def f(x) return") == ("syntax", 0.0)
    assert status(grader, ADD, "") == ("no_code", 0.0)


def test_partial_scores_are_the_share_of_tests_passed(sandbox):
    grader = CodeGrader(sandbox=sandbox, partial=True)
    assert status(grader, ADD, "def f(x): return 2") == ("failed", 0.5)
    assert status(grader, ADD, "while True print()") == ("syntax", 0.0)
    assert status(grader, ADD, GOOD) == ("passed", 1.0)


def test_the_detail_says_how_many_tests_were_judged_by_outputs(sandbox):
    tests = (*ADD.tests, "assert f(1) == f(1)", "assert True, 'says nothing'")
    problem = Problem(id="0", prompt="?", tests=tests)
    grade = CodeGrader(sandbox=sandbox).grade([problem], [GOOD])[0]
    assert grade.detail == "outputs 2/3"
    failed = CodeGrader(sandbox=sandbox).grade([problem], ["def f(x): return 2"])[0]
    assert failed.detail == "outputs 2/3; assert f(-1) == 0: got 2"
    assert failed.level == sandbox.level
    assert failed.milliseconds > 0


def test_hidden_tests_are_another_grader_s(sandbox):
    problem = Problem(id="0", prompt="?", tests=("assert f(1) == 2",), hidden_tests=ADD.tests)
    cheat = "def f(x): return 2"
    assert status(CodeGrader(sandbox=sandbox), problem, cheat) == ("passed", 1.0)
    assert status(CodeGrader(sandbox=sandbox, hidden=True), problem, cheat) == ("failed", 0.0)


def test_a_template_makes_a_program_of_an_expression(sandbox):
    grader = CodeGrader(sandbox=sandbox, template="def f(x):\n    return {code}")
    assert status(grader, ADD, "x + 1") == ("passed", 1.0)
    assert status(grader, ADD, "{x: x + 1}[x]") == ("passed", 1.0)
    assert status(grader, ADD, "x +") == ("syntax", 0.0)


def test_set_up_runs_before_and_after_as_the_problem_says(sandbox):
    grader = CodeGrader(sandbox=sandbox)
    before = Problem(id="0", prompt="?", tests=("assert f() == 5",), meta={"setup": "a = 5"})
    assert status(grader, before, "b = a\ndef f(): return b") == ("passed", 1.0)
    after = Problem(id="0", prompt="?", tests=ADD.tests, meta={"setup_after": "n = Node()"})
    assert status(grader, after, f"class Node: pass\n{GOOD}") == ("passed", 1.0)
    assert status(grader, after, GOOD) == ("error", 0.0)


def test_a_problem_whose_own_set_up_fails_has_no_score(sandbox):
    problem = Problem(id="0", prompt="?", tests=ADD.tests, meta={"setup": "1/0"})
    assert status(CodeGrader(sandbox=sandbox), problem, GOOD) == ("ungradable", None)


def test_a_claim_that_the_set_up_failed_is_checked(sandbox):
    problem = Problem(id="0", prompt="?", tests=ADD.tests, meta={"setup": "a = 1"})
    claim = 'import os\nos.write(3, b\'["raised", "setup", "error", ""]\\n\')\nos._exit(0)'
    assert status(CodeGrader(sandbox=sandbox), problem, claim) == ("error", 0.0)


def test_a_completion_goes_on_with_the_head_of_a_function(sandbox):
    meta = {"code_prefix": "def f(x):\n    '''Add 1.'''\n", "entry_point": "f"}
    problem = Problem(id="0", prompt=meta["code_prefix"], tests=ADD.tests, meta=meta)
    grader = CodeGrader(sandbox=sandbox)
    assert status(grader, problem, "    return x + 1\n") == ("passed", 1.0)
    assert status(grader, problem, f"```python\n{GOOD}\n```") == ("passed", 1.0)
    assert status(grader, problem, "    pass") == ("failed", 0.0)


def test_a_check_function_is_called_with_the_entry_point(sandbox):
    check = "def check(candidate):\n    for i in range(5):\n        assert candidate(i) == i + 1\n"
    problem = Problem(id="0", prompt="?", meta={"check": check, "entry_point": "f"})
    grader = CodeGrader(sandbox=sandbox)
    grade = grader.grade([problem], [GOOD])[0]
    assert (grade.status, grade.detail) == ("passed", "outputs 0/1")
    assert status(grader, problem, "def f(x): return 1") == ("failed", 0.0)
    assert status(grader, problem, "import sys\nsys.exit(0)") == ("error", 0.0)


@pytest.mark.parametrize(
    "cheat",
    [
        "import os\nos._exit(0)",
        "import sys\nsys.exit(0)",
        "import sys\ndef f(x): sys.exit(0)",
        'import os\nos.write(3, b\'["passed", 0, ""]\\n["passed", 1, null]\\n\')\nos._exit(0)',
        "def f(x):\n    try: return 0\n    finally: 1/0",
    ],
)
def test_in_mode_asserts_ending_early_is_no_way_to_pass(sandbox, cheat):
    assert status(CodeGrader(sandbox=sandbox, mode="asserts"), ADD, cheat)[1] == 0.0


def test_mode_asserts_is_as_weak_as_the_documents_say(sandbox):
    """If this fails, docs/security.md may promise more."""
    liar = "class A:\n    def __eq__(self, other): return True\ndef f(x): return A()"
    assert status(CodeGrader(sandbox=sandbox, mode="asserts"), ADD, liar) == ("passed", 1.0)
    assert status(CodeGrader(sandbox=sandbox, mode="outputs"), ADD, liar) == ("failed", 0.0)


def test_a_program_that_could_not_be_run_has_no_score():
    outcome = Outcome("sandbox_error", (Result("sandbox_error"),) * 2, "no machine")
    grader = CodeGrader(sandbox=Sandbox(runner=lambda programs: [outcome for _ in programs]))
    assert status(grader, ADD, GOOD) == ("sandbox_error", None)


def test_a_remote_runner_is_sent_no_expected_value():
    sent: list[Program] = []

    def run(programs):
        sent.extend(programs)
        return [Outcome("finished", (Result("finished", 7),), level="L3") for _ in programs]

    problem = Problem(id="0", prompt="?", tests=("assert f(1) == 7",))
    grader = CodeGrader(sandbox=Sandbox(runner=run), mode="outputs")
    assert grader.grade([problem], ["code"])[0].status == "passed"
    assert sent == [Program(code="code", calls=("f(1)",))]


@pytest.mark.parametrize(
    ("problem", "mode", "message"),
    [
        (Problem(id="7", prompt="?"), "auto", "'7' has no tests"),
        (Problem(id="7", prompt="?", tests=("assert True",)), "auto", "'7' has no tests"),
        (Problem(id="7", prompt="?", tests=("assert (",)), "auto", "no Python"),
        (Problem(id="7", prompt="?", tests=("assert f(1) == f(2)",)), "outputs", "mode='auto'"),
        (
            Problem(id="7", prompt="?", meta={"check": "", "entry_point": "f"}),
            "outputs",
            "function check",
        ),
    ],
)
def test_problems_that_cannot_be_judged_are_named(problem, mode, message):
    grader = CodeGrader(sandbox=Sandbox(runner=lambda programs: []), mode=mode)
    with pytest.raises(GradingError, match=message):
        grader.grade([problem], ["x"])


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="mode must be one of"):
        CodeGrader(mode="output")
    with pytest.raises(ValueError, match=r"template must hold \{code\}"):
        CodeGrader(template="return x")
    with pytest.raises(ValueError, match="1 problems but 2 texts"):
        CodeGrader().grade([ADD], ["a", "b"])
