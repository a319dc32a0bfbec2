"""What every benchmark shares: goals, results on disk, tables."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selftrain._core.io import manifest, write_text


@dataclass(frozen=True)
class Goal:
    """A stated goal and what was measured."""

    name: str
    """What was measured, in a few words."""
    measured: float
    """The number."""
    bound: float
    """The number wanted."""
    at_least: bool = True
    """Whether more is better."""

    @property
    def met(self) -> bool:
        """Whether the goal was reached."""
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound

    def line(self) -> str:
        """Return the line that ends a benchmark's output."""
        sign = ">=" if self.at_least else "<="
        verdict = "met" if self.met else "short"
        return f"goal {self.name}: {self.measured:.3f} (wanted {sign} {self.bound}) {verdict}"


def mean_and_spread(values: Sequence[float]) -> str:
    """Return "mean ± standard deviation" over seeds, the mean alone for one value."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def save_rows(path: Path, rows: list[dict[str, Any]], *, seed: int, goals: Sequence[Goal]) -> None:
    """Write rows, goals and the environment's fingerprint to ``path``."""
    data = {
        "environment": manifest(seed=seed),
        "rows": rows,
        "goals": [goal.line() for goal in goals],
    }
    write_text(path, json.dumps(data, indent=1) + "\n")


def environment_line(environment: dict[str, Any]) -> str:
    """Say in one sentence where numbers were measured."""
    versions = environment["versions"]
    machine = environment["gpu"] or environment["cpu"]
    return (
        f"{machine}, {environment['num_threads']} threads, Python {environment['python']}, "
        f"torch {versions['torch']}, transformers {versions['transformers']}"
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
