"""Divergence and cross entropy from hidden states (first, plain form)."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from selftrain.ops.divergence import divergence


@dataclass(frozen=True, slots=True)
class Head:
    """A linear output head: logits are softcap * tanh(scale * (h W^T + b) / softcap)."""

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None


@dataclass(frozen=True, slots=True)
class LinearDivergence:
    """The weighted sum of losses, and detached values per token."""

    loss: Tensor
    values: dict[str, Tensor] = field(default_factory=dict)


def _logits(hidden: Tensor, head: Head) -> Tensor:
    y = F.linear(hidden, head.weight, head.bias).float() * head.scale
    return y if head.softcap is None else head.softcap * torch.tanh(y / head.softcap)


def linear_divergence(
    student_hidden: Tensor,
    student_head: Head,
    teacher_hidden: Tensor,
    teacher_head: Head,
    weights: Tensor,
    *,
    alpha: float = 0.1,
    **options: Any,
) -> LinearDivergence:
    """Return sum_n w_n D_n."""
    s, t = _logits(student_hidden, student_head), _logits(teacher_hidden, teacher_head).detach()
    shared = min(s.shape[-1], t.shape[-1])
    loss = divergence(s[:, :shared], t[:, :shared], **options)
    return LinearDivergence((loss * weights).sum(), {"loss": loss.detach()})


def linear_cross_entropy(
    student_hidden: Tensor, head: Head, labels: Tensor, weights: Tensor
) -> LinearDivergence:
    """Return sum_n w_n (-log q(y_n))."""
    loss = F.cross_entropy(_logits(student_hidden, head), labels, reduction="none")
    return LinearDivergence((loss * weights).sum(), {"loss": loss.detach()})
