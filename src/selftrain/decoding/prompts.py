"""Prompts in every form that samplers accept, to token ids."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, Any]]
"""The chat format of ``apply_chat_template``: dicts with "role" and "content"."""

Prompt = str | Sequence[int] | Messages
"""Text, token ids, or chat messages."""


def encode_prompt(tokenizer: PreTrainedTokenizerBase | None, prompt: Prompt) -> list[int]:
    """Return the ids of one prompt; messages go through the tokenizer's chat template.

    Raises:
        ValueError: If the prompt is empty, or needs a tokenizer or template that is missing.
        TypeError: If it is neither text nor ids nor messages.
    """
    ids: Any
    if isinstance(prompt, torch.Tensor):
        prompt = prompt.tolist()
    if isinstance(prompt, str):
        ids = _needed(tokenizer)(prompt)["input_ids"]
    elif all(isinstance(item, int) for item in prompt):
        ids = list(prompt)
    elif all(isinstance(item, Mapping) for item in prompt):
        ids = _needed(tokenizer).apply_chat_template(
            list(prompt), add_generation_prompt=True, tokenize=True, return_dict=False
        )
    else:
        raise TypeError(f"a prompt must be text, token ids or chat messages, got {prompt!r}.")
    if not ids:
        raise ValueError(
            f"prompt {prompt!r} is empty; a model continues at least one token. "
            "To start from nothing, pass the beginning-of-sequence id."
        )
    return [int(i) for i in ids]


def _needed(tokenizer: PreTrainedTokenizerBase | None) -> Any:
    if tokenizer is None:
        raise ValueError("text and messages need a tokenizer; pass one, or pass token ids.")
    return tokenizer
