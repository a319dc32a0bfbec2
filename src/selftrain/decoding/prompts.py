"""Prompts in every form that samplers accept, to token ids."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
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


def prompt_rows(
    input_ids: Tensor, attention_mask: Tensor | None, *, vocab_size: int, pad_id: int | None
) -> list[list[int]]:
    """Return the prompts of a padded batch without their padding.

    Args:
        input_ids: Ids ``[batch, time]``.
        attention_mask: 1 at tokens, one unbroken stretch a row; None where nothing is padded.
        vocab_size: Ids reach up to it.
        pad_id: What padding without a mask is known by; None if by nothing.

    Raises:
        TypeError: If either is no tensor, or ids are no integers.
        ValueError: If a prompt is empty, the mask has gaps or is missing, or an id is out of range.
    """
    _check_ids(input_ids, vocab_size)
    if attention_mask is None:
        if pad_id is not None:
            _check_unpadded(input_ids, pad_id)
        return input_ids.tolist()
    if not isinstance(attention_mask, Tensor):
        raise TypeError(f"attention_mask must be a tensor, got {type(attention_mask).__name__}.")
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, "
            f"input_ids {tuple(input_ids.shape)}; they must be equal."
        )
    mask = attention_mask.bool()
    starts_per_row = (mask & ~torch.nn.functional.pad(mask, (1, 0))[:, :-1]).sum(1)
    for row, starts in enumerate(starts_per_row.tolist()):
        if starts != 1:
            what = "is all zeros: the prompt is empty" if starts == 0 else "has gaps"
            raise ValueError(f"attention_mask[{row}] {what}; one unbroken stretch of 1 is needed.")
    return [ids[m].tolist() for ids, m in zip(input_ids, mask, strict=True)]


def _check_ids(input_ids: Tensor, vocab_size: int) -> None:
    if not isinstance(input_ids, Tensor):
        raise TypeError(f"input_ids must be a tensor, got {type(input_ids).__name__}.")
    if input_ids.ndim != 2 or input_ids.numel() == 0:
        raise ValueError(
            f"input_ids must be [batch, time] and not empty, got {tuple(input_ids.shape)}."
        )
    if input_ids.is_floating_point() or input_ids.dtype == torch.bool:
        raise TypeError(f"input_ids must be integers, got {input_ids.dtype}.")
    low, high = (int(x) for x in input_ids.aminmax())
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise ValueError(f"input_ids holds {wrong}; the target has tokens 0 to {vocab_size - 1}.")


def _check_unpadded(input_ids: Tensor, pad_id: int) -> None:
    """Raise if some rows begin or end with padding: without a mask it would be read as text."""
    for side, edge in (("begins", input_ids[:, 0]), ("ends", input_ids[:, -1])):
        padded = (edge == pad_id).tolist()
        if any(padded) and not all(padded):
            raise ValueError(
                f"attention_mask is missing, and input_ids[{padded.index(True)}] {side} with the "
                f"pad id {pad_id}; where rows differ in length, pass what the tokenizer returned."
            )


def _needed(tokenizer: PreTrainedTokenizerBase | None) -> Any:
    if tokenizer is None:
        raise ValueError("text and messages need a tokenizer; pass one, or pass token ids.")
    return tokenizer
