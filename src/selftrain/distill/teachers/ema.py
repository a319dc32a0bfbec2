"""The student's own past as a teacher."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from torch import nn

from selftrain.distill.teachers.model import ModelTeacher
from selftrain.nn.ema import EMA
from selftrain.training.batch import MicroBatch
from selftrain.training.targets import HiddenTargets, LogitTargets


class EMATeacher:
    """Teaches with an exponential moving average of the student's weights ("mean teacher").

    Only what is trained is copied and averaged: see :class:`selftrain.nn.EMA`. Call
    :meth:`update` after every optimizer step. Sharded students (FSDP2) have not been tried.

    Args:
        student: The model being trained, before it is wrapped for several processes.
        decay: The factor on the old average, in [0, 1].
        update_every: Take only every so many-th update.
        context: Entered around the forward pass: an accelerator's ``autocast``, for example.

    Raises:
        ValueError: If an argument is out of range, or nothing of the student is trained.
    """

    def __init__(
        self,
        student: nn.Module,
        decay: float = 0.999,
        *,
        update_every: int = 1,
        context: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self.average = EMA(student, decay, update_every=update_every)
        """The average itself."""
        self._inner = ModelTeacher(self.average.model, context=context)

    def targets(self, batch: MicroBatch) -> HiddenTargets | LogitTargets:
        """Return what the average makes of the scored places."""
        # The student may have moved to its device after the average was made.
        self.average.model.to(batch.labels.device)  # pyrefly: ignore[bad-argument-type]
        return self._inner.targets(batch)

    def update(self) -> None:
        """Take the student's current weights into the average."""
        self.average.update()

    def save(self, path: str | Path) -> None:
        """Write the averages to one safetensors file, to continue a run exactly."""
        self.average.save(path)

    def load(self, path: str | Path) -> None:
        """Continue from what :meth:`save` wrote; raises ``ValueError`` for another model's."""
        self.average.load(path)
