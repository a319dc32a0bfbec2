"""Where the benchmarks of this repository keep their results, and what they share."""

from pathlib import Path

from selftrain.bench.harness import Goal, environment_line, mean_and_spread, save_rows, table

__all__ = ["ROOT", "Goal", "environment_line", "mean_and_spread", "save_rows", "table"]

ROOT = Path(__file__).parents[1]
