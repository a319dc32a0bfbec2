"""The best model of a run, kept beside the newest."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from selftrain._core.io import read_json, write_json

Judge = Callable[[Any], Mapping[str, float]]
"""Judges a model: called with it, returns numbers."""

_FILE = "best.json"


class Best:
    """Keeps the model with the largest value of one measure.

    Args:
        output_dir: The run's folder; the model lies in ``best`` in it.
        name: The measure; None keeps nothing.
        judged: Whether anything is measured at all.

    Raises:
        ValueError: If there is a measure, but no folder or nothing that measures.
    """

    def __init__(self, output_dir: str | Path | None, name: str | None, *, judged: bool) -> None:
        if name is not None and (output_dir is None or not judged):
            raise ValueError(
                f"keep_best={name!r} needs an output_dir to keep the model in, and a judge or an "
                "eval_dataset to measure it by."
            )
        self._name = name
        self._folder = None if output_dir is None else Path(output_dir) / "best"

    @property
    def folder(self) -> Path | None:
        """Where the best model lies; None if none is kept."""
        return None if self._name is None else self._folder

    @property
    def step(self) -> int | None:
        """Steps after which the model kept was measured; None before the first."""
        # Read from the disk, so that a run that was killed goes on from there.
        kept = self._kept()
        return None if kept is None else kept["step"]

    def offer(self, measured: Mapping[str, float], step: int, save: Callable[[Path], None]) -> None:
        """Keep today's model if it is better than the one kept.

        Args:
            measured: The evaluation.
            step: Steps taken.
            save: Writes the model into a folder, in place of what is there.

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
        kept = self._kept()
        if kept is not None and kept["value"] >= value:
            return
        save(self._folder)
        write_json(self._folder / _FILE, {"measure": self._name, "value": value, "step": step})

    def _kept(self) -> dict[str, Any] | None:
        if self._name is None or self._folder is None or not (self._folder / _FILE).exists():
            return None
        return read_json(self._folder / _FILE)
