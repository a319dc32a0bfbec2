"""A student with adapters, whose teacher is its own base."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from selftrain.distill.teachers.model import ModelTeacher
from selftrain.training.batch import MicroBatch
from selftrain.training.targets import HiddenTargets, LogitTargets


class AdapterFreeTeacher:
    """Teaches with the student's base: its adapters are off while it teaches.

    Nothing is copied, so a teacher costs no memory beyond its forward pass. The student is left as
    it was, after an error too: adapters, training mode, and which parameters require a gradient.

    Args:
        student: A PEFT model (``peft.get_peft_model``), not a wrapper of it for several processes.
        context: Entered around the forward pass: an accelerator's ``autocast``, for example.

    Raises:
        TypeError: If the student has no adapters to switch off.
        ValueError: If they are merged into the base.
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        context: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        if not hasattr(student, "disable_adapter"):
            raise TypeError(
                f"the student is a {type(student).__name__} without adapters, so it has no base "
                "apart from itself. Give it some (peft.get_peft_model), or pass a teacher: a "
                "frozen copy (copy.deepcopy), or EMATeacher(student)."
            )
        self.student = student
        self._context = context
        with self._adapters_off():  # it is the base whose head is looked for
            self._inner = ModelTeacher(student, context=self._as_base)

    def targets(self, batch: MicroBatch) -> HiddenTargets | LogitTargets:
        """Return what the base makes of the scored places.

        Raises:
            ValueError: If adapters are merged into the base, so that it is not to be had.
        """
        return self._inner.targets(batch)

    @contextlib.contextmanager
    def _as_base(self) -> Iterator[None]:
        with self._adapters_off(), self._context():
            yield

    @contextlib.contextmanager
    def _adapters_off(self) -> Iterator[None]:
        student: Any = self.student
        # A merged adapter would be taken out of the weights by this pass, and not put back.
        if any(getattr(module, "merged", False) is True for module in student.modules()):
            raise ValueError(
                "the student's adapters are merged into its base, which therefore cannot teach. "
                "Call student.unmerge_adapter() before training."
            )
        flags = [(parameter, parameter.requires_grad) for parameter in student.parameters()]
        try:
            with student.disable_adapter():
                yield
        finally:
            # Switched on again, the active adapters require gradients whether they did or not.
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
