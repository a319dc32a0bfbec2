"""The best student of a run, kept beside the newest."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from selftrain._core.io import read_json, write_json

Judge = Callable[[Any], Mapping[str, float]]
"""Judges a student: called with the model, returns numbers."""

_FILE = "best.json"


class Best:
    """Keeps the student with the largest value of one measure.

    Args:
        output_dir: The run's folder; the student lies in ``best`` in it.
        name: The measure; None keeps nothing.
        judged: Whether anything is measured at all.

    Raises:
        ValueError: If there is a measure, but no folder or nothing that measures.
    """

    def __init__(self, output_dir: str | Path | None, name: str | None, *, judged: bool) -> None:
        if name is not None and (output_dir is None or not judged):
            raise ValueError(
                f"keep_best={name!r} needs an output_dir to keep the student in, and a judge or an "
                "eval_dataset to measure it by."
            )
        self._name = name
        self._folder = None if output_dir is None else Path(output_dir) / "best"

    def offer(self, measured: Mapping[str, float], step: int, save: Callable[[Path], None]) -> None:
        """Keep today's student if it is better than the one kept.

        Args:
            measured: The evaluation.
            step: Steps taken.
            save: Writes the student into a folder, in place of what is there.

        Raises:
            ValueError: If the measure is not among them.
        """
        if self._name is None or self._folder is None:
            return
        if self._name not in measured:
            raise ValueError(
                f"keep_best={self._name!r} is not measured; measured are "
                f"{', '.join(sorted(measured))}."
            )
        value = measured[self._name]
        # What was kept is read from the disk, so that a run that was killed goes on from there.
        kept = self._folder / _FILE
        if kept.exists() and read_json(kept)["value"] >= value:
            return
        save(self._folder)
        write_json(kept, {"measure": self._name, "value": value, "step": step})
