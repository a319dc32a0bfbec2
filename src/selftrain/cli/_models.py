"""Models by name, as the commands load them."""

from typing import Any, Literal

import torch

from selftrain._core.checks import check_int
from selftrain._core.rng import derive, seeded_torch
from selftrain.training.pretrained import load_pretrained

DtypeName = Literal["auto", "float32", "bfloat16"]


def load_model(name: str, *, dtype: DtypeName, trained: bool, trust_remote_code: bool) -> Any:
    """Load a model by hub name or folder.

    Args:
        name: Hub name or folder.
        dtype: Type of the weights; "auto" is the checkpoint's, or float32 where ``trained``.
        trained: Whether all its weights are going to be trained.
        trust_remote_code: Run code that comes with the model.

    Raises:
        ValueError: If it cannot be loaded.
    """
    if dtype == "auto" and trained:
        dtype = "float32"  # small updates are lost in bfloat16
    return load_pretrained(
        name,
        dtype=dtype if dtype == "auto" else getattr(torch, dtype),
        trust_remote_code=trust_remote_code,
    )


def with_adapters(model: Any, rank: int, seed: int) -> Any:
    """Return the model with new LoRA adapters on all its linear layers, and nothing else to train.

    Raises:
        ValueError: If the rank is below 1 or the model has adapters already.
    """
    import peft

    check_int("lora_rank", rank, low=1)
    if hasattr(model, "peft_config"):
        raise ValueError(
            "the model has adapters already, and they are what is trained; leave --lora-rank out, "
            "or name the base model."
        )
    kind = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
    config = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type=kind
    )
    with seeded_torch(derive(seed, "adapters")):  # the same on every process
        return peft.get_peft_model(model, config)
