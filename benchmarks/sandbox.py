"""Checks a second of the sandbox at each level, and hostile programs.

    python benchmarks/sandbox.py            # about two minutes on two cores
    python benchmarks/sandbox.py --quick    # twenty seconds, to see that it runs

A check runs one short program and the calls of three asserts, and compares what comes back. The
peer starts ``python -I`` for each check, as many at a time, with the asserts appended, which is how
scripts do it; it has no limit but a timeout, and its verdict is the exit code. The methods take
turns, and the fastest turn of each counts. Every program of the tests' hostile list is graded at
each level; none may pass.
"""

import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from harness import ROOT, Goal, environment_line, save_rows, table

from selftrain._core.io import read_json, write_text
from selftrain.errors import SandboxError
from selftrain.tasks.base import Problem
from selftrain.tasks.code import CodeGrader
from selftrain.tasks.sandbox import Sandbox

WANTED_RATE = 500.0
WANTED_HOSTILE = 40
LEVELS = ("L2", "L1")
CODE = """
def f(words, n):
    counts = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    return sorted(counts, key=lambda word: (-counts[word], word))[:n]
"""
TESTS = (
    "assert f(['a', 'b', 'a'], 1) == ['a']",
    "assert f(['b', 'a', 'c', 'c'], 3) == ['c', 'a', 'b']",
    "assert f([], 2) == []",
)

Rate = Callable[[int], float]


@dataclass
class Args:
    """Command line."""

    quick: bool = False
    """Fewer checks, one turn."""
    num_checks: int = 2000
    """Checks of each turn; the peer does a tenth."""
    num_turns: int = 3
    """Turns of each method; the fastest counts."""
    num_workers: int = 2
    """Checks at a time."""
    json: Path = ROOT / "benchmarks/results/sandbox.json"
    """Where the rows go."""


def rate_of(grader: CodeGrader) -> Rate:
    """Return a function that does checks and returns how many there were a second."""
    problem = Problem(id="words", prompt="The n most frequent words.", tests=TESTS)

    def measure(num_checks: int) -> float:
        started = time.perf_counter()
        grades = grader.grade([problem] * num_checks, [CODE] * num_checks)
        seconds = time.perf_counter() - started
        assert all(grade.status == "passed" for grade in grades)
        return num_checks / seconds

    return measure


def peer_rate(num_workers: int) -> Rate:
    """Return the same for an interpreter started for each check."""
    source = CODE + "\n".join(TESTS)

    def check(_: int) -> int:
        command = [sys.executable, "-I", "-c", source]
        return subprocess.run(command, timeout=20, capture_output=True, check=False).returncode

    def measure(num_checks: int) -> float:
        started = time.perf_counter()
        with ThreadPoolExecutor(num_workers) as pool:
            assert not any(pool.map(check, range(num_checks // 10)))
        return (num_checks // 10) / (time.perf_counter() - started)

    return measure


def hostile_passing(level: str) -> tuple[int, int]:
    """Return how many hostile programs were scored above 0, and how many there are."""
    module = runpy.run_path(str(ROOT / "tests/tasks/sandbox/hostile.py"))
    programs = module["HOSTILE"]
    with tempfile.NamedTemporaryFile("w") as file:
        codes = [module["prepare"](h, parent=os.getpid(), file=file.name) for h in programs]
        problems = [Problem(id="add", prompt="Add 1.", tests=module["TESTS"])] * len(codes)
        sandbox = Sandbox(level=level, allow_code_execution=True, timeout=2.0, memory_mb=128)
        with CodeGrader(sandbox=sandbox, mode="outputs") as grader:
            grades = grader.grade(problems, [f"```\n{code}\n```" for code in codes])
    return sum(grade.score != 0.0 for grade in grades), len(grades)


def start(level: str, num_workers: int) -> CodeGrader | None:
    """Return a grader at a level, or None, with the reason printed."""
    sandbox = Sandbox(level=level, allow_code_execution=True, num_workers=num_workers)
    try:
        sandbox.__enter__()
    except SandboxError as error:
        print(f"{level} is not measured: {error}")
        return None
    return CodeGrader(sandbox=sandbox, mode="outputs")


def measure(args: Args) -> list[dict[str, Any]]:
    """Return a row for each method."""
    graders = {level: start(level, args.num_workers) for level in LEVELS}
    graders = {level: grader for level, grader in graders.items() if grader is not None}
    rates: dict[str, Rate] = {level: rate_of(grader) for level, grader in graders.items()}
    rates["interpreter"] = peer_rate(args.num_workers)
    num_checks, num_turns = (400, 1) if args.quick else (args.num_checks, args.num_turns)
    found: dict[str, list[float]] = {name: [] for name in rates}
    for _ in range(num_turns):
        for name, rate in rates.items():
            rate(num_checks // 10)
            found[name].append(rate(num_checks))
    for grader in graders.values():
        grader.close()
    rows = []
    for name, measured in found.items():
        row = {"method": name, "workers": args.num_workers, "rates": measured}
        row["checks_per_second"] = max(measured)
        if name in graders:
            row["hostile_passing"], row["hostile"] = hostile_passing(name)
        rows.append(row)
        print(row, flush=True)
    return rows


def goals_of(rows: list[dict[str, Any]]) -> list[Goal]:
    """Return the goals that the rows speak of."""
    peer = rows[-1]["checks_per_second"]
    goals = []
    for row in rows[:-1]:
        level, rate = row["method"], row["checks_per_second"]
        goals.append(Goal(f"{level}, checks/s", rate, WANTED_RATE))
        goals.append(Goal(f"{level}, checks/s over an interpreter for each", rate / peer, 1.0))
        goals.append(Goal(f"{level}, hostile programs tried", row["hostile"], WANTED_HOSTILE))
        passing = row["hostile_passing"]
        goals.append(Goal(f"{level}, hostile programs passing", passing, 0.0, at_least=False))
    return goals


def page(rows: list[dict[str, Any]], environment: dict[str, Any]) -> str:
    """Return the table for the docs."""
    names = {"interpreter": "`python -I` for each check"}
    lines = [
        [
            names.get(row["method"], row["method"]),
            f"{row['checks_per_second']:.0f}",
            f"{row['checks_per_second'] / rows[-1]['checks_per_second']:.1f}x",
            f"{row['hostile_passing']} of {row['hostile']}" if "hostile" in row else "-",
        ]
        for row in rows
    ]
    columns = ["method", "checks/s", "against the peer", "hostile programs passing"]
    return (
        f"*{environment_line(environment)}; {rows[0]['workers']} checks at a time; fastest turn; "
        f"command `python benchmarks/sandbox.py`.*\n\n{table(columns, lines)}\n"
    )


def main(args: Args) -> None:
    rows = measure(args)
    goals = goals_of(rows)
    path = args.json.with_stem(args.json.stem + "-quick") if args.quick else args.json
    save_rows(path, rows, seed=0, goals=goals)
    text = page(rows, read_json(path)["environment"])
    if not args.quick:
        write_text(ROOT / "docs/tables/sandbox.md", text)
    print(text)
    for goal in goals:
        print(goal.line())


if __name__ == "__main__":
    main(tyro.cli(Args))
