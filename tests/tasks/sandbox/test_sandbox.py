"""What a sandbox promises to those who use it well."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from selftrain.errors import SandboxError
from selftrain.tasks.sandbox import Outcome, Program, Result, Sandbox
from selftrain.tasks.sandbox.launch import Launch, launches
from selftrain.tasks.sandbox.worker import ServerLostError, Worker


def values(outcome: Outcome) -> list[object]:
    return [result.value for result in outcome.results]


def test_values_come_back_in_the_order_of_programs_and_calls(sandbox):
    programs = [
        Program(code=f"def f(x): return [x, {i}]", calls=("f(1)", "f('a')")) for i in range(50)
    ]
    assert [values(outcome) for outcome in sandbox.run(programs)] == [
        [[1, i], ["a", i]] for i in range(50)
    ]


def test_set_up_code_and_what_follows_run_in_this_order(sandbox):
    program = Program(
        setup="a = ['setup']", code="a.append('code')", after="a.append('after')", calls=("a",)
    )
    assert values(sandbox.run([program])[0]) == [["setup", "code", "after"]]


def test_a_call_that_raises_does_not_stop_the_next(sandbox):
    outcome = sandbox.run([Program(code="", calls=("1/0", "2"), asserts=("assert 0", "assert 1"))])
    (outcome,) = outcome
    assert [r.status for r in outcome.results] == ["error", "finished", "failed", "finished"]
    assert "ZeroDivisionError" in outcome.results[0].detail
    assert (outcome.status, outcome.level) == ("error", sandbox.level)


def test_what_came_before_a_time_limit_is_kept(start):
    program = Program(code="def f(x):\n    while x: pass\n    return 7", calls=("f(0)", "f(1)"))
    with start("L2", timeout=0.5) as sandbox:
        outcome = sandbox.run([program])[0]
    assert [r.status for r in outcome.results] == ["finished", "timeout"]
    assert outcome.milliseconds >= 500


def test_output_is_kept_and_cut(sandbox):
    outcome = sandbox.run([Program(code="print('é' * 10, flush=True); print('b' * 9000)")])[0]
    assert outcome.status == "finished"
    assert outcome.output.startswith("é" * 10 + "\nbbb")
    assert len(outcome.output.encode()) == 4000


@pytest.mark.parametrize(
    ("trace", "look"),
    [
        ("open('a', 'w').write('x')", "__import__('os').listdir()"),
        ("import os; os.mkdir('deep'); os.chdir('deep')", "'deep' in __import__('os').getcwd()"),
        ("import os; os.environ['A'] = '1'", "dict(__import__('os').environ)"),
        ("import os; os.umask(0)", "__import__('os').umask(18) == 0"),
        ("import json; json.x = 1", "hasattr(__import__('json'), 'x')"),
        ("import builtins; builtins.x = 1", "hasattr(__import__('builtins'), 'x')"),
        ("import random; random.seed(99)", "__import__('random').random() == 0.40397807494366633"),
        ("import threading; threading.Thread(target=print).start()", "threads"),
    ],
)
def test_a_program_leaves_no_trace_for_the_next(sandbox, trace, look):
    if look == "threads":
        look = "__import__('threading').active_count() != 1"
    outcomes = sandbox.run([Program(code=trace)] * 8 + [Program(code="", calls=(look,))] * 8)
    assert {outcome.status for outcome in outcomes} == {"finished"}
    assert not any(values(outcome)[0] for outcome in outcomes[8:])


def test_a_program_gives_the_same_result_each_time(sandbox, start):
    program = Program(
        code="import random",
        calls=("random.random()", "[*{'a', 'b', 'c', 'd', 'e'}]", "hash('a')"),
    )
    found = [values(outcome) for outcome in sandbox.run([program] * 6)]
    with start(sandbox.level) as another:
        found.append(values(another.run([program])[0]))
    assert all(value == found[0] for value in found)


def test_threads_are_allowed(sandbox):
    code = """
        from concurrent.futures import ThreadPoolExecutor
        def f(x):
            with ThreadPoolExecutor(4) as pool:
                return sum(pool.map(abs, range(x)))
    """
    outcome = sandbox.run([Program(code=textwrap.dedent(code), calls=("f(10)",))])[0]
    assert values(outcome) == [45]


def test_most_of_the_standard_library_can_be_imported(sandbox):
    names = "csv ctypes dataclasses datetime decimal hashlib json random re sqlite3 typing zlib"
    names = [name for name in names.split() if name != "sqlite3" or "sqlite3" in _importable()]
    outcomes = sandbox.run([Program(code=f"import {name}") for name in names])
    assert [o.detail for o in outcomes if o.status != "finished"] == []


def _importable() -> set[str]:
    try:
        import sqlite3  # noqa: F401
    except ImportError:
        return set()
    return {"sqlite3"}


def test_only_libraries_can_be_seen_under_l2(start):
    with start("L2") as sandbox:
        calls = ("__import__('os').listdir('/')", "__import__('os').getpid() > 1", "sorted(S)")
        code = "import os\nS = os.listdir() + os.listdir('/dev')"
        root, not_first, rest = values(sandbox.run([Program(code=code, calls=calls)])[0])
    parts = {Path(p).parts[1] for p in ("/lib", "/usr", sys.base_prefix)}
    assert set(root) - parts <= {"lib", "lib64", "usr", "dev", "scratch"}
    assert not_first
    assert rest == ["null", "urandom", "zero"]


def test_a_lone_interpreter_does_not_see_the_tests_modules(sandbox):
    outcome = sandbox.run(
        [Program(code="import sys", calls=("'torch' in sys.modules", "sys.path"))]
    )
    seen, path = values(outcome[0])
    assert not seen
    assert not any("site-packages" in folder or "selftrain" in folder for folder in path)


def test_closing_ends_every_process_and_removes_every_folder(start, descendants, scratch_folders):
    others = descendants()
    for level in ("L2", "L1"):
        sandbox = start(level, num_workers=3)
        assert len(descendants() - others) >= 3
        assert len(scratch_folders()) == 3
        sandbox.close()
        sandbox.close()
        assert descendants() <= others
        assert scratch_folders() == set()


def test_a_closed_sandbox_starts_again(start):
    sandbox = start("L1")
    sandbox.close()
    assert sandbox.run([Program(code="")])[0].status == "finished"
    sandbox.close()


@pytest.mark.parametrize("level", ["L2", "L1"])
def test_servers_end_when_their_parent_is_killed(start, level, tmp_path):
    start(level).close()
    script = f"""
import os, tempfile
tempfile.tempdir = {str(tmp_path)!r}
from selftrain.tasks.sandbox import Program, Sandbox
sandbox = Sandbox(level={level!r}, allow_code_execution=True, num_workers=2, timeout=60)
sandbox.__enter__()
print(*[w._process.pid for w in sandbox._crew._finalizer.peek()[2][2]], flush=True)
sandbox.run([Program(code="while True: pass")] * 2)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        servers = [int(word) for word in parent.stdout.readline().split()]
        assert len(servers) == 2
        time.sleep(0.3)
        parent.kill()
    deadline = time.monotonic() + 20
    while any(_alive(pid) for pid in servers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(_alive(pid) for pid in servers)
    while list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list(tmp_path.iterdir()) == []


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_lost_server_is_replaced(start):
    with start("L1", num_workers=1) as sandbox:
        worker = sandbox._crew._idle.get()
        os.kill(worker._process.pid, signal.SIGKILL)
        sandbox._crew._idle.put(worker)
        assert sandbox.run([Program(code="")])[0].status == "finished"


def lose(monkeypatch, num_times: int) -> None:
    """Have servers be lost ``num_times`` in a row."""
    left = [num_times]
    check = Worker.check

    def check_or_fail(self, request):
        if left[0] > 0:
            left[0] -= 1
            raise ServerLostError("gone")
        return check(self, request)

    monkeypatch.setattr(Worker, "check", check_or_fail)


def test_a_program_is_run_again_when_the_server_was_lost(start, monkeypatch):
    with start("L1", retries=2) as sandbox:
        lose(monkeypatch, 2)
        assert sandbox.run([Program(code="")])[0].status == "finished"


def test_a_program_under_which_every_server_is_lost_is_judged(start, monkeypatch):
    with start("L1", retries=2) as sandbox:
        lose(monkeypatch, 3)
        assert sandbox.run([Program(code="")])[0].status == "forbidden"


def test_without_retries_a_lost_server_is_not_held_against_the_program(start, monkeypatch):
    with start("L1", retries=0) as sandbox:
        lose(monkeypatch, 1)
        assert sandbox.run([Program(code="")])[0].status == "sandbox_error"


def test_too_many_failures_of_the_sandbox_end_the_run(start, monkeypatch):
    with start("L1", retries=0, max_error_fraction=0.02, num_workers=1) as sandbox:
        lose(monkeypatch, 2)
        assert len(sandbox.run([Program(code="")] * 4)) == 4
        lose(monkeypatch, 1)
        with pytest.raises(SandboxError, match=r"max_error_fraction=0\.02"):
            sandbox.run([Program(code="")])


def test_l1_is_refused_unless_allowed():
    with pytest.raises(SandboxError, match="allow_code_execution=True"):
        Sandbox(level="L1")


def test_auto_prefers_namespaces_and_falls_back_only_if_allowed():
    allowed = [way.level for way in launches("auto", allow_code_execution=True)]
    assert allowed[-1] == "L1"
    assert set(allowed[:-1]) <= {"L2"}
    assert "L1" not in {way.level for way in launches("auto", allow_code_execution=False)}


def test_where_nothing_starts_the_error_says_why_and_what_to_do(monkeypatch):
    ways = [Launch("L2", bubblewrap="/nowhere/bwrap")]
    monkeypatch.setattr("selftrain.tasks.sandbox.pool.launches", lambda *_, **__: ways)
    with pytest.raises(SandboxError, match=r"/nowhere/bwrap.*allow_code_execution=True"):
        Sandbox().run([Program(code="")])


def test_bubblewrap_gives_the_same_level(monkeypatch):
    found = shutil.which("bwrap")
    if found is None:
        pytest.skip("bubblewrap is not installed")
    monkeypatch.setattr(
        "selftrain.tasks.sandbox.pool.launches", lambda *_, **__: [Launch("L2", bubblewrap=found)]
    )
    calls = ("f(2)", "__import__('os').listdir()", "open('/etc/passwd')", "open('/a', 'w')")
    with Sandbox() as sandbox:
        first, second = sandbox.run([Program(code="def f(x): return x + 1", calls=calls)] * 2)
    assert first.level == "L2"
    assert values(first)[:2] == values(second)[:2] == [3, []]
    assert {r.status for r in first.results[2:]} <= {"error", "forbidden"}


def test_another_runner_takes_the_place_of_the_levels():
    sandbox = Sandbox(runner=lambda programs: [Outcome("finished", (Result("finished", 5),))])
    with sandbox:
        assert sandbox.level == "L3"
        assert values(sandbox.run([Program(code="", calls=("f()",))])[0]) == [5]
        with pytest.raises(SandboxError, match="1 outcomes for 2 programs"):
            sandbox.run([Program(code="")] * 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"level": "L4"}, "level must be one of"),
        ({"timeout": 0.0}, "timeout"),
        ({"memory_mb": 1}, "memory_mb"),
        ({"output_limit": 1}, "output_limit"),
        ({"num_workers": 0}, "num_workers"),
        ({"retries": -1}, "retries"),
        ({"max_error_fraction": 2.0}, "max_error_fraction"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Sandbox(**settings)
