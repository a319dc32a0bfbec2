"""What a model says of the scored tokens of a batch: its logits, or what its head makes them of.

Shape letters: N scored tokens, V vocabulary, H hidden size.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from selftrain.ops.linear_divergence import Head


@dataclass(frozen=True, slots=True)
class LogitTargets:
    """The model's logits over its whole vocabulary."""

    logits: Tensor
    """``[N, V]``."""

    def __post_init__(self) -> None:
        check_float_matrix("logits", self.logits)


@dataclass(frozen=True, slots=True)
class HiddenTargets:
    """The model's last hidden states, and the head that makes logits of them."""

    hidden: Tensor
    """``[N, H]``: exactly what the head receives, behind every norm and factor."""
    head: "Head"
    """The output head."""

    def __post_init__(self) -> None:
        check_float_matrix("hidden", self.hidden)
        size = self.head.weight.shape[-1]
        if self.hidden.shape[-1] != size:
            raise ValueError(
                f"hidden has {self.hidden.shape[-1]} features, but the head's weight is "
                f"{list(self.head.weight.shape)} and takes {size}. Give the hidden states that "
                "this head receives."
            )


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


def check_float_matrix(name: str, tensor: Tensor) -> None:
    """Raise unless ``tensor`` has two axes and is floating point."""
    if tensor.ndim != 2:
        raise ValueError(
            f"{name} must have two axes, one row for each scored token, got shape "
            f"{list(tensor.shape)}."
        )
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {tensor.dtype}.")
