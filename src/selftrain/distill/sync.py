"""New weights for samplers outside this process."""

import shutil
import tempfile
from pathlib import Path

from accelerate import Accelerator
from transformers import PreTrainedModel

from selftrain._core.io import atomic_folder
from selftrain.decoding.weights import WeightSync


class WeightSender:
    """Gives an external sampler the student's weights, once for each step that samples.

    With adapters only those are written. The folder is a temporary one of this machine, so the
    server has to see the same disk.

    Args:
        sampler: What samples from the student; without ``load_weights`` nothing is ever sent.
        student: The student.
        accelerator: The process layer; the main process sends.
    """

    def __init__(self, sampler: object, student: PreTrainedModel, accelerator: Accelerator) -> None:
        self._sampler = sampler if isinstance(sampler, WeightSync) else None
        self._student, self._accelerator = student, accelerator
        self._sent: int | None = None
        self._folder: Path | None = None

    def __call__(self, num_steps: int) -> None:
        """Send the weights after so many steps, unless that was done; all processes call it."""
        if self._sampler is None or self._sent == num_steps:
            return
        if self._accelerator.is_main_process:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="selftrain-weights-"))
            path = self._folder / f"step-{num_steps:08d}"
            with atomic_folder(path) as folder:
                self._student.save_pretrained(folder)
            self._sampler.load_weights(path)
            if self._sent is not None:
                shutil.rmtree(self._folder / f"step-{self._sent:08d}", ignore_errors=True)
        self._accelerator.wait_for_everyone()
        self._sent = num_steps
