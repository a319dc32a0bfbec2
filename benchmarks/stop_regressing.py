"""Where learning values by classification helps, and where it does not.

    python benchmarks/stop_regressing.py                     # not timed as a whole yet
    python benchmarks/stop_regressing.py --parts regression  # one part, or several
    python benchmarks/stop_regressing.py --quick             # a minute; no meaningful numbers

Networks that differ in nothing but the head (squared error, HL-Gauss, two-hot, one-hot, C51) learn
from the same data in the same order: maps from the smooth to the rough, with and without noise, of
few and many samples; networks from narrow to wide; sigmas of HL-Gauss at several numbers of bins;
targets that move; a gridworld with noisy rewards and sticky actions whose optimal values are known;
Catch from pixels; and chess positions with values of Stockfish. Every number is one of five seeds,
which differ in data and weights; intervals are 95 % bootstraps over seeds, of differences between
heads on the same seed. Five values make such an interval too narrow rather than too wide: take one
that nearly holds zero as none.

Nothing was tuned: the sizes are first guesses. An interrupted run continues. Chess needs the extra
`chess` and Stockfish; without them that part is left out, and said to be.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes, a core each

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import tyro
from harness import ROOT, save_rows
from stop_regressing_page import PARTS, conclusions, draw, goals_of, page
from stop_regressing_runs import jobs_of, label_chess, missing, run_job

from selftrain._core.io import read_json, write_text
from selftrain._core.logging import progress


@dataclass
class Args:
    """Command line."""

    quick: bool = False
    """A minute, to see that it runs."""
    parts: tuple[str, ...] = tuple(PARTS)
    """Which parts."""
    seeds: int = 5
    """Number of seeds."""
    first_seed: int = 0
    """The first of them; from 100 on they are for choosing sizes."""
    workers: int = 2
    """Processes, one thread each."""
    json: Path = ROOT / "benchmarks/results/stop_regressing.json"
    """Where the rows go."""
    work: Path = Path("runs/bench-stop-regressing")
    """Finished trainings and labelled positions; the same command continues there. After a
    change of sizes in the code take another folder."""


def main(args: Args) -> None:
    """Run what is missing and write the tables."""
    work, path = args.work, args.json
    if args.quick:
        work = work.with_name(work.name + "-quick")
        path = work / "quick.json"
    reasons = {part: missing(part) for part in args.parts}
    for part, reason in reasons.items():
        if reason:
            print(f"{part} is not measured: {reason}.")
    parts = [part for part in args.parts if not reasons[part]]
    seeds = range(args.first_seed, args.first_seed + (2 if args.quick else args.seeds))
    if "chess" in parts:
        label_chess(work, quick=args.quick)
    jobs = jobs_of(parts, seeds, quick=args.quick)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, mp_context=context) as pool:
        running = [pool.submit(run_job, job, work) for job in jobs]
        with progress("trainings", len(jobs)) as bar:
            for num, done in enumerate(as_completed(running), 1):
                bar.update(num, done.result()["part"])
    rows = [done.result() for done in running]
    goals = goals_of(rows, args.workers)
    save_rows(path, rows, seed=args.first_seed, goals=goals)
    draw(rows, path.with_suffix(".png"))
    text = page(rows, read_json(path)["environment"], args.workers)
    if path == Args.json and set(parts) == set(PARTS):  # other places, or a part, are no report
        write_text(ROOT / "docs/tables/stop_regressing.md", text)
        write_text(ROOT / "docs/tables/which_head.md", conclusions(rows))
    print(text)
    print(conclusions(rows))
    for goal in goals:
        print(goal.line())


if __name__ == "__main__":
    main(tyro.cli(Args))
