"""Weights to a folder and back into a model in place, adapters or whole."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from selftrain._core.io import atomic_folder


def save_model(model: Any, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Write model and tokenizer as ``from_pretrained`` reads them, atomically.

    Of a model with adapters (PEFT) the adapters alone are written.
    """
    with atomic_folder(folder) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)


@torch.no_grad()
def load_weights(model: Any, folder: str | Path) -> None:
    """Read what :func:`save_model` wrote into the same kind of model, in place.

    Raises:
        ValueError: If the folder's weights are those of another kind of model.
    """
    if hasattr(model, "peft_config"):
        _load_adapters(model, Path(folder))
        return
    saved = type(model).from_pretrained(folder, dtype=model.dtype).state_dict()
    own = model.state_dict()
    wrong = sorted(set(saved) ^ set(own))
    wrong += [name for name in own if name in saved and own[name].shape != saved[name].shape]
    if wrong:
        raise ValueError(
            f"{folder} holds another model: it differs in {', '.join(wrong[:5])}"
            f"{' ...' if len(wrong) > 5 else ''}."
        )
    for name, tensor in own.items():
        tensor.copy_(saved[name])


def _load_adapters(model: Any, folder: Path) -> None:
    import peft

    weights = peft.load_peft_weights(str(folder), device="cpu")
    result = peft.set_peft_model_state_dict(model, weights)
    if result.unexpected_keys:
        raise ValueError(
            f"{folder} holds adapters of another model: {', '.join(result.unexpected_keys[:5])}."
        )
