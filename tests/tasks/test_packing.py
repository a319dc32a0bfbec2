"""Programs that share a process get the outcomes that they get alone, and only harmless ones do."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selftrain.tasks.packing import run_packed
from selftrain.tasks.sandbox import Outcome, Program, Result, Sandbox

TEMPLATE = "def f(x):\n    return {}"
CALLS = ("f([3, 1, 2])", "f([])", "f([0, 5, 5, 9])")
HARMLESS = [
    "x",
    "x[::-1][1:]",
    "sorted([v + 1 for v in x if v % 2])",
    "[9 - v for v in x][-1]",
    "sum(v * w for v in x for w in x[:2])",
    "max(x) if len(x) > 2 else -1",
    "[(i, v) for i, v in enumerate(x)]",
    "x[0] // x[1]",
    "[x] * 3",
    "not x or x[0] < x[-1]",
]
MEDDLING = [
    "__import__('os')",
    "x.append(1)",
    "x.__class__",
    "(lambda: x)()",
    "[y := 1, y]",
    "[0 for x[0] in [1]]",
    "[0 for sorted in [len]]",
    "f(x)",
    "program_0(x)",
    "[program_0 for program_0 in x] or program_0",
    "open(0)",
    "print(x)",
    "getattr(x, 0)",
    "9 ** 9 ** 9",
    "1 << 9",
    "'%9d' % 1",
    "f'{x}'",
    "max(*x)",
    "sorted(x, key=len)",
    "{v: v for v in x}",
    "(yield)",
    "v",
    "sorted",
]
OTHER = [
    "def f(x, y=print()):\n    return x",
    "def f(x: print()):\n    return x",
    "def f(x) -> print():\n    return x",
    "def f(*x):\n    return x",
    "@print\ndef f(x):\n    return x",
    "def f(x):\n    return x\nimport os",
    "def f(x):\n    x = 1\n    return x",
    "def f(len):\n    return len(1)",
    "async def f(x):\n    return x",
    "def f(x):\n    return",
    "f = 1",
    "",
    "def f(x:",
    "def f(x):\n    return " + "-" * 600 + "1",
]


class Recorder:
    """In the place of a sandbox: it keeps what it is asked to run."""

    def __init__(self) -> None:
        self.programs: list[Program] = []

    def run(self, programs):
        self.programs += programs
        return [Outcome("finished", (Result("finished", 0),) * len(p.calls)) for p in programs]


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(allow_code_execution=True, num_workers=1, timeout=20.0) as made:
        yield made


def program(expression: str) -> Program:
    return Program(code=TEMPLATE.format(expression), calls=CALLS)


@given(st.lists(st.sampled_from(HARMLESS + MEDDLING[:5] + ["x["]), min_size=1, max_size=12))
@settings(max_examples=15, deadline=None)
def test_an_outcome_is_what_it_is_alone(sandbox, expressions):
    programs = [program(expression) for expression in expressions]
    together = run_packed(sandbox, programs, max_programs=5)
    for one, other in zip(together, sandbox.run(programs), strict=True):
        assert one.status == other.status
        mine, others = ([(r.status, repr(r.value)) for r in o.results] for o in (one, other))
        assert mine == others


@pytest.mark.parametrize("expression", HARMLESS)
def test_a_harmless_expression_shares_a_process(expression):
    recorder = Recorder()
    run_packed(recorder, [program(expression)] * 7, max_programs=4)
    assert [len(p.calls) for p in recorder.programs] == [12, 9]


@pytest.mark.parametrize("code", [TEMPLATE.format(e) for e in MEDDLING] + OTHER)
def test_what_could_meddle_runs_alone(code):
    recorder = Recorder()
    programs = [Program(code=code, calls=CALLS)] * 3
    run_packed(recorder, programs, max_programs=4)
    assert recorder.programs == programs


@pytest.mark.parametrize("part", ["setup", "after", "asserts"])
def test_a_program_with_further_parts_runs_alone(part):
    recorder = Recorder()
    further = {part: ("assert f([1])",) if part == "asserts" else "import os"}
    programs = [Program(code=TEMPLATE.format("x"), calls=CALLS, **further)] * 2
    run_packed(recorder, programs, max_programs=4)
    assert recorder.programs == programs


@pytest.mark.parametrize(
    "greedy",
    [
        "[0 for a in x * 9999999 for b in x * 9999999]",  # time or memory
        "x * 99999999",  # memory, or too much to return
        "[x * 99999 for v in x]",
    ],
)
def test_a_program_that_takes_too_much_fails_alone(greedy):
    with Sandbox(allow_code_execution=True, num_workers=1, timeout=1.0) as sandbox:
        programs = [program(e) for e in ("x", greedy, "x[1:]")]
        outcomes = run_packed(sandbox, programs, max_programs=8)
    assert [outcome.status for outcome in outcomes[::2]] == ["finished"] * 2
    assert outcomes[1].status in ("timeout", "memory", "output_limit")
    assert outcomes[2].results[0].value == [1, 2]


def test_nothing_is_packed_where_one_program_is_allowed():
    recorder = Recorder()
    programs = [program("x")] * 3
    run_packed(recorder, programs, max_programs=1)
    assert recorder.programs == programs
    assert run_packed(recorder, [], max_programs=4) == []
