"""Both models of a step in the same process, asked for hidden states where they can be."""

import contextlib
from dataclasses import replace

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn

from selftrain.distill.heads import find_head, scored_hidden
from selftrain.distill.targets import HiddenTargets, LogitTargets
from selftrain.nn.modes import training_mode
from selftrain.ops.linear_divergence import Head
from selftrain.training.batch import MicroBatch, scored_logits, takes_logits_to_keep
from selftrain.training.learner import Learner

_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class ModelTeacher:
    """Gives hidden states and head of a model, or its logits where it has no plain head.

    Args:
        model: Returns logits the Hugging Face way. It runs in evaluation mode and without
            gradients, whatever mode it is in otherwise.
        accelerator: The process layer, for its autocast; None: the model's own precision.
    """

    def __init__(
        self,
        model: nn.Module,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.model = model
        self._autocast = accelerator.autocast if accelerator else contextlib.nullcontext
        self._dtype = _HALF.get(accelerator.mixed_precision) if accelerator else None
        self._slices = takes_logits_to_keep(model)
        self._access = find_head(model, slices_logits=self._slices)

    @torch.no_grad()
    def targets(self, batch: MicroBatch) -> HiddenTargets | LogitTargets:
        """Return what the model makes of the scored places."""
        with training_mode(False, self.model), self._autocast():
            if self._access is None:
                return LogitTargets(scored_logits(self.model, batch, slices_logits=self._slices))
            hidden = scored_hidden(self.model, batch, self._access)
            return _lowered(hidden, self._access.head, self._dtype)


class StudentScores:
    """Runs the student in training: its hidden states and head, or its logits.

    Args:
        learner: Trains the student. Where parameters are sharded over processes the head is whole
            only inside the forward pass, so that logits are taken.
    """

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._dtype = _HALF.get(learner.accelerator.mixed_precision)
        self._slices = takes_logits_to_keep(learner.module)
        sharded = learner.accelerator.distributed_type in _SHARDED
        self._access = None if sharded else find_head(learner.module, slices_logits=self._slices)

    def __call__(self, batch: MicroBatch) -> HiddenTargets | LogitTargets:
        """Return what the student makes of the scored places."""
        model, access = self._learner.model, self._access
        if access is None:
            return LogitTargets(scored_logits(model, batch, slices_logits=self._slices))
        return _lowered(scored_hidden(model, batch, access), access.head, self._dtype)


def _lowered(hidden: Tensor, head: Head, dtype: torch.dtype | None) -> HiddenTargets:
    """Return them in the precision of the product, as autocast does inside a forward pass."""
    if dtype is None:
        return HiddenTargets(hidden, head)
    bias = None if head.bias is None else head.bias.to(dtype)
    head = replace(head, weight=head.weight.to(dtype), bias=bias)
    return HiddenTargets(hidden.to(dtype), head)
