"""The models of a DistillSpec run: made from a shape, or loaded by name."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selftrain._core.checks import check_int


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """The size of a Llama that is trained from scratch."""

    num_layers: int = 12
    """Transformer layers: on a CPU, time per token grows with them more than with the width."""
    width: int = 128
    """Hidden size; heads have 32 channels."""

    def __post_init__(self) -> None:
        check_int("num_layers", self.num_layers, low=1)
        check_int("width", self.width, low=32)
        if self.width % 32:
            raise ValueError(f"width must be a multiple of 32 (the head size), got {self.width}.")


def new_llama(shape: ModelShape, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return an untrained Llama for a tokenizer, with tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = shape.width // 32
    # transformers' default deviation of 0.02 suits widths of thousands; a narrow and deep model
    # begins to learn late with it.
    deviation = 0.7 * shape.width**-0.5
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.width,
            intermediate_size=8 * shape.width // 3 // 8 * 8,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            initializer_range=deviation,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def load_model(name: str, dtype: torch.dtype) -> PreTrainedModel:
    """Load a causal language model by hub name or folder.

    Raises:
        ValueError: If it cannot be loaded: no such model, no weights, another kind of model.
    """
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    except (OSError, ValueError) as error:
        raise _cannot_load("model", name, error) from error


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer by hub name or folder; raises ``ValueError`` if that fails."""
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise _cannot_load("tokenizer", name, error) from error
    return tokenizer


def _cannot_load(what: str, name: str, error: Exception) -> ValueError:
    reason = str(error).strip().split("\n")[0]
    return ValueError(
        f"no {what} could be loaded from {name!r}: {reason} Give a folder written by "
        "save_pretrained (config.json and weights in it), or the name of a causal model on the hub."
    )
