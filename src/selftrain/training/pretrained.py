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
    name: str | Path, *, dtype: torch.dtype | str = "auto", trust_remote_code: bool = False
) -> Any:
    """Load a language model by folder or hub name: whole, or adapters onto the base they name.

    Args:
        name: What :func:`save_model` or ``save_pretrained`` wrote, or a name on the hub. Causal
            models and encoder-decoders.
        dtype: Type of the weights; "auto": as they are stored.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        ValueError: If it cannot be loaded: no such model, no weights, another kind of model, or
            adapters whose base is not found.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    base, adapters = str(name), Path(name) / "adapter_config.json"
    if adapters.exists():
        base = str(read_json(adapters)["base_model_name_or_path"])
    code = {"trust_remote_code": trust_remote_code}
    try:
        seq2seq = AutoConfig.from_pretrained(base, **code).is_encoder_decoder
        auto: Any = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
        model: Any = auto.from_pretrained(base, dtype=dtype, **code)
    except (OSError, ValueError) as error:
        if not adapters.exists():
            raise _cannot_load("model", base, error) from error
        raise ValueError(
            f"{name} holds adapters of {base!r}, which could not be loaded: {_first_line(error)} "
            "Save the base with save_pretrained, and name its folder as base_model_name_or_path "
            "in adapter_config.json."
        ) from error
    if adapters.exists():
        import peft

        return peft.PeftModel.from_pretrained(model, str(name), is_trainable=True)
    return model


def load_tokenizer(name: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a tokenizer by folder or hub name.

    Raises:
        ValueError: If that fails.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise _cannot_load("tokenizer", str(name), error) from error
    return tokenizer


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


def _cannot_load(what: str, name: str, error: Exception) -> ValueError:
    return ValueError(
        f"no {what} could be loaded from {name!r}: {_first_line(error)} Give a folder written by "
        "save_pretrained (config.json and weights in it), or the name of a model on the hub."
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
