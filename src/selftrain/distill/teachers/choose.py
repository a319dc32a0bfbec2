"""What a Distiller is given as its teacher, as an object with targets."""

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from selftrain.distill.pair import freeze
from selftrain.distill.targets import Teacher
from selftrain.distill.teachers.adapters import AdapterFreeTeacher
from selftrain.distill.teachers.ema import EMATeacher
from selftrain.distill.teachers.model import ModelTeacher


def as_teacher(teacher: Any, student: nn.Module, accelerator: Accelerator) -> Teacher:
    """Return the teacher that is meant: see :class:`selftrain.distill.Distiller`.

    Raises:
        TypeError: If it is nothing to learn from, or None and the student has no adapters.
    """
    if teacher is None:
        return AdapterFreeTeacher(student, context=accelerator.autocast)
    if isinstance(teacher, nn.Module):
        freeze(teacher)
        teacher.to(accelerator.device)
        return ModelTeacher(teacher, context=accelerator.autocast)
    if not hasattr(teacher, "targets"):
        raise TypeError(
            f"teacher must be a model, an object with a method targets, or None, got {teacher!r}. "
            "A function becomes one as CallableTeacher(function)."
        )
    return teacher


def save_average(
    teacher: Teacher, output_dir: str | Path | None, step: int, accelerator: Accelerator
) -> None:
    """Write the state of an EMA teacher beside the checkpoint of the same step.

    The state of the last checkpoint stays until a later call: whenever the process is killed, that
    of the checkpoint that is there is there too.
    """
    if not isinstance(teacher, EMATeacher) or output_dir is None:
        return
    if accelerator.is_main_process:
        older = sorted(Path(output_dir).glob("average-*.safetensors"))
        teacher.save(_path(output_dir, step))
        for path in older[:-1]:
            path.unlink(missing_ok=True)


def restore_average(teacher: Teacher, output_dir: str | Path | None, step: int) -> None:
    """Restore what :func:`save_average` wrote at a step; nothing at the beginning of a run."""
    if isinstance(teacher, EMATeacher) and output_dir is not None and step:
        teacher.load(_path(output_dir, step))


def _path(output_dir: str | Path, step: int) -> Path:
    return Path(output_dir) / f"average-{step:08d}.safetensors"
