"""The optimizer and the learning rate, a pure function of the step."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from selftrain._core.checks import check_choice, check_int, check_range


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """How parameters are updated: AdamW, a warm-up and a decay of the learning rate."""

    learning_rate: float = 3e-4
    """Peak learning rate."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly to its peak."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls from the peak to the last step."""
    final_fraction: float = 0.1
    """The learning rate that "linear" and "cosine" end at, as a fraction of the peak."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices; vectors (norms, biases) are never decayed."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's first and second moment, in [0, 1)."""
    max_grad_norm: float | None = 1.0
    """Gradients are scaled down to this global norm; None leaves them as they are."""

    def __post_init__(self) -> None:
        check_range("learning_rate", self.learning_rate, low=0.0, low_open=True)
        check_int("warmup_steps", self.warmup_steps, low=0)
        check_choice("schedule", self.schedule, ("constant", "linear", "cosine"))
        check_range("final_fraction", self.final_fraction, low=0.0, high=1.0)
        check_range("weight_decay", self.weight_decay, low=0.0)
        if len(self.betas) != 2:
            raise ValueError(f"betas must be two numbers, got {self.betas!r}.")
        for beta in self.betas:
            check_range("betas", beta, low=0.0, high=1.0, high_open=True)
        if self.max_grad_norm is not None:
            check_range("max_grad_norm", self.max_grad_norm, low=0.0, low_open=True)


def learning_rate_at(step: int, num_steps: int, config: OptimConfig) -> float:
    """Return the learning rate of step ``step`` (from 0) of a run of ``num_steps``.

    The warm-up's first step already learns (at peak / warmup_steps); the last step of a decaying
    schedule is at ``final_fraction`` of the peak.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    span = max(1, num_steps - 1 - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / span)
    left = 1.0 - progress
    if config.schedule == "cosine":
        left = 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.learning_rate * (config.final_fraction + (1.0 - config.final_fraction) * left)


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters; vectors and scalars are not decayed.

    Raises:
        ValueError: If the model has no trainable parameter.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("the model has no parameter with requires_grad=True; nothing would learn.")
    groups = [
        {
            "params": [p for p in trainable if p.ndim >= 2],
            "weight_decay": config.weight_decay,
        },
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=config.betas,
        fused=True,  # one pass over the parameters; the loop over tensors costs a small model dear
    )
