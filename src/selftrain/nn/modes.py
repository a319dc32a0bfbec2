"""Training and evaluation mode, borrowed."""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn


@contextlib.contextmanager
def training_mode(training: bool, *models: nn.Module) -> Iterator[None]:
    """Put models in training or evaluation mode inside the block; restore every flag after it.

    A model that is in that mode already is left alone, submodules that differ from it included.

    Args:
        training: The mode.
        models: The models.
    """
    switched = [model for model in models if model.training != training]
    flags = [(module, module.training) for model in switched for module in model.modules()]
    try:
        for model in switched:
            model.train(training)
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def recompute_activations(model: Any) -> None:
    """Let a transformers model compute activations again in the backward pass, while it trains."""
    # transformers renamed it during 5.x.
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
