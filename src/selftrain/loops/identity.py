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
    task: str
    """Of the problems trained on."""
    validation: str
    """Of those that decide."""
    test: str | None
    """Of those measured on."""

    @classmethod
    def of(
        cls,
        config: ReSTEMConfig,
        base: Snapshot,
        task: Task,
        validation: Task,
        test: Task | None,
    ) -> Self:
        """Take the fingerprints."""
        return cls(
            config=config,
            base=base.fingerprint(),
            task=_of_task(task),
            validation=_of_task(validation),
            test=None if test is None else _of_task(test),
        )


def _of_task(task: Task) -> str:
    return fingerprint([task.name, task.prefix, [to_dict(problem) for problem in task.problems]])
