"""A model with its optimizer: what turns gradients into a step, whatever the loss was."""

import contextlib
import math
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from selftrain._core.rng import seeded_torch
from selftrain.training.optim import build_optimizer, learning_rate_at
from selftrain.training.settings import RunSettings


class Updater:
    """A model, its optimizer and the processes that train it together.

    Args:
        model: The model to train; only parameters that require gradients are.
        config: Settings of the steps.
        accelerator: The process layer; it must not accumulate gradients itself.

    Raises:
        ValueError: If the accelerator accumulates, or the model has nothing to train.
    """

    def __init__(self, model: nn.Module, config: RunSettings, accelerator: Accelerator) -> None:
        if accelerator.gradient_accumulation_steps != 1:
            raise ValueError(
                f"the accelerator has gradient_accumulation_steps="
                f"{accelerator.gradient_accumulation_steps}, but steps are split here: leave it at "
                "1 and set micro_batch_size or micro_batch_tokens."
            )
        self.config, self.accelerator = config, accelerator
        self.module = model
        self.decoder_start_id = decoder_start_id(getattr(model, "config", None))
        self.optimizer = build_optimizer(model, config.optim)
        self.model, self._prepared = accelerator.prepare(model, self.optimizer)
        self.forget()  # what the caller may have left in the parameters

    def synchronised(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Return the context of the forward and backward pass of one part of a step.

        Args:
            last: Whether it is the step's last part, with which processes exchange gradients.
        """
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.model)

    def clip(self) -> Tensor:
        """Scale the gradient down to ``max_grad_norm`` and return the norm that it had."""
        max_norm = self.config.optim.max_grad_norm or math.inf
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), max_norm)
        assert norm is not None, "only DeepSpeed hides the norm"  # noqa: S101
        return norm

    def check_norm(self, norm: float, step: int) -> None:
        """Raise ``FloatingPointError`` if the gradient's norm is not finite."""
        # With a gradient scaler (float16) an overflow is expected and skipped by it.
        if not math.isfinite(norm) and self.accelerator.scaler is None:
            raise FloatingPointError(
                f"step {step}: the gradient's norm is {norm} though the loss is finite."
                " The parameters were not updated. Lower the learning rate."
            )

    def update(self, step: int) -> None:
        """Move the parameters along the gradient, at the learning rate of this step."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(step, self.config.num_steps, self.config.optim)
        self._prepared.step()

    def forget(self) -> None:
        """Drop the gradient."""
        self._prepared.zero_grad()

    def dropout_seed(self, step: int) -> contextlib.AbstractContextManager[None]:
        """Return a context in which dropout masks are a function of seed, step and process."""
        return seeded_torch(self.config.seed, "dropout", step, self.accelerator.process_index)


def decoder_start_id(config: Any) -> int | None:
    """Return the token that starts an encoder-decoder's output; None for decoder-only models.

    Args:
        config: The model's configuration, or None.

    Raises:
        ValueError: If it names none though the model needs one.
    """
    if not getattr(config, "is_encoder_decoder", False):
        return None
    if config.decoder_start_token_id is None:
        raise ValueError("the model's config has no decoder_start_token_id; set it.")
    return config.decoder_start_token_id
