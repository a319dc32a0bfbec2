"""A model in the same process as a teacher."""

import contextlib
from collections.abc import Callable

import torch
from torch import nn

from selftrain.distill.targets import LogitTargets
from selftrain.nn.modes import training_mode
from selftrain.training.batch import MicroBatch, scored_logits, takes_logits_to_keep


class ModelTeacher:
    """Gives a model's logits.

    Args:
        model: Returns logits the Hugging Face way. It runs in evaluation mode and without
            gradients, whatever mode it is in otherwise.
        context: Entered around its forward pass: an accelerator's ``autocast``, for example.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        context: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self.model, self._context = model, context
        self._slices = takes_logits_to_keep(model)

    @torch.no_grad()
    def targets(self, batch: MicroBatch) -> LogitTargets:
        """Return what the model makes of the scored places."""
        with training_mode(False, self.model), self._context():
            return LogitTargets(scored_logits(self.model, batch, slices_logits=self._slices))
