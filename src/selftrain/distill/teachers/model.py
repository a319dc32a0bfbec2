"""A model in the same process as a teacher."""

import contextlib
from collections.abc import Callable

import torch
from torch import nn

from selftrain.nn.modes import training_mode
from selftrain.training.batch import MicroBatch
from selftrain.training.heads import Scorer
from selftrain.training.targets import HiddenTargets, LogitTargets


class ModelTeacher:
    """Gives hidden states and head of a model, or its logits where it has no plain head.

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
        self._scores = Scorer(model)

    @torch.no_grad()
    def targets(self, batch: MicroBatch) -> HiddenTargets | LogitTargets:
        """Return what the model makes of the scored places."""
        with training_mode(False, self.model), self._context():
            return self._scores(self.model, batch)
