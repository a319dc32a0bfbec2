"""What a teacher says of the scored tokens of a batch, in the forms that the losses take.

Shape letters: N scored tokens, V vocabulary, H hidden size, K tokens kept.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from selftrain.training.batch import MicroBatch

if TYPE_CHECKING:
    from selftrain.ops.linear_divergence import Head


@dataclass(frozen=True, slots=True)
class LogitTargets:
    """The teacher's logits over its whole vocabulary."""

    logits: Tensor
    """``[N, V]``."""

    def __post_init__(self) -> None:
        _check_float_matrix("logits", self.logits)


@dataclass(frozen=True, slots=True)
class HiddenTargets:
    """The teacher's last hidden states, and the head that makes logits of them."""

    hidden: Tensor
    """``[N, H]``: exactly what the head receives, behind every norm and factor."""
    head: "Head"
    """The output head."""

    def __post_init__(self) -> None:
        _check_float_matrix("hidden", self.hidden)
        size = self.head.weight.shape[-1]
        if self.hidden.shape[-1] != size:
            raise ValueError(
                f"hidden has {self.hidden.shape[-1]} features, but the head's weight is "
                f"{list(self.head.weight.shape)} and takes {size}. Give the hidden states that "
                "this head receives."
            )


@dataclass(frozen=True, slots=True)
class TopKTargets:
    """The teacher's most likely tokens. What they leave of the mass is the tail's."""

    token_ids: Tensor
    """``[N, K]``: distinct within a row."""
    log_probs: Tensor
    """``[N, K]``: natural logarithms at temperature 1, normalised over the whole vocabulary."""

    def __post_init__(self) -> None:
        _check_float_matrix("log_probs", self.log_probs)
        if self.token_ids.is_floating_point() or self.token_ids.is_complex():
            raise TypeError(
                f"token_ids must be integers, got {self.token_ids.dtype}; the order is "
                "(token_ids, log_probs)."
            )
        if self.token_ids.shape != self.log_probs.shape:
            raise ValueError(
                f"token_ids has shape {list(self.token_ids.shape)} and log_probs "
                f"{list(self.log_probs.shape)}; each id needs one log-probability."
            )
        if not self.token_ids.shape[1]:
            raise ValueError("token_ids has no column: at least one token a position is needed.")


Targets = LogitTargets | HiddenTargets | TopKTargets
"""Any of the three forms."""


class Teacher(Protocol):
    """Anything that can be learnt from: a model, a server, a file."""

    def targets(self, batch: MicroBatch) -> Targets:
        """Return targets for the ``N`` scored tokens of the batch, in its order, on its device."""
        ...


def dense_logits(scores: LogitTargets | HiddenTargets) -> Tensor:
    """Return the logits ``[N, V]``, projecting hidden states with their head."""
    if isinstance(scores, LogitTargets):
        return scores.logits
    head = scores.head
    dtype = scores.hidden.dtype
    bias = None if head.bias is None else head.bias.to(dtype)
    logits = F.linear(scores.hidden, head.weight.to(dtype), bias)
    logits = logits if head.scale == 1 else logits * head.scale
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def _check_float_matrix(name: str, tensor: Tensor) -> None:
    if tensor.ndim != 2:
        raise ValueError(
            f"{name} must have two axes, one row for each scored token, got shape "
            f"{list(tensor.shape)}."
        )
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {tensor.dtype}.")
