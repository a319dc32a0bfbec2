"""The report of value agents over seeds: a table, a learning curve."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rich.table
from rich import box
from rich.console import Console

from selftrain._core.card import settings_of
from selftrain._core.config import to_dict
from selftrain.report import Block, Heading, Image, Table, Text, write_report
from selftrain.rl.config import DQNConfig
from selftrain.rl.evaluate import Evaluation
from selftrain.rl.train import TrainResult
from selftrain.stats import bootstrap_interval

_COLUMNS = ["seed", "return", "best", "steps", "updates"]


@dataclass(frozen=True, slots=True)
class SeedResult:
    """What one seed gave."""

    seed: int
    """The seed."""
    num_env_steps: int
    """Steps of the environments."""
    num_updates: int
    """Updates."""
    result: TrainResult
    """Its metrics and evaluations."""

    @property
    def final(self) -> Evaluation:
        """The evaluation at the end."""
        return self.result.evaluations[-1].evaluation


def write_seeds(folder: Path, parts: Any, config: DQNConfig, results: Sequence[SeedResult]) -> Path:
    """Draw the learning curve and write the report; return its path."""
    name = f"{parts.head} on {parts.env}"
    picture = _draw(folder, name, results)
    settings = settings_of(to_dict(parts)) | settings_of(to_dict(config))
    blocks: list[Block] = [
        Text(f"Return at the end, {_over_seeds(results)}."),
        picture,
        Table(_COLUMNS, _rows(results), _CAPTION),
        Heading("Settings"),
        Table(["setting", "value"], list(settings.items())),
    ]
    return write_report(folder, f"DQN, {name}", blocks)


def show_seeds(results: Sequence[SeedResult], report: Path) -> None:
    """Print the table, and where everything lies."""
    console = Console()
    table = rich.table.Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    for row in _rows(results):
        table.add_row(*row)
    console.print(table)
    for line in (f"Return at the end, {_over_seeds(results)}.", f"Report: {report}"):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


_CAPTION = (
    "Return: mean of the episodes of the last evaluation, with a 95 % interval by bootstrap over "
    "them. Best: the highest mean of all evaluations, chosen by looking, and so too high."
)


def _rows(results: Sequence[SeedResult]) -> list[list[str]]:
    return [
        [
            str(r.seed),
            _with_interval(r.final.returns),
            f"{max(e.evaluation.mean for e in r.result.evaluations):.4g}",
            f"{r.num_env_steps:,}",
            f"{r.num_updates:,}",
        ]
        for r in results
    ]


def _over_seeds(results: Sequence[SeedResult]) -> str:
    means = np.array([r.final.mean for r in results])
    if len(means) == 1:
        return f"one seed: {means[0]:.4g}"
    return f"mean of {len(means)} seeds with a 95 % interval over seeds: {_with_interval(means)}"


def _with_interval(values: np.ndarray) -> str:
    if len(values) < 2:
        return f"{values.mean():.4g}"
    found = bootstrap_interval(values)
    return f"{found.mean:.4g} ({found.low:.4g}–{found.high:.4g})"


def _draw(folder: Path, name: str, results: Sequence[SeedResult]) -> Image:
    from selftrain import plots

    num = min(len(r.result.evaluations) for r in results)
    steps = [e.step for e in results[0].result.evaluations[:num]]
    means = np.array([[e.evaluation.mean for e in r.result.evaluations[:num]] for r in results])
    intervals = {}
    if len(results) > 1:
        found = bootstrap_interval(means)
        intervals = {name: (np.asarray(found.low), np.asarray(found.high))}
    curves = {name: (steps, means.mean(0))}
    ax = plots.learning_curves(curves, intervals=intervals, ylabel="return of an episode")
    plots.save_figure(ax, folder / "learning_curve.png")
    caption = "Band: 95 % interval over seeds." if intervals else "One seed: no interval."
    return Image("learning_curve.png", "Return of evaluations over steps.", caption)
