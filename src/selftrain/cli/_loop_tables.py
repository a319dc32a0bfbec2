"""What came of the rounds of a loop, as cells of tables."""

import math
from collections.abc import Sequence

from selftrain.loops.evaluate import Evaluation, Measure
from selftrain.loops.rest_em import START
from selftrain.loops.round import LoopResult, Round
from selftrain.loops.verifier_report import VerifierReport

START_LABEL = "start"
ROUND_COLUMNS = {
    "round": 5,
    "samples": 8,
    "right": 7,
    "solved": 7,
    "kept": 7,
    "false": 7,
    "validation": 18,
    "test": 18,
    "train": 18,
    "seconds": 8,
}
"""Columns of the table of rounds, with their widths in a terminal."""
TASKS = ("test", "validation", "train")


def label(round: Round) -> str:
    """Return what a round is called in tables and pictures."""
    return START_LABEL if round.number == START else str(round.number)


def percent(measure: Measure | None) -> str:
    """Return a share with its interval, in per cent."""
    if measure is None:
        return "–"
    mean = f"{100 * measure.mean:.1f}"
    if not math.isfinite(measure.low):
        return mean
    return f"{mean} ({100 * measure.low:.1f}–{100 * measure.high:.1f})"


def round_cells(round: Round) -> list[str]:
    """Return the cells of a round, one for each of :data:`ROUND_COLUMNS`."""
    begun = round.number == START
    greedy = [
        percent(e.greedy if (e := round.evaluations.get(name)) else None)
        for name in ("validation", "test", "train")
    ]
    return [
        label(round),
        "–" if begun else f"{round.num_samples:,}",
        "–" if begun else f"{100 * round.pass_fraction:.1f} %",
        "–" if begun else f"{100 * round.solved_fraction:.1f} %",
        f"{round.num_selected:,}",
        _share(round.false_positive_fraction),
        *greedy,
        f"{sum(round.seconds.values()):,.0f}",
    ]


def rounds_of(result: LoopResult) -> list[Round]:
    """Return all rounds, the start first."""
    return [result.start, *result.rounds]


def measured_tasks(result: LoopResult) -> list[str]:
    """Return the tasks that every round was measured on."""
    return [name for name in TASKS if name in result.start.evaluations]


def evaluation_rows(result: LoopResult) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of a table with a line for each measure and a column for each round."""
    rounds = rounds_of(result)
    rows = []
    for name in measured_tasks(result):
        for measure, cells in _measures([r.evaluations[name] for r in rounds]).items():
            rows.append([name, measure, *cells])
    return ["problems", "", *map(label, rounds)], rows


def _measures(evaluations: Sequence[Evaluation]) -> dict[str, list[str]]:
    """Return the cells of one task by measure; measures that no round has are left out."""
    largest = max(max(e.pass_at_k, default=0) for e in evaluations)
    cells = {
        "pass@1": [percent(e.greedy) for e in evaluations],
        f"pass@{largest}": [percent(e.pass_at_k.get(largest)) for e in evaluations],
        f"Maj@{largest}": [percent(e.majority_at_k.get(largest)) for e in evaluations],
        "false positives": [_share(e.false_positive_fraction) for e in evaluations],
        "cut off": [_share(e.truncated_fraction) for e in evaluations],
        "tokens": ["–" if e.mean_tokens is None else f"{e.mean_tokens:.1f}" for e in evaluations],
        "not judged": [f"{e.num_ungradable}" for e in evaluations],
    }
    empty = {"–", "0"}
    return {name: row for name, row in cells.items() if not set(row) <= empty}


def verifier_rows(report: VerifierReport) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of a table with a line for each way to choose and a column for a k."""
    ks = list(report.pass_at_k)
    ways = {
        "pass@k, a perfect judge": report.pass_at_k,
        **{f"verifier, {rule}": table for rule, table in report.best_of_k.items()},
        "majority vote": report.majority_at_k,
        "weighted vote": report.weighted_majority_at_k,
    }
    rows = [[way, *(percent(table.get(k)) for k in ks)] for way, table in ways.items() if table]
    return ["chosen by", *(f"k={k}" for k in ks)], rows


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"
