"""Formulas compared in processes that can be killed."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from selftrain.errors import GradingError, MissingExtraError
from selftrain.tasks import MathGrader, Problem, _math_pool

pytest.importorskip("math_verify", reason="the extra `math` is not installed")

# Takes years to evaluate, inside single integer operations that no Python signal interrupts.
HANGS = r"\boxed{9^{9^{9^{9}}}}"


@pytest.fixture(scope="module")
def grader():
    with MathGrader(num_workers=1) as grader:
        yield grader


@pytest.fixture(scope="module")
def strict_grader():
    with MathGrader(num_workers=1, strict=True) as grader:
        yield grader


def children() -> set[int]:
    """Return the processes of ours that compare formulas, zombies included."""
    mine = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            status = (path / "status").read_text()
        except OSError:
            continue
        if f"\nPPid:\t{os.getpid()}\n" in status:
            mine.add(int(path.name))
    return mine


def problem(answer: str) -> Problem:
    return Problem(id="0", prompt="q", answer=answer)


def graded(grader, reference: str, answer: str) -> tuple[float | None, str]:
    (grade,) = grader.grade([problem(reference)], [rf"So \boxed{{{answer}}}."])
    return grade.score, grade.status


@pytest.mark.parametrize(
    ("reference", "answer", "equal"),
    [
        (r"\frac{1}{2}", "0.5", True),
        (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}", True),
        ("(x+1)^2", "x^2+2x+1", True),
        ("(x+1)^2", "x^2+2x+2", False),
        (r"1 \pm \sqrt{19}", r"1-\sqrt{19}, 1+\sqrt{19}", True),
        ("x=5", "5", True),
        ("5", "x = 5", True),
        (r"\text{Evelyn}", "Evelyn", True),
        (r"\text{Evelyn}", "Monica", False),
        (r"90^\circ", "90", True),
        (r"\infty", "5", False),
        ("3, 5, 7", "3, 5", False),
        ("1,234", "1234", True),
    ],
)
def test_formulas_are_compared_as_mathematics(grader, reference, answer, equal):
    assert graded(grader, reference, answer) == (float(equal), "correct" if equal else "wrong")


def test_the_reference_is_asked_about_first(grader):
    # A relation as the answer is read as the set that the reference is; not the other way round.
    assert graded(grader, "1 < x < 2", "(1, 2)") == (1.0, "correct")
    assert graded(grader, "(1, 2)", "1 < x < 2") == (0.0, "wrong")


@pytest.mark.parametrize("reference", ["", r"\frac{", "nan?!"])
def test_a_reference_that_cannot_be_parsed_gives_no_score_to_any_answer(grader, reference):
    texts = [rf"\boxed{{{reference}}}", r"\boxed{5}", "no answer"]
    for grade in grader.grade([problem(reference)] * 3, texts):
        assert (grade.score, grade.status) == (None, "ungradable")


def test_no_answer_and_an_answer_that_cannot_be_parsed_score_nothing(grader):
    assert grader.grade([problem("5")], ["five"])[0].status == "no_answer"
    assert graded(grader, "5", r"\frac{") == (0.0, "no_answer")  # its box is not closed
    assert graded(grader, "5", r"\frac{}{}\left(") == (0.0, "wrong")


@pytest.mark.parametrize(
    ("reference", "answer", "equal"),
    [
        ("1, 2", "2, 1", True),
        ("1, 2", r"\{2, 1\}", True),
        ("1, 2", "1, 1, 2", True),
        ("1, 2", "{2, 1}", True),
        ("1, 2", "1", False),
        ("1", "1, 2", False),
        ("1, 2", "(1, 2)", False),  # Math-Verify takes them for equal
        ("(1, 2)", "(2, 1)", False),
        ("(1, 2)", r"\left( \frac{2}{2}, 2 \right)", True),
        ("(1, 2]", "(1, 2)", False),
        (r"1 \pm \sqrt{19}", r"1-\sqrt{19}, 1+\sqrt{19}", True),
        (r"\frac{1}{2}", "(0.5)", True),
        ("1,234", "1234", True),
        (r"x = 1 \text{ or } x = 2", "2, 1", True),
        (r"f(x, y), 2", "2, f(x, y)", True),
    ],
)
def test_strict_comparison_goes_part_by_part(strict_grader, reference, answer, equal):
    assert graded(strict_grader, reference, answer)[0] == float(equal)


def test_a_comparison_that_hangs_is_killed_in_time_and_the_next_one_works():
    timeout = 0.5
    with MathGrader(num_workers=1, timeout=timeout) as grader:
        grader.grade([problem("5")], [r"\boxed{5}"])  # the process has been started by now
        hung, fine = grader.grade([problem("5")] * 2, [HANGS, r"\boxed{\sqrt{25}}"])
        assert hung.milliseconds < 1e3 * (timeout * _math_pool._PATIENCE + 1)
        assert (hung.score, hung.status) == (0.0, "timeout")
        assert (fine.score, fine.status) == (1.0, "correct")


def test_a_process_that_does_not_run_at_all_is_killed():
    before = children()
    with MathGrader(num_workers=1, timeout=0.3) as grader:
        grader.grade([problem("5")], [r"\boxed{5}"])
        (worker,) = children() - before
        os.kill(worker, signal.SIGSTOP)
        (grade,) = grader.grade([problem("5")], [r"\boxed{\sqrt{25}}"])
        assert (grade.score, grade.status) == (0.0, "timeout")
        assert worker not in children()


FAULTY_WORKER = """
import json, os, sys
print(json.dumps({"result": "ready"}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if "dies" in request["answer"]:
        os._exit(1)
    reply = {"error": "RecursionError"} if "fails" in request["answer"] else {"result": True}
    print(json.dumps(reply), flush=True)
"""


def test_an_answer_that_kills_the_process_has_no_score_and_one_that_fails_is_wrong(
    monkeypatch, tmp_path
):
    faulty = tmp_path / "worker.py"
    faulty.write_text(FAULTY_WORKER)
    monkeypatch.setattr(_math_pool, "_WORKER", faulty)
    with MathGrader(num_workers=1) as grader:
        assert graded(grader, "5", "it dies") == (None, "ungradable")
        assert graded(grader, "5", "it fails") == (0.0, "wrong")
        assert graded(grader, "5", "it works") == (1.0, "correct")
        assert graded(grader, "it fails", "it works") == (None, "ungradable")


def test_a_process_that_somebody_killed_is_replaced_and_no_verdict_lost():
    before = children()
    with MathGrader(num_workers=1) as grader:
        grader.grade([problem("5")], [r"\boxed{5}"])
        (worker,) = children() - before
        os.kill(worker, signal.SIGKILL)
        assert graded(grader, "5", r"\sqrt{25}") == (1.0, "correct")


def test_no_process_is_left_by_close_by_the_garbage_collector_or_before_use():
    before = children()
    with MathGrader(num_workers=2) as grader:
        assert children() == before  # started when needed
        answers = [rf"\boxed{{\sqrt{{{n}}}}}" for n in range(2, 8)]
        grader.grade([problem("5")] * 6, answers)
        assert 1 <= len(children() - before) <= 2
    assert children() == before
    graded(grader, "5", r"\sqrt{25}")  # it may be used again
    assert len(children() - before) == 1
    del grader
    gc.collect()
    assert children() == before


def test_an_interrupt_from_the_keyboard_does_not_reach_the_processes():
    before = children()
    with MathGrader(num_workers=1) as grader:
        grader.grade([problem("5")], [r"\boxed{5}"])
        (worker,) = children() - before
        assert os.getpgid(worker) != os.getpgid(0)  # a terminal signals its foreground group


def test_it_works_in_a_thread_that_is_not_the_main_one():
    found = []
    with MathGrader(num_workers=1) as grader:
        thread = threading.Thread(target=lambda: found.append(graded(grader, "5", r"\sqrt{25}")))
        thread.start()
        thread.join()
    assert found == [(1.0, "correct")]


def test_a_worker_that_cannot_start_is_an_error_and_not_a_verdict(monkeypatch, tmp_path):
    broken = tmp_path / "worker.py"
    broken.write_text("raise SystemExit(3)")
    monkeypatch.setattr(_math_pool, "_WORKER", broken)
    with (
        MathGrader(num_workers=1) as grader,
        pytest.raises(GradingError, match="could not be started"),
    ):
        graded(grader, "5", r"\sqrt{25}")


def test_the_worker_ends_with_its_parent_even_in_the_middle_of_a_comparison(tmp_path):
    # A parent that is killed outright while its worker hangs.
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, sys, threading, time\n"
        "from selftrain.tasks import MathGrader, Problem\n"
        "grader = MathGrader(num_workers=1, timeout=1.0)\n"
        "problem = Problem(id='0', prompt='q', answer='5')\n"
        "grader.grade([problem], [r'\\boxed{5}'])\n"
        f"hang = lambda: grader.grade([problem], [{HANGS!r}])\n"
        "threading.Thread(target=hang, daemon=True).start()\n"
        "time.sleep(0.2)\n"
        "(worker,) = grader._pool._workers\n"
        "print(worker._process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    worker = int(done.stdout)
    deadline = time.monotonic() + 20
    while running(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(worker)


def running(process: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False


def test_answers_equal_in_a_roundabout_way_are_one_class(grader):
    answers = ["0.5", r"\frac{2}{4}", None, "x=1/2", "7", r"\sqrt{49}", "8"]
    found = grader.answer_classes(problem(r"\frac12"), answers)
    half, seven, eight = r"\frac12", "7", "8"
    assert found == [half, half, None, half, seven, seven, eight]


def test_final_answers_have_one_form(grader):
    half = problem(r"\frac12")
    boxed = [rf"\boxed{{{answer}}}" for answer in ("0.5", "x = 1/2", r"\frac{\sqrt{4}}{4}")]
    assert {grader.final_answer(half, text) for text in boxed} == {"1/2"}
    other = [rf"\boxed{{{answer}}}" for answer in (r"\sqrt{12}", r"2\sqrt{3}", r"y = \sqrt{12}")]
    assert len({grader.final_answer(half, text) for text in other}) == 1
    assert grader.final_answer(half, "none") is None
    assert grader.final_answer(half, r"\boxed{\frac{}{}\left(}") is not None  # text, as it stands


@pytest.mark.parametrize("arguments", [{"num_workers": 0}, {"timeout": 0.0}, {"timeout": -1.0}])
def test_limits_that_are_none_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        MathGrader(**arguments)


def test_without_math_verify_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'selftrain\[math\]'"):
        MathGrader()
