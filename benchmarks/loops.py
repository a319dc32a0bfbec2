"""Self-training that really improves a model: three tasks, from scratch, on two CPU cores.

    python benchmarks/loops.py                       # more than an hour on two cores
    python benchmarks/loops.py --orderings           # 20 minutes: gains, controls, verifiers
    python benchmarks/loops.py --orderings modchain  # and the papers' orderings on one task
    python benchmarks/loops.py --task modchain       # one task
    python benchmarks/loops.py --quick               # a minute; every part, no meaningful numbers

For every task (modular chains, countdown, list programs) and seed, a model of 0.1 million
parameters learns from worked problems, and every run goes on from it: ReST-EM; V-STaR; ReST-EM with
permuted and with random rewards, which must not gain; and the variants that the orderings of the
papers are about. Seeds differ in the task's problems, the first weights, the order of the data and
the samples. Gains are differences on the same test problems; their intervals are bootstraps over
the problems of all seeds.

Settings were chosen on seeds from 100 on, the numbers are from seeds 0, 1, 2. An interrupted run
continues.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes, a core each

import multiprocessing
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from harness import ROOT, save_rows
from loops_page import draw, goals_of, page
from loops_runs import (
    FIRST,
    FOLLOWING,
    FOLLOWING_FOR_ORDERINGS,
    SETTINGS,
    Job,
    prepare,
    quick,
    run_job,
)

from selftrain._core.io import read_json, write_text


@dataclass
class Args:
    """Command line."""

    quick: bool = False
    """A minute, to see that it runs."""
    task: Literal["all", "modchain", "countdown", "listprog"] = "all"
    """Which task."""
    orderings: tuple[Literal["modchain", "countdown", "listprog"], ...] = (
        "modchain",
        "countdown",
        "listprog",
    )
    """Of which tasks to run the variants that only the table of orderings needs."""
    seeds: int = 3
    """Number of seeds."""
    first_seed: int = 0
    """The first of them; settings were chosen from 100 on."""
    workers: int = 2
    """Processes, one thread each."""
    json: Path = ROOT / "benchmarks/results/loops.json"
    """Where the rows go."""
    work: Path = Path("runs/bench-loops")
    """Models and partial results; the same command continues there."""


def main(args: Args) -> None:
    """Run what is missing and write the tables."""
    settings = [SETTINGS[t] for t in SETTINGS if args.task in ("all", t)]
    work, path = args.work, args.json
    if args.quick:
        settings = [quick(setting) for setting in settings]
        work = work.with_name(work.name + "-quick")
        path = work / "quick.json"
    seeds = range(args.first_seed, args.first_seed + (1 if args.quick else args.seeds))
    rows: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, mp_context=context) as pool:
        for setting in settings:
            bases = [pool.submit(prepare, setting, seed, work) for seed in seeds]
            seconds = [base.result() for base in bases]
            rows += [
                {"task": setting.task, "seed": seed, "run": "base", "seconds": s}
                for seed, s in zip(seeds, seconds, strict=True)
            ]
            whole = setting.task in args.orderings
            following = FOLLOWING_FOR_ORDERINGS if whole else FOLLOWING
            jobs = [Job(setting, seed, FIRST) for seed in seeds]
            running = {pool.submit(run_job, job, work) for job in jobs}
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for row in (one.result() for one in done):
                    rows.append(row)
                    jobs = [Job(setting, row["seed"], r) for r in following.get(row["run"], ())]
                    running |= {pool.submit(run_job, job, work) for job in jobs}
    goals = goals_of(rows, args.workers)
    save_rows(path, rows, seed=args.first_seed, goals=goals)
    draw(rows, path.with_suffix(".png"))
    text = page(rows, read_json(path)["environment"], args.workers)
    if path == Args.json and args.task == "all":  # other places, or a part, are no report
        write_text(ROOT / "docs/tables/loops.md", text)
    print(text)
    for goal in goals:
        print(goal.line())


if __name__ == "__main__":
    main(tyro.cli(Args))
