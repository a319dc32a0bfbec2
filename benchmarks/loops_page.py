"""Goals, tables and the picture of ``loops.py``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import Goal, environment_line, table
from loops_runs import MAIN
from numpy.typing import NDArray

from selftrain import plots, stats
from selftrain.stats import Interval

Row = dict[str, Any]
NAMES = {"modchain": "modular chains", "countdown": "countdown", "listprog": "list programs"}
RIVAL = {
    "modchain": "best_over_majority",
    "countdown": "best_over_one",
    "listprog": "best_over_one",
}
"""What V-STaR's choice among 16 is compared with."""
EASY = 0.75
"""Rate of the base's right samples from which a problem counts as easy."""
RIVAL_NAMES = {"best_over_majority": "Maj@16", "best_over_one": "pass@1"}


class Results:
    """Rows by task, run and seed."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = {(row["task"], row["run"], row["seed"]): row for row in rows}
        self.tasks = [t for t in NAMES if any(key[0] == t for key in self._rows)]
        self.seeds = sorted({key[2] for key in self._rows})

    def has(self, task: str, run: str) -> bool:
        """Return whether a run was done with every seed."""
        return all((task, run, seed) in self._rows for seed in self.seeds)

    def of(self, task: str, run: str) -> list[Row]:
        """Return a run's rows, one for each seed."""
        return [self._rows[task, run, seed] for seed in self.seeds]

    def right(self, task: str, run: str, after: int = -1) -> NDArray[np.float64]:
        """Return 0 or 1 for every test problem of every seed, after a round (0: before all)."""
        return np.concatenate([bits(row["test"][after]) for row in self.of(task, run)])

    def gain(self, task: str, run: str, after: int = -1, before: int = 0) -> Interval:
        """Return the difference of pass@1 between two moments of a run."""
        return interval(self.right(task, run, after) - self.right(task, run, before))

    def over(self, task: str, first: str, second: str) -> Interval:
        """Return the difference of pass@1 between the ends of two runs."""
        return interval(self.right(task, first) - self.right(task, second))

    def by_seed(self, task: str, run: str, after: int) -> list[float]:
        """Return pass@1 of every seed after a round."""
        return [float(bits(row["test"][after]).mean()) for row in self.of(task, run)]

    def report(self, task: str, run: str, *path: str) -> Interval:
        """Return a number of V-STaR's test report, averaged over seeds."""
        measures = []
        for row in self.of(task, run):
            value = row["reports"]["test"]
            for key in path:
                value = value[key]
            measures.append(value)
        return averaged(measures)

    def minutes(self, task: str, workers: int, runs: Sequence[str] = ("base", *MAIN)) -> float:
        """Return how long the runs of all seeds take on so many cores."""
        rows = (row for run in runs if self.has(task, run) for row in self.of(task, run))
        return sum(row["seconds"] for row in rows) / workers / 60


def bits(text: str) -> NDArray[np.float64]:
    """Return the digits of a text of zeros and ones."""
    return np.array(list(text), dtype=np.float64)


def interval(values: NDArray[np.float64]) -> Interval:
    """Return the mean over problems and its 95 % bootstrap interval."""
    return stats.bootstrap_interval(values)


def averaged(measures: Sequence[dict[str, float]]) -> Interval:
    """Return the mean over seeds, whose problems are independent: half-widths add up as squares."""
    means = np.array([m["mean"] for m in measures])
    down = np.array([m["mean"] - m["low"] for m in measures])
    up = np.array([m["high"] - m["mean"] for m in measures])
    mean, num = means.mean(), len(measures)
    low, high = (float(np.sqrt((half**2).sum()) / num) for half in (down, up))
    return Interval(mean=mean, low=mean - low, high=mean + high)


def points(found: Interval, *, sign: bool = True) -> str:
    """Write a share as percentage points with its interval."""
    form = "{:+.1f} [{:+.1f}, {:+.1f}]" if sign else "{:.1f} [{:.1f}, {:.1f}]"
    return form.format(*(100 * float(x) for x in (found.mean, found.low, found.high)))


def goals_of(rows: Sequence[Row], workers: int) -> list[Goal]:
    """Return the goals of the benchmark, in points of test pass@1."""
    results, goals = Results(rows), []
    for task in results.tasks:
        name = NAMES[task]
        gain = results.gain(task, "restem")
        second = results.gain(task, "restem", 2, 1)
        goals += [
            Goal(f"{name}, ReST-EM's gain of pass@1 in points", 100 * float(gain.mean), 15.0),
            Goal(f"{name}, the same, aimed at", 100 * float(gain.mean), 25.0),
            Goal(f"{name}, round 2 less round 1 in points", 100 * float(second.mean), 0.1),
        ]
        best = results.report(task, "vstar", RIVAL[task], _k(results, task))
        what = f"{name}, V-STaR's best of 16 less {RIVAL_NAMES[RIVAL[task]]}: lower end in points"
        goals.append(Goal(what, 100 * float(best.low), 0.0))
        for control in ("permuted", "random"):
            none = results.gain(task, control)
            what = f"{name}, gain with {control} rewards: lower end in points"
            goals.append(Goal(what, 100 * float(none.low), 0.0, at_least=False))
        minutes = results.minutes(task, workers)
        goals.append(
            Goal(f"{name}, minutes on {workers} cores, all seeds", minutes, 5.0, at_least=False)
        )
    return goals


def page(rows: Sequence[Row], environment: dict[str, Any], workers: int) -> str:
    """Return the page of tables."""
    results = Results(rows)
    parts = [
        "<!-- Written by benchmarks/loops.py. -->",
        f"Measured on {environment_line(environment)}; {len(results.seeds)} seeds; intervals are "
        "95 % bootstraps over the test problems of all seeds.",
        "Test pass@1 (greedy) in per cent, and gains in points:",
        _main_table(results, workers),
        "By seed, before and after each round:",
        _seed_table(results),
        "Choosing among 16 candidates of V-STaR's generator, in per cent:",
        _verifier_table(results),
    ]
    found = [line for task in results.tasks for line in orderings(results, task)]
    columns = ("ordering", "task", "difference in points", "reproduced")
    parts += ["The orderings that the papers report:", table(columns, found)]
    return "\n\n".join(parts) + "\n"


def _main_table(results: Results, workers: int) -> str:
    lines = []
    for task in results.tasks:
        last = len(results.of(task, "restem")[0]["test"]) - 1
        rounds = [interval(results.right(task, "restem", r)) for r in range(last + 1)]
        lines.append(
            [
                NAMES[task],
                *(f"{100 * float(r.mean):.1f}" for r in (rounds[0], rounds[1], rounds[2])),
                f"{100 * float(rounds[-1].mean):.1f}",
                points(results.gain(task, "restem")),
                points(results.gain(task, "permuted")),
                points(results.gain(task, "random")),
                f"{results.minutes(task, workers):.1f}",
            ]
        )
    columns = ("task", "supervised", "round 1", "round 2", "last round", "gain")
    columns += ("permuted rewards", "random rewards", f"minutes, {workers} cores")
    return table(columns, lines)


def _seed_table(results: Results) -> str:
    lines = []
    for task in results.tasks:
        for seed, row in zip(results.seeds, results.of(task, "restem"), strict=True):
            rounds = " → ".join(f"{100 * bits(text).mean():.1f}" for text in row["test"])
            lucky = ", ".join(_percent(f) for f in row["false_positives"])
            solved = ", ".join(_percent(f) for f in row["solved"])
            lines.append([NAMES[task], seed, rounds, solved, lucky])
    columns = ("task", "seed", "test pass@1", "training problems solved", "false positives kept")
    return table(columns, lines)


def _verifier_table(results: Results) -> str:
    lines = []
    for task in results.tasks:
        k = _k(results, task)
        find = [
            ("pass_at_1",),
            ("majority_at_k", k),
            ("best_of_k", "log_prob", k),
            ("best_of_k", "log_ratio", k),
            ("pass_at_k", k),
        ]
        cells = [points(results.report(task, "vstar", *path), sign=False) for path in find]
        rival = results.report(task, "vstar", RIVAL[task], k)
        lines.append([NAMES[task], *cells, f"{points(rival)} over {RIVAL_NAMES[RIVAL[task]]}"])
    columns = ("task", "pass@1", "Maj@16", "best of 16", "by log-ratio", "pass@16", "difference")
    return table(columns, lines)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def _k(results: Results, task: str) -> str:
    """Return 16, or the most candidates of a quick run."""
    ks = results.of(task, "vstar")[0]["reports"]["test"]["best_of_k"]["log_prob"]
    return "16" if "16" in ks else max(ks, key=int)


def orderings(results: Results, task: str) -> list[list[str]]:
    """Return a line for each ordering that was tried on a task."""
    tried = [*_rest_orderings(results, task), *_vstar_orderings(results, task)]
    lines = []
    for name, found, wanted in tried:
        verdict = {"above": found.low > 0, "equal": found.low <= 0 <= found.high}[wanted]
        if not verdict and wanted == "above" and found.mean > 0:
            lines.append([name, NAMES[task], points(found), "not beyond chance"])
        else:
            lines.append([name, NAMES[task], points(found), "yes" if verdict else "no"])
    return lines


def _rest_orderings(results: Results, task: str) -> list[tuple[str, Interval, str]]:
    found = [("ReST-EM, round 2 over round 1", results.gain(task, "restem", 2, 1), "above")]
    num = len(results.of(task, "restem")[0]["test"]) - 1
    pairs = [
        (f"{num} rounds over one with {num} times the samples", "restem", "once", "above"),
        ("from the base level with from the last weights", "restem", "continued", "equal"),
        ("one own solution a problem over one given solution", "own_one", "human", "above"),
        ("all own solutions over one a problem", "restem", "own_one", "above"),
        ("all problems over a quarter of them", "restem", "few", "above"),
    ]
    found += [
        (name, results.over(task, first, second), wanted)
        for name, first, second, wanted in pairs
        if results.has(task, first) and results.has(task, second)
    ]
    rows = results.of(task, "restem")
    if results.has(task, "curves"):
        found += _curve_orderings(results.of(task, "curves"), results.of(task, "restem"))
    gaps = [
        (row["train"][-1] - bits(row["test"][-1]).mean())
        - (row["train"][1] - bits(row["test"][1]).mean())
        for row in rows
    ]
    found.append(("train less test, last round over first", over_seeds(gaps), "above"))
    return found


def _curve_orderings(curves: Sequence[Row], runs: Sequence[Row]) -> list[tuple[str, Interval, str]]:
    """Compare the sampled test problems before ReST-EM and after it."""

    def gain(row: Row, key: str, k: str) -> float:
        return row["after"][key][k] - row["before"][key][k]

    found = []
    ks = sorted(curves[0]["before"]["pass"], key=int)
    for k in ks:
        found.append(
            (f"pass@{k} over the base's", over_seeds([gain(r, "pass", k) for r in curves]), "above")
        )
    least = over_seeds([gain(row, "pass", ks[0]) - gain(row, "pass", ks[-1]) for row in curves])
    found.append((f"gain at k = 1 over the gain at k = {ks[-1]}", least, "above"))
    votes = over_seeds([gain(row, "majority", ks[-1]) for row in curves])
    found.append((f"Maj@{ks[-1]} over the base's", votes, "above"))
    rates = np.concatenate([row["before"]["rates"] for row in curves])
    change = np.concatenate([bits(r["test"][-1]) - bits(r["test"][0]) for r in runs])
    easy = change[rates >= EASY]
    if len(easy) > 1 and (rates < EASY).sum() > 1:
        hard = change[rates < EASY]
        width = np.sqrt(easy.var() / len(easy) + hard.var() / len(hard))
        mean = float(hard.mean() - easy.mean())
        between = Interval(mean=mean, low=mean - 1.96 * width, high=mean + 1.96 * width)
        found.append(
            ("gain on problems solved less than 3 times in 4 over the others", between, "above")
        )
    return found


def over_seeds(values: Sequence[float]) -> Interval:
    """Return the mean over seeds, from the least to the greatest."""
    return Interval(mean=float(np.mean(values)), low=min(values), high=max(values))


def _vstar_orderings(results: Results, task: str) -> list[tuple[str, Interval, str]]:
    k = _k(results, task)

    def best(run: str, rule: str = "log_prob", at: str = k) -> list[float]:
        return [
            row["reports"]["test"]["best_of_k"][rule][at]["mean"] for row in results.of(task, run)
        ]

    def less(first: Sequence[float], second: Sequence[float]) -> Interval:
        return over_seeds([a - b for a, b in zip(first, second, strict=True)])

    name = f"best of {k}"
    found = [
        (f"{name} over pass@1", results.report(task, "vstar", "best_over_one", k), "above"),
        (f"{name} over Maj@{k}", results.report(task, "vstar", "best_over_majority", k), "above"),
    ]
    twice = str(2 * int(k))
    votes = [
        row["reports"]["test"]["weighted_majority_at_k"][k]["mean"]
        for row in results.of(task, "vstar")
    ]
    found.append(("weighted votes level with best of k", less(votes, best("vstar")), "equal"))
    if all(twice in row["reports"]["test"]["majority_at_k"] for row in results.of(task, "vstar")):
        found.append(
            (
                f"best of {twice} level with {name}",
                less(best("vstar", at=twice), best("vstar")),
                "equal",
            )
        )
    for one, other, what in (
        ("vstar_twice", "vstar_once", "V-STaR of two rounds over one with twice the samples"),
        ("vstar", "orm", "V-STaR's verifier over an outcome reward model"),
        ("vstar_twice", "vstar_last", "verifier data of both rounds over the last alone"),
    ):
        if results.has(task, one) and results.has(task, other):
            found.append((f"{what}, {name}", less(best(one), best(other)), "above"))
    if results.has(task, "vstar_once") and results.has(task, "vstar_twice"):
        star = [row["greedy"][-1] for row in results.of(task, "vstar_twice")]
        rft = [row["greedy"][-1] for row in results.of(task, "vstar_once")]
        found += [
            (f"V-STaR [2 rounds], {name}, over STaR†", less(best("vstar_twice"), star), "above"),
            (f"V-STaR [1 round], {name}, over RFT", less(best("vstar_once"), rft), "above"),
        ]
    return found


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw pass@1 by round for every task."""
    results = Results(rows)
    axes = plots.panels(len(results.tasks))
    for task, ax in zip(results.tasks, axes, strict=True):
        num = len(results.of(task, "restem")[0]["test"])
        found = {"restem": [interval(results.right(task, "restem", r)) for r in range(num)]}
        for control in ("permuted", "random"):
            ends = [interval(results.right(task, control, r)) for r in (0, 1)]
            found[control] = ends
        metrics, intervals = {}, {}
        for run, name in (("restem", "ReST-EM"), ("permuted", "permuted"), ("random", "random")):
            missing = [None] * (num - len(found[run]))
            metrics[name] = [float(f.mean) for f in found[run]] + missing
            intervals[name] = tuple(
                [float(getattr(f, end)) for f in found[run]] + missing for end in ("low", "high")
            )
        plots.metrics_by_round(
            ["base", *range(1, num)],
            metrics,
            intervals=intervals,
            ylabel="test problems solved",
            title=NAMES[task],
            ax=ax,
        )
    plots.save_figure(axes, path)
