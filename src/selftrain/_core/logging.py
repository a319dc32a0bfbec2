"""A metrics log on disk, and progress bars."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from selftrain._core.io import append_jsonl, read_jsonl, write_jsonl


class Tracker(Protocol):
    """What :class:`MetricLog` forwards to: any ``accelerate`` tracker, or the accelerator."""

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        """Record ``values`` at ``step``."""
        ...


class MetricLog:
    """Append rows of metrics to a JSONL file, and forward them to a tracker when one is given.

    Args:
        path: The file. Rows at or after ``first_step`` of the same ``stage``, left by a run that
            was killed between logging and saving, are dropped when the log is opened.
        stage: Written into every row, so that the stages of one run share a file.
        first_step: The step at which this process begins.
        tracker: Gets every row as well.
    """

    def __init__(
        self, path: str | Path, *, stage: str, first_step: int = 0, tracker: Tracker | None = None
    ) -> None:
        self.path, self.stage, self.tracker = Path(path), stage, tracker
        rows = read_jsonl(self.path)
        keep = [r for r in rows if r.get("stage") != stage or r["step"] < first_step]
        if self.path.exists():
            write_jsonl(self.path, keep)  # also drops a row that a crash cut off

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append one row."""
        append_jsonl(self.path, {"stage": self.stage, "step": step, **metrics})
        if self.tracker is not None:
            self.tracker.log({f"{self.stage}/{k}": v for k, v in metrics.items()}, step=step)


class Bar(Protocol):
    """One progress bar."""

    def update(self, completed: int, note: str = "") -> None:
        """Show ``completed`` units done, with a short note beside the bar."""
        ...


class _Silent:
    def update(self, completed: int, note: str = "") -> None:
        """Show nothing."""


class _Rich:
    def __init__(self, progress: Any, task: Any) -> None:
        self._progress, self._task = progress, task

    def update(self, completed: int, note: str = "") -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=completed, note=note)


@contextlib.contextmanager
def progress(title: str, total: int, *, done: int = 0, show: bool = True) -> Iterator[Bar]:
    """Show a bar with elapsed and remaining time while the block runs; silent if not ``show``."""
    if not show:
        yield _Silent()
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns) as bars:
        yield _Rich(bars, bars.add_task(title, total=total, completed=done, note=""))
