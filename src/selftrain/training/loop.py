"""What surrounds the steps of a training run: resuming, saving, logging and the progress bar.

A run is resumed exactly, because its state is the model, the optimizer and the number of steps
taken; everything else follows from the seed and the step.
"""

import contextlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from selftrain._core.io import read_jsonl
from selftrain._core.logging import MetricLog, progress
from selftrain._core.run import open_run
from selftrain.training.checkpoint import load_checkpoint, save_checkpoint
from selftrain.training.learner import Learner
from selftrain.training.updates import Updater


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of a training run."""

    steps: int
    """Optimizer steps taken, those before a resumption included."""
    history: list[dict[str, float]]
    """The logged metrics, each row with its ``step`` (from 0)."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The last row, without ``step``; empty if no step was logged."""


class TrainingRun:
    """The steps still to take, and what is done after each; a context that shows the progress bar.

    Args:
        learner: What is trained.
        stage: The run's name in logs, and on the bar.
        output_dir: Holds ``config.json``, ``manifest.json``, ``metrics.jsonl`` and the newest
            checkpoint; the run continues from it. None: nothing is written.
        first_step: Number of steps already taken, if there is no checkpoint.
        show_progress: Whether to show a bar on the main process.

    Raises:
        RunConflictError: If the folder holds a run with another configuration.
    """

    def __init__(
        self,
        learner: Learner | Updater,
        *,
        stage: str,
        output_dir: str | Path | None = None,
        first_step: int = 0,
        show_progress: bool = True,
    ) -> None:
        self._learner, self._stage, self._first_step = learner, stage, first_step
        self._folder = None if output_dir is None else Path(output_dir)
        self._main = learner.accelerator.is_main_process
        self._show = show_progress and self._main
        self._bars = contextlib.ExitStack()
        self._log: MetricLog | None = None
        self._history: list[dict[str, float]] = []
        self.extra: dict[str, Any] = {}
        """What the last checkpoint's ``extra`` held."""
        if self._folder is not None:
            self._resume(self._folder)

    def _resume(self, folder: Path) -> None:
        accelerator, config = self._learner.accelerator, self._learner.config
        if self._main:
            open_run(folder, config, seed=config.seed)
        checkpoint = load_checkpoint(folder, self._learner.module, self._learner.optimizer)
        if checkpoint is not None:
            self._first_step, self.extra = checkpoint.step, checkpoint.extra
        # Nobody may write the next checkpoint while another process still looks for this one.
        accelerator.wait_for_everyone()
        if self._main:
            path = folder / "metrics.jsonl"
            tracker = accelerator if accelerator.trackers else None
            self._log = MetricLog(
                path, stage=self._stage, first_step=self._first_step, tracker=tracker
            )
            rows = [row for row in read_jsonl(path) if row.pop("stage") == self._stage]
            self._history = rows

    def __enter__(self) -> Self:
        total = self._learner.config.num_steps
        bar = progress(self._stage, total, done=self._first_step, show=self._show)
        self._bar = self._bars.enter_context(bar)
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.close()

    @property
    def first_step(self) -> int:
        """The first step to take."""
        return self._first_step

    def steps(self) -> range:
        """Return the numbers of the steps to take."""
        return range(self._first_step, self._learner.config.num_steps)

    def eval_due(self, step: int) -> bool:
        """Return whether to evaluate after this step: every ``eval_every``, and after the last."""
        return self._due(step, self._learner.config.eval_every)

    def save_due(self, step: int) -> bool:
        """Return whether a checkpoint is saved after this step."""
        return self._folder is not None and self._due(step, self._learner.config.save_every)

    def finish_step(
        self, step: int, metrics: dict[str, float], extra: dict[str, Any] | None = None
    ) -> None:
        """Log and save as the configuration says; the last step always.

        Args:
            step: The step just taken.
            metrics: What it measured, ``loss`` among them.
            extra: Plain data to store with the checkpoint.
        """
        config = self._learner.config
        evaluated = any(name.startswith("eval/") for name in metrics)
        # Logged before it is saved: a row whose step was not saved is dropped on resuming.
        if evaluated or self._due(step, config.log_every):
            self._history.append({"step": step, **metrics})
            if self._log is not None:
                self._log.log(step, metrics)
        if self._folder is not None and self._main and self.save_due(step):
            module, optimizer = self._learner.module, self._learner.optimizer
            save_checkpoint(self._folder, step + 1, module, optimizer, extra)
        self._bar.update(step + 1, f"loss {metrics['loss']:.4f}")

    def report(self) -> Report:
        """Return the outcome so far."""
        last = dict(self._history[-1]) if self._history else {}
        last.pop("step", None)
        steps = max(self._first_step, self._learner.config.num_steps)
        return Report(steps=steps, history=list(self._history), metrics=last)

    def _due(self, step: int, every: int | None) -> bool:
        return step + 1 == self._learner.config.num_steps or (step + 1) % (every or math.inf) == 0
