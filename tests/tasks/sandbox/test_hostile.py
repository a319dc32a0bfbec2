"""No hostile program passes, harms the parent, or leaves anything behind."""

import os
import runpy
from collections import Counter
from pathlib import Path

import pytest

from selftrain.tasks.base import Grade, Problem
from selftrain.tasks.code import CodeGrader
from selftrain.tasks.sandbox.launch import Launch
from selftrain.tasks.sandbox.worker import Worker

_MODULE = runpy.run_path(str(Path(__file__).with_name("hostile.py")))
HOSTILE, TESTS, PREPARE = _MODULE["HOSTILE"], _MODULE["TESTS"], _MODULE["prepare"]
NAMES = [hostile.name for hostile in HOSTILE]
GOOD = "def f(x): return x + 1"


def grade_all(start, level: str, file: Path, *, parent: int) -> dict[str, Grade]:
    """Grade every program, those that may run into the time limit under a short one."""
    grades = {}
    for slow, timeout in ((True, 0.7), (False, 30.0)):
        chosen = [h for h in HOSTILE if ("timeout" in h.expected) is slow]
        codes = [PREPARE(h, parent=parent, file=str(file)) for h in chosen]
        codes = [f"```\n{code}\n```" for code in codes] + [GOOD]
        problems = [Problem(id="add", prompt="Add 1.", tests=TESTS)] * len(codes)
        sandbox = start(level, timeout=timeout, memory_mb=128, num_workers=4)
        with CodeGrader(sandbox=sandbox, mode="outputs") as grader:
            *found, last = grader.grade(problems, codes)
        assert (last.status, last.score) == ("passed", 1.0)
        grades |= {h.name: grade for h, grade in zip(chosen, found, strict=True)}
    return grades


@pytest.fixture(scope="module", params=["L2", "L1"])
def level(request) -> str:
    if request.param == "L1":
        worker = Worker(Launch("L1"))
        worker.close()
        if not (worker.filtered and worker.confined):
            pytest.skip("L1 without seccomp and Landlock would let them harm this machine")
    return request.param


@pytest.fixture(scope="module")
def grades(start, level, tmp_path_factory, scratch_folders) -> dict[str, Grade]:
    file = tmp_path_factory.mktemp("outside") / "secret"
    file.write_text("secret")
    found = grade_all(start, level, file, parent=os.getpid())
    assert file.read_text() == "secret"
    return found


def test_there_are_forty_and_their_names_differ():
    assert len(HOSTILE) >= 40
    assert max(Counter(NAMES).values()) == 1


@pytest.mark.parametrize("hostile", HOSTILE, ids=NAMES)
def test_a_hostile_program_has_its_status_and_no_score(hostile, grades):
    grade = grades[hostile.name]
    assert grade.status in hostile.expected, grade.detail
    assert grade.score == 0.0


def test_a_grade_says_under_which_level_it_ran(grades, level):
    assert {grade.level for grade in grades.values()} == {level}


def test_nothing_is_left_behind(grades, descendants, scratch_folders):
    assert descendants() == set()
    assert scratch_folders() == set()
    assert not Path("/selftrain-was-here").exists()


def test_namespaces_hold_without_the_filter_of_system_calls(
    start, monkeypatch, tmp_path, descendants
):
    """Then processes can be started, and have to be found and killed."""
    others = descendants()
    start("L2").close()
    monkeypatch.setattr(
        "selftrain.tasks.sandbox.pool.launches", lambda *_, **__: [Launch("L2", filtered=False)]
    )
    file = tmp_path / "secret"
    file.write_text("secret")
    grades = grade_all(start, "L2", file, parent=os.getpid())
    assert {name: g.status for name, g in grades.items() if g.score != 0.0} == {}
    assert file.read_text() == "secret"
    assert descendants() <= others
