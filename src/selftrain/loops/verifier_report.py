"""What it is worth to let a verifier choose among several answers."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from selftrain import stats
from selftrain._core.io import read_json, write_json
from selftrain.loops.evaluate import (
    Measure,
    ballots,
    by_k,
    by_problem,
    majority_at_k,
    measure,
    pass_at_k,
    powers,
)
from selftrain.loops.sample import Sample
from selftrain.tasks.base import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifierReport:
    """Ways to choose one of k candidates, measured on the same candidates; all by k."""

    task: str
    """The task's name."""
    num_problems: int
    """Problems whose candidates could be judged."""
    num_candidates: int
    """Candidates of each problem."""
    pass_at_1: Measure
    """A candidate at random."""
    pass_at_k: dict[int, Measure]
    """The best one, if a perfect judge chose."""
    best_of_k: dict[str, dict[int, Measure]]
    """By scoring rule: the one that the verifier ranks first. "log_prob" is the paper's rule,
    "log_ratio" has the reference's likelihood taken off, "mean_log_prob" is per token."""
    majority_at_k: dict[int, Measure]
    """The most frequent answer; empty where texts have no final answer."""
    weighted_majority_at_k: dict[int, Measure]
    """The most frequent answer, votes weighted by the verifier's likelihood; an estimate."""
    best_over_majority: dict[int, Measure]
    """Best-of-k by "log_prob" less the majority vote, problem by problem; empty like the vote."""
    best_over_one: dict[int, Measure]
    """Best-of-k by "log_prob" less pass@1, problem by problem."""

    def save(self, folder: Path, name: str) -> None:
        """Write it to a file in ``folder``."""
        write_json(folder / f"report-{name}.json", asdict(self))

    @classmethod
    def load(cls, folder: Path, name: str) -> Self | None:
        """Read what :meth:`save` wrote; None if there is nothing."""
        path = folder / f"report-{name}.json"
        if not path.exists():
            return None
        row = read_json(path)
        row["pass_at_1"] = Measure(**row["pass_at_1"])
        row["best_of_k"] = {rule: _measures(table) for rule, table in row["best_of_k"].items()}
        for field in (
            "pass_at_k",
            "majority_at_k",
            "weighted_majority_at_k",
            "best_over_majority",
            "best_over_one",
        ):
            row[field] = _measures(row[field])
        return cls(**row)


def report_on(
    task: Task,
    samples: Sequence[Sample],
    *,
    verifier: Sequence[float],
    reference: Sequence[float],
    seed: int = 0,
) -> VerifierReport:
    """Compare ways to choose among graded candidates.

    Args:
        task: Their problems.
        samples: The candidates.
        verifier: Log-likelihood of each under the verifier.
        reference: The same under the model that the verifier's training started from.
        seed: Of the bootstrap, and of the weighted votes' subsets.

    Raises:
        ValueError: If no candidate could be judged.
    """
    scores = dict(zip((s.key for s in samples), verifier, strict=True))
    base = dict(zip((s.key for s in samples), reference, strict=True))
    rows = by_problem(samples)
    if not rows:
        raise ValueError(f"no candidate of task {task.name!r} could be judged.")
    ks = powers(min(map(len, rows.values())))
    # The factor beta of the log-ratio changes no order.
    rules = {
        "log_prob": lambda s: scores[s.key],
        "log_ratio": lambda s: scores[s.key] - base[s.key],
        "mean_log_prob": lambda s: scores[s.key] / _length(s),
    }
    right = _table(rows, lambda s: float(s.score == 1), 0.0)
    mask = _table(rows, lambda s: True, False).astype(bool)
    best = {
        rule: stats.best_of_k(_table(rows, score, 0.0), right, ks, mask=mask)
        for rule, score in rules.items()
    }
    passed, votes = pass_at_k(rows, ks), majority_at_k(task, rows, ks)
    return VerifierReport(
        task=task.name,
        num_problems=len(rows),
        num_candidates=min(map(len, rows.values())),
        pass_at_1=measure(passed[:, 0], seed=seed),
        pass_at_k=by_k(ks, passed, seed),
        best_of_k={rule: by_k(ks, table, seed) for rule, table in best.items()},
        majority_at_k=by_k(ks, votes, seed),
        weighted_majority_at_k=by_k(ks, _weighted(task, rows, scores, ks, seed), seed),
        best_over_majority=by_k(ks, best["log_prob"] - votes if votes.size else votes, seed),
        best_over_one=by_k(ks, best["log_prob"] - passed[:, :1], seed),
    )


def _weighted(
    task: Task,
    rows: Mapping[str, Sequence[Sample]],
    scores: Mapping[Any, float],
    ks: Sequence[int],
    seed: int,
) -> NDArray[np.float64]:
    if task.final_answer is None:
        return np.zeros((0, 0))
    table, found = np.zeros((len(rows), len(ks))), ballots(task, rows)
    if found:
        of_problem = [[scores[s.key] for s in samples] for samples in rows.values()]
        votes = stats.weighted_majority_at_k(
            [b.answers for b in found],
            [of_problem[b.problem] for b in found],
            [b.right for b in found],
            ks,
            seed=seed,
        )
        np.add.at(table, [b.problem for b in found], votes.values)
    return table


def _table(rows: Mapping[str, Sequence[Sample]], value: Any, filler: Any) -> NDArray[np.float64]:
    """Return one number a sample, [problems, samples], rows filled up to the longest."""
    longest = max(map(len, rows.values()))
    lines = [[*map(value, own), *[filler] * (longest - len(own))] for own in rows.values()]
    return np.array(lines, dtype=np.float64)


def _length(sample: Sample) -> int:
    """Return the number of scored tokens, or of characters where ids are not known."""
    return max(1, len(sample.token_ids) if sample.token_ids is not None else len(sample.text))


def _measures(table: Mapping[str, Any]) -> dict[int, Measure]:
    return {int(k): Measure(**value) for k, value in table.items()}
