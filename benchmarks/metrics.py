"""How long the metrics of sampled answers take: 1000 problems, 1000 samples, every k.

    python benchmarks/metrics.py            # seconds
    python benchmarks/metrics.py --quick    # fewer problems, to see that it runs

One thread of NumPy; the fastest of several calls counts.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from harness import ROOT, Goal, environment_line, save_rows, table

from selftrain import stats
from selftrain._core.io import read_json, write_text

WANTED_SECONDS = 1.0


@dataclass
class Args:
    """Command line."""

    quick: bool = False
    """A tenth of the problems, one call."""
    rounds: int = 5
    """Calls of each metric."""
    json: Path = ROOT / "benchmarks/results/metrics.json"
    """Where the rows go."""


def cases(num_problems: int) -> dict[str, Callable[[], Any]]:
    """Return one call for each metric, its input made beforehand."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(num_problems, 1000))
    correct = rng.random((num_problems, 1000)) < rng.random((num_problems, 1))
    answers = rng.multinomial(128, rng.dirichlet(np.full(50, 0.3), size=num_problems)).tolist()
    first = [int(np.argmax(sizes)) for sizes in answers]
    every, few = range(1, 1001), range(1, 129)
    right = correct.sum(1)
    return {
        "pass@k, 1000 samples, all k": lambda: stats.pass_at_k(right, 1000, every),
        "best-of-k, 1000 samples, all k": lambda: stats.best_of_k(scores, correct, every),
        "majority@k, 128 samples, 50 answers, all k": lambda: stats.majority_at_k_counts(
            answers, first, [0] * num_problems, few
        ),
        "bootstrap, 10,000 resamples": lambda: stats.bootstrap_interval(correct.mean(1)),
    }


def main(args: Args) -> None:
    """Measure, write the table and say which goals are met."""
    num_problems, rounds = (100, 1) if args.quick else (1000, args.rounds)
    if args.quick and args.json == Args.json:
        args.json = Path(tempfile.gettempdir()) / "metrics-quick.json"  # no result to keep
    rows = []
    for name, call in cases(num_problems).items():
        seconds = []
        for _ in range(rounds):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        rows.append({"metric": name, "problems": num_problems, "seconds": min(seconds)})
    goals = [
        Goal(f"{row['metric']}, seconds", row["seconds"], WANTED_SECONDS, at_least=False)
        for row in rows
    ]
    save_rows(args.json, rows, seed=0, goals=goals)
    line = environment_line(read_json(args.json)["environment"])
    cells = [[row["metric"], row["problems"], f"{row['seconds']:.3f}"] for row in rows]
    text = f"*{line}; fastest of {rounds} calls; command `python benchmarks/metrics.py`.*\n\n"
    text += table(["metric", "problems", "seconds"], cells) + "\n"
    if args.json == Args.json and not args.quick:
        write_text(ROOT / "docs/tables/metrics.md", text)
    print(text)
    for goal in goals:
        print(goal.line())


if __name__ == "__main__":
    main(tyro.cli(Args))
