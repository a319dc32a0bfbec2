"""Weights to a folder and back into a model in place, adapters or whole."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from selftrain._core.io import atomic_folder, read_json


def save_model(model: Any, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Write model and tokenizer as ``from_pretrained`` reads them, atomically.

    Of a model with adapters (PEFT) the adapters alone are written.
    """
    with atomic_folder(folder) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)


def load_pretrained(
    name: str | Path, *, dtype: str | torch.dtype = "auto", trust_remote_code: bool = False
) -> Any:
    """Load a model by hub name or folder: whole, or adapters onto the base that they name.

    Args:
        name: A hub name, or a folder that :func:`save_model` or ``save_pretrained`` wrote.
        dtype: Type of the weights; "auto" is that of the checkpoint.
        trust_remote_code: Whether to run code that comes with the model.

    Raises:
        ValueError: If the model, or the base of the adapters, cannot be loaded.
    """
    path = Path(name)
    has_adapters = (path / "adapter_config.json").exists()
    if not has_adapters:
        return _load_whole(str(name), dtype, trust_remote_code)
    base = str(read_json(path / "adapter_config.json")["base_model_name_or_path"])
    try:
        model = _load_whole(base, dtype, trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} holds adapters of {base!r}, which could not be loaded: "
            f"{str(error).strip().splitlines()[0]} Save the base with save_pretrained, and name "
            "its folder as base_model_name_or_path in adapter_config.json."
        ) from error
    import peft

    return peft.PeftModel.from_pretrained(model, path, is_trainable=True)


def _load_whole(name: str, dtype: str | torch.dtype, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    code = {"trust_remote_code": trust_remote_code}
    seq2seq = AutoConfig.from_pretrained(name, **code).is_encoder_decoder
    auto: Any = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    return auto.from_pretrained(name, dtype=dtype, **code)


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
