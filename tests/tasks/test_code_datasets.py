"""Loaders of programming problems, on a few rows of our own."""

import json

import pytest

from selftrain.tasks import Grade, load_humaneval, load_mbpp

MBPP = [
    {
        "task_id": 2,
        "text": "Write a function to double a number.",
        "code": "def double(x):\r\n    return 2 * x",
        "test_list": ["assert double(1) == 2", "assert double(0) == 0 "],
        "test_setup_code": "",
        "challenge_test_list": ["assert double(-1) == -2"],
    },
    {
        "task_id": 3,
        "text": "Write a function to sum a tree.",
        "code": "class Node:\n    value = 4\ndef total(node):\n    return node.value",
        "test_list": ["assert total(root) == size"],
        "test_setup_code": "root = Node()\r\nsize = int(4)",
        "challenge_test_list": [],
    },
    {
        "task_id": 601,
        "prompt": 'Write "a" function to round up.',
        "code": "import math\ndef up(x):\n    return math.ceil(x)",
        "test_list": ["assert up(math.pi) == 4"],
        "test_imports": ["import math"],
    },
]
HUMANEVAL = [
    {
        "task_id": "HumanEval/0",
        "prompt": 'def inc(x: int) -> int:\n    """Return x + 1."""\n',
        "entry_point": "inc",
        "canonical_solution": "    return x + 1\n",
        "test": "METADATA = {}\n\ndef check(candidate):\n    assert candidate(1) == 2, 'one'\n"
        "    assert abs(candidate(candidate(0.5)) - 2.5) < 1e-6\n",
    },
    {
        "task_id": "HumanEval/1",
        "prompt": "def dec(x):\n",
        "entry_point": "dec",
        "canonical_solution": "    return x - 1\n",
        "test": "def check(candidate):\n"
        "    for x in range(3):\n"
        "        assert candidate(x) == x - 1\n",
    },
]


class InProcess:
    """Runs programs of this file's rows; real ones go to a sandbox."""

    def __init__(self, hidden: bool = False) -> None:
        self._hidden = hidden

    def grade(self, problems, texts):
        return [
            Grade(float(self._passes(p, t)), "passed") for p, t in zip(problems, texts, strict=True)
        ]

    def _passes(self, problem, text):
        meta = problem.meta
        tests = problem.hidden_tests if self._hidden else problem.tests
        parts = [meta.get("setup", ""), meta.get("code_prefix", "") + text]
        parts += [meta.get("setup_after", ""), *tests]
        if "check" in meta:
            parts += [meta["check"], f"check({meta['entry_point']})"]
        try:
            exec("\n".join(parts), {})
        except AssertionError:
            return False
        return True


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def mbpp(tmp_path):
    return write(tmp_path / "mbpp.jsonl", MBPP)


def solved(task) -> list[float | None]:
    return [g.score for g in task.grader.grade(task.problems, [p.solution for p in task.problems])]


def test_mbpp_splits_are_made_by_number_and_solutions_pass(mbpp):
    prompt = load_mbpp(mbpp, split="prompt", grader=InProcess())
    train = load_mbpp(mbpp, grader=InProcess())
    assert [p.id for p in prompt.problems] == ["mbpp/2", "mbpp/3"]
    assert [p.id for p in train.problems] == ["mbpp/601"]
    assert solved(prompt) + solved(train) == [1.0] * 3
    wrong = prompt.grader.grade(prompt.problems[:1], ["def double(x): return x"])
    assert wrong[0].score == 0.0


def test_an_mbpp_prompt_is_a_docstring_with_the_tests(mbpp):
    (problem,) = load_mbpp(mbpp, grader=InProcess()).problems
    asked = 'Write "a" function to round up.\n\nassert up(math.pi) == 4'
    assert problem.prompt == f'"""\n{asked}\n"""\n'


def test_setup_code_that_needs_the_program_goes_after_it(mbpp):
    double, tree = load_mbpp(mbpp, split="prompt", grader=InProcess()).problems
    assert double.meta == {}
    assert tree.meta == {"setup_after": "root = Node()\nsize = int(4)"}
    (up,) = load_mbpp(mbpp, grader=InProcess()).problems
    assert up.meta == {"setup": "import math"}


def test_challenging_tests_are_hidden_ones(mbpp):
    hidden = InProcess(hidden=True)
    task = load_mbpp(mbpp, split="prompt", grader=InProcess(), hidden_grader=hidden)
    first = task.problems[0]
    assert first.hidden_tests == ("assert double(-1) == -2",)
    cheat = "def double(x): return abs(2 * x)"
    assert task.grader.grade([first], [cheat])[0].score == 1.0
    assert task.hidden_grader.grade([first], [cheat])[0].score == 0.0


def test_mbpp_shots_are_of_the_prompt_split_and_not_asked_themselves(mbpp):
    train = load_mbpp(mbpp, num_shots=2, grader=InProcess())
    assert train.prefix.count("def ") == 2
    shown = load_mbpp(mbpp, split="prompt", num_shots=1, grader=InProcess())
    assert len(shown) == 1


def test_humaneval_asserts_are_about_the_function_itself(tmp_path):
    task = load_humaneval(write(tmp_path / "h.jsonl", HUMANEVAL), grader=InProcess())
    inc, dec = task.problems
    assert inc.tests == (
        "assert inc(1) == 2, 'one'",
        "assert abs(inc(inc(0.5)) - 2.5) < 1e-06",
    )
    assert "check" not in inc.meta
    assert dec.tests == ()
    assert "for x in range(3)" in dec.meta["check"]
    assert solved(task) == [1.0, 1.0]
    assert [g.score for g in task.grader.grade([inc, dec], ["    return x"] * 2)] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_list": []}, "row mbpp/601 has no tests"),
        ({"test_list": None}, "row mbpp/601 has no tests"),
        ({"code": ""}, "row mbpp/601: 'code' must be text"),
        ({"task_id": 9999}, "no problems of the split 'train'"),
    ],
)
def test_bad_mbpp_rows_are_named(tmp_path, change, message):
    path = write(tmp_path / "a.jsonl", [{**MBPP[2], **change}])
    with pytest.raises(ValueError, match=message):
        load_mbpp(path, grader=InProcess())


def test_a_split_that_mbpp_has_not_is_refused(mbpp):
    with pytest.raises(ValueError, match="split must be one of prompt, test, validation, train"):
        load_mbpp(mbpp, split="dev", grader=InProcess())


def test_humaneval_rows_without_a_check_are_named(tmp_path):
    path = write(tmp_path / "a.jsonl", [{**HUMANEVAL[0], "test": "assert inc(1) == 2"}])
    with pytest.raises(ValueError, match=r"row HumanEval/0: its tests define no function check"):
        load_humaneval(path, grader=InProcess())
