"""What makes two runs the same one, so that a folder is never continued with something else."""

from dataclasses import dataclass
from typing import Self

from selftrain._core.config import fingerprint, to_dict
from selftrain.loops.config import ReSTEMConfig
from selftrain.tasks.base import Task
from selftrain.training.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """Settings, and fingerprints of what is too large to write down."""

    config: ReSTEMConfig
    """The settings."""
    base: str
    """Of the first weights."""
    tasks: tuple[tuple[str, str], ...]
    """Of the problems, by their part in the run."""

    @classmethod
    def of(cls, config: ReSTEMConfig, base: Snapshot, **tasks: Task | None) -> Self:
        """Take the fingerprints of weights and problems."""
        return cls(
            config=config,
            base=base.fingerprint(),
            tasks=tuple((name, _of_task(t)) for name, t in tasks.items() if t is not None),
        )


def _of_task(task: Task) -> str:
    return fingerprint([task.name, task.prefix, [to_dict(problem) for problem in task.problems]])
